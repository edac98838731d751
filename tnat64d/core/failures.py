"""The last failure of each destination, for those who ask why.

Owns how many are remembered and which one speaks for a destination. Refuses to own when a connection has failed
(`proxy.dial`) and the clock.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from tnat64d.core.scope import Place

REMEMBERED = 1024

_ANSWERS = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM})
"""The last two: prohibited, by the network (ICMPv6) or a route (EACCES), or by this host (EPERM)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A connection that was refused. `at`: seconds since the epoch; the errors are errnos, 0: not tried."""

    address: str
    port: int
    at: float
    ipv4_error: int
    nat64_error: int
    because: str

    @property
    def is_answer(self) -> bool:
        """Whether every attempt was refused, unreachable or prohibited.

        Silence is no answer, and want of means is our own.
        """
        errors = {self.ipv4_error, self.nat64_error} - {0}
        return bool(errors) and errors <= _ANSWERS


def to_refuse(failures: Iterable[Failure], honest: Collection[Place], since: float) -> list[tuple[str, int]]:
    """The destinations (address, port) of `failures` that may be refused for a while without asking them.

    Those that have answered, but for the places where connects are honest: there each asks the destination. What
    failed before `since` (seconds since the epoch) may be otherwise now.
    """
    return [
        (failure.address, failure.port)
        for failure in failures
        if failure.is_answer
        and failure.at >= since
        and not any(place.holds(IPv4Address(failure.address), failure.port) for place in honest)
    ]


class FailureMemory:
    """Bounded: the destination that has not failed for the longest time is forgotten first."""

    def __init__(self, max_entries: int = REMEMBERED) -> None:
        self._max_entries = max_entries
        self._last: OrderedDict[tuple[str, int], Failure] = OrderedDict()

    def remember(self, failures: Iterable[Failure]) -> None:
        """Each takes the place of the one before of its destination."""
        for failure in failures:
            key = (failure.address, failure.port)
            self._last[key] = failure
            self._last.move_to_end(key)
            if len(self._last) > self._max_entries:
                self._last.popitem(last=False)

    def last(self, address: str, port: int = 0) -> Failure | None:
        """That of `address` and `port`; port 0: the latest of any port."""
        if port:
            return self._last.get((address, port))
        return next((each for each in reversed(self._last.values()) if each.address == address), None)

    def drain(self) -> tuple[Failure, ...]:
        """All that are remembered, oldest first, which are then forgotten."""
        failures = tuple(self._last.values())
        self._last.clear()
        return failures
