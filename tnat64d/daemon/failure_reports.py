"""What a worker tells of connections that were refused, for `tnat64d why` and for what the kernel refuses itself.

Owns the moment: the first failure of a destination is told at once, what follows is gathered and told together. So
a flood of failures costs the data path an entry of a dictionary each, and the channel at most `MAX_AT_ONCE` + 1
messages in `DELAY_S`. Refuses to own who keeps them (`daemon.pool`) and who refuses by them (`daemon.supervisor`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tnat64d.core.failures import Failure, FailureMemory
from tnat64d.daemon.channel import Failures
from tnat64d.proxy.connection import Connection

DELAY_S = 0.2
MAX_AT_ONCE = 16
"""Destinations told at once in `DELAY_S`; the others wait for its end."""

MAX_IN_MESSAGE = 256
"""Destinations told together; of more in `DELAY_S`, those that failed first go untold."""


class FailureReports:
    """Calls `tell` with what was remembered, at once or at most `DELAY_S` later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[Failures], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._told_at_once: set[tuple[str, int]] = set()
        self._untold = FailureMemory(MAX_IN_MESSAGE)
        self._timer: asyncio.TimerHandle | None = None

    def remember(self, refused: Connection) -> None:
        """`refused` has ended, with the errors that it has now."""
        destination = refused.target.destination
        failure = Failure(
            *destination, time.time(), refused.ipv4_error, refused.nat64_error, because=refused.because
        )
        if self._timer is None:
            self._timer = self._loop.call_later(DELAY_S, self._tell_gathered)
        if destination in self._told_at_once or len(self._told_at_once) == MAX_AT_ONCE:
            self._untold.remember([failure])
        else:
            self._told_at_once.add(destination)
            self._tell(Failures((failure,)))

    def _tell_gathered(self) -> None:
        self._timer = None
        self._told_at_once.clear()
        if gathered := self._untold.drain():
            self._tell(Failures(gathered))
