"""Whether labs can be made here. Asks only; installs and changes nothing."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.lab.namespace import CLONE_NEWNET

PROGRAMS = ("ip", "nsenter")  # what every lab needs
NAT64_PROGRAMS = ("tayga", "iptables")  # what `Nat64Lab` needs beside them
CLIENT_PROGRAMS = ("gcc", "setpriv")  # what `clients` needs


def what_is_missing(programs: Iterable[str] = ()) -> str | None:
    """Why no lab that also needs `programs` can be made, in half a sentence; None when it can."""
    if os.geteuid() != 0:
        return "needs root"
    if reason := _no_namespaces():
        return reason
    missing = [program for program in (*PROGRAMS, *programs) if shutil.which(program) is None]
    return f"needs {', '.join(missing)}, not installed" if missing else None


@functools.cache
def _no_namespaces() -> str | None:
    def unshare() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        return ctypes.get_errno() if libc.unshare(CLONE_NEWNET) != 0 else 0

    with ThreadPoolExecutor(max_workers=1) as pool:  # the thread, and the namespace with it, ends here
        error = pool.submit(unshare).result()
    return f"the kernel makes no network namespaces here ({os.strerror(error)})" if error else None
