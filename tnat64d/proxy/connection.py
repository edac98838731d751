"""What is known of one connection from accept to close, and who is told.

Owns the facts for the log line and the counters. Refuses to own sockets, and the text of the line
(`daemon.journal`).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol

from tnat64d.core.policy import ScopeState
from tnat64d.kernel.original_dst import Destination
from tnat64d.proxy.destination import Target

if TYPE_CHECKING:
    from tnat64d.proxy.relay import Relay


class Connection:
    """One client and its destination. `because`: why its way was taken; errors are errnos, 0 for none.

    `admitted`: it counts as one of its source (`proxy.sources`). `source`: the own address of the IPv4 attempt.
    """

    __slots__ = (
        "admitted",
        "because",
        "by_nat64",
        "client",
        "client_gone",
        "idle",
        "idle_since",
        "ipv4_error",
        "nat64_error",
        "passed_bytes_before",
        "since",
        "source",
        "target",
    )

    def __init__(self, client: Destination, target: Target, now: float) -> None:
        """`now`: the time of accept, in seconds of the loop's clock."""
        self.client = client
        self.target = target
        self.since = now
        self.because = ""
        self.by_nat64 = False
        self.ipv4_error = 0
        self.nat64_error = 0
        self.admitted = False
        self.source: Destination | None = None
        self.client_gone = False
        self.idle = False
        self.idle_since = now
        self.passed_bytes_before = 0


class Observer(Protocol):
    """Who is told what becomes of connections. Called on the data path: nothing here may block."""

    def accepted(self) -> None:
        """A connection was accepted and will be dialled."""

    def not_captured(self, client: Destination) -> None:
        """`client` connected straight to the listener, and was reset."""

    def came_back(self, target: Target) -> None:
        """This worker's own IPv4 connection to `target` was captured, and was reset."""

    def over_limit(self, client: Destination) -> None:
        """`client` has as many connections as one source may have; this one was reset."""

    def refused(self, connection: Connection) -> None:
        """No way led to the destination; the client was reset."""

    def closed(self, connection: Connection, relay: Relay) -> None:
        """A relay has ended; its byte counts are final."""

    def learned(self, scope: Hashable, state: ScopeState, connection: Connection) -> None:
        """A scope changed its state, because of `connection`."""

    def held(self) -> None:
        """A SYN is held and its destination will be dialled."""

    def not_held(self, count: int) -> None:
        """So many SYNs were not held: too many are, or descriptors have run out."""

    def answered(self) -> None:
        """A held SYN was let go, for its destination has connected; the connection will be accepted."""

    def unclaimed(self, connection: Connection) -> None:
        """It was not: its client has not come, and the destination was hung up."""

    def exhausted(self) -> None:
        """The process or the system has no descriptors (or memory) left for a socket."""
