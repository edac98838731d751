"""A network namespace for a moment: what the kernel makes of rules, without making them on this host.

Owns the namespace. Refuses to own what is tried in it. Only the kernel knows how it will show what it was given:
whether rules stand already is seen by comparing with the same rules there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tnat64d.errors import UnavailableError

_CLONE_NEWNET = 0x40000000

Result = TypeVar("Result")


def in_new_network(function: Callable[[], Result]) -> Result:
    """What `function` returns in a new network namespace, which goes with the thread that it runs in.

    Raises UnavailableError without CAP_SYS_ADMIN (unshare(2)), and what `function` raises.
    """

    def run() -> Result:
        if ctypes.CDLL(None).unshare(_CLONE_NEWNET):
            raise UnavailableError("making a network namespace needs root (CAP_SYS_ADMIN)")
        return function()

    with ThreadPoolExecutor(1, "scratch") as thread:
        return thread.submit(run).result()
