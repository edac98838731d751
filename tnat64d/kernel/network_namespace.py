"""Network namespaces: which one this is, and a new one for a moment.

Owns both. Refuses to own what is tried in the new one. Only the kernel knows how it will show what it was given:
whether rules stand already is seen by comparing with the same rules there.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tnat64d.errors import UnavailableError

_CLONE_NEWNET = 0x40000000

Result = TypeVar("Result")


def number() -> int:
    """By which this thread's network namespace is told from others."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def in_new(function: Callable[[], Result]) -> Result:
    """What `function` returns in a new network namespace, which goes with the thread that it runs in.

    Raises UnavailableError without CAP_SYS_ADMIN (unshare(2)), and what `function` raises.
    """

    def run() -> Result:
        if ctypes.CDLL(None).unshare(_CLONE_NEWNET):
            raise UnavailableError("making a network namespace needs root (CAP_SYS_ADMIN)")
        return function()

    with ThreadPoolExecutor(1, "network") as thread:
        return thread.submit(run).result()
