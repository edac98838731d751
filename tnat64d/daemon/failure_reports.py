"""What a worker tells of connections that were refused, for `tnat64d why`.

Owns the moment: failures are gathered and told together, so that a flood of them costs the data path one entry of
a dictionary each and the channel a few messages a second. Refuses to own who keeps them (`daemon.pool`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tnat64d.core.failures import Failure, FailureMemory
from tnat64d.daemon.channel import Failures
from tnat64d.proxy.connection import Connection

DELAY_S = 0.2
AT_ONCE = 256
"""Destinations in one message; of more in that time, those that failed first go untold."""


class FailureReports:
    """Calls `tell` with what was remembered, `DELAY_S` after the first of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[Failures], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._untold = FailureMemory(AT_ONCE)
        self._timer: asyncio.TimerHandle | None = None

    def remember(self, refused: Connection) -> None:
        """`refused` has ended, with the errors that it has now."""
        address, port = refused.target.destination
        failure = Failure(
            address, port, time.time(), refused.ipv4_error, refused.nat64_error, because=refused.because
        )
        self._untold.remember([failure])
        if self._timer is None:
            self._timer = self._loop.call_later(DELAY_S, self._tell_all)

    def _tell_all(self) -> None:
        self._timer = None
        self._tell(Failures(self._untold.drain()))
