"""What a worker counts, logs and passes on of its connections.

Owns the counters and the words of the log. Refuses to own the connections (`proxy`), and what follows from the end
of one (`daemon.worker`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from tnat64d.core.policy import ScopeState, StickyMemory
from tnat64d.core.settings import Settings
from tnat64d.daemon import journal
from tnat64d.daemon.channel import Learned, Message
from tnat64d.daemon.failure_reports import FailureReports
from tnat64d.kernel.original_dst import Destination
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.counters import Counter, Counters
from tnat64d.proxy.destination import Target
from tnat64d.proxy.relay import Relay
from tnat64d.proxy.sources import SourceLimit
from tnat64d.proxy.syn_gate import MAX_HELD

_log = logging.getLogger(__name__)

OVER_LIMIT_INTERVAL_S: Final = 60.0
"""So often at most the log says that a source is over its limit."""

# Plain integers: an enum's member costs 0.1 us to look up (Python 3.11, enum.property.__get__).
_ACCEPTED: Final = int(Counter.ACCEPTED)
_ACCEPT_PAUSES: Final = int(Counter.ACCEPT_PAUSES)
_ACTIVE: Final = int(Counter.ACTIVE)
_DOWN_BYTES: Final = int(Counter.DOWN_BYTES)
_HELD: Final = int(Counter.HELD)
_NOT_HELD: Final = int(Counter.NOT_HELD)
_NOT_CAPTURED: Final = int(Counter.NOT_CAPTURED)
_OVER_LIMIT: Final = int(Counter.OVER_LIMIT)
_REFUSED: Final = int(Counter.REFUSED)
_RELAYED_IPV4: Final = int(Counter.RELAYED_IPV4)
_RELAYED_NAT64: Final = int(Counter.RELAYED_NAT64)
_RESET: Final = int(Counter.RESET)
_UNCLAIMED: Final = int(Counter.UNCLAIMED)
_UP_BYTES: Final = int(Counter.UP_BYTES)


class Plane(Protocol):
    """Whose connections these are."""

    @property
    def active(self) -> int:
        """Connections that are dialling or relaying."""

    def connection_over(self) -> None:
        """One has ended."""

    def rest(self) -> None:
        """Accept nothing for a while."""


class Bookkeeping:
    """A `proxy.connection.Observer`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        settings: Settings,
        memory: StickyMemory,
        sources: SourceLimit | None,
        tell: Callable[[Message], None],
        plane: Plane,
    ) -> None:
        """`tell`: how the supervisor is told."""
        self._loop = loop
        self._counters = counters
        self._memory = memory
        self._sources = sources
        self._tell = tell
        self._plane = plane
        self._failures = FailureReports(loop, tell)
        self._said_came_back = False
        self._said_over_limit = -OVER_LIMIT_INTERVAL_S
        self._log_closed = True
        self._log_refused = True
        self.use(settings)
        counters[_ACTIVE] = 0

    def use(self, settings: Settings) -> None:
        """Log by `settings` from now on."""
        self._log_closed = settings.log.connections == "all"
        self._log_refused = settings.log.connections != "none"

    def accepted(self) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_ACCEPTED] += 1
        self._counters[_ACTIVE] += 1

    def not_captured(self, client: Destination) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_NOT_CAPTURED] += 1
        if self._log_refused:
            _log.info("%s:%d refused: it connected to the listener itself, not to an IPv4 server", *client)

    def came_back(self, target: Target) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_NOT_CAPTURED] += 1
        if not self._said_came_back:
            self._said_came_back = True
            _log.warning(
                "the daemon's own connection to %s:%d came back to it and was reset: a packet rule of somebody's "
                "rewrites the mark of its IPv4 connections, see iptables -t mangle -S OUTPUT (said once)",
                *target.destination,
            )

    def over_limit(self, client: Destination) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_OVER_LIMIT] += 1
        now = self._loop.time()
        if now - self._said_over_limit >= OVER_LIMIT_INTERVAL_S:
            self._said_over_limit = now
            _log.warning(
                "%s has as many connections as one source may have, more are reset: "
                "proxy.max_connections_per_source (said once a minute; %d so far)",
                client[0],
                self._counters[_OVER_LIMIT],
            )

    def refused(self, connection: Connection) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_REFUSED] += 1
        if not connection.client_gone:
            self._failures.remember(connection)
        if self._log_refused:
            _log.info("%s", journal.refused_line(connection, self._loop.time() - connection.since))
        self._over(connection)

    def closed(self, connection: Connection, relay: Relay) -> None:
        """See `proxy.connection.Observer`."""
        counters = self._counters
        counters[_RELAYED_NAT64 if connection.by_nat64 else _RELAYED_IPV4] += 1
        counters[_UP_BYTES] += relay.client.passed_bytes
        counters[_DOWN_BYTES] += relay.upstream.passed_bytes
        if relay.closed_by_reset:
            counters[_RESET] += 1
        if self._log_closed:
            _log.info("%s", journal.closed_line(connection, relay, self._loop.time() - connection.since))
        self._over(connection)

    def learned(self, scope: Hashable, state: ScopeState, connection: Connection) -> None:
        """See `proxy.connection.Observer`."""
        sticky = state is ScopeState.NAT64_STICKY
        _log.info(
            "%s %s",
            "all destinations" if scope is None else scope,
            "go through NAT64 from now on: it answered"
            if sticky
            else "try IPv4 first again: NAT64 is unreachable",
        )
        self._tell(Learned(scope, state, self._memory.epoch))

    def held(self) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_HELD] += 1
        self._counters[_ACTIVE] += 1

    def not_held(self, count: int) -> None:
        """See `proxy.connection.Observer`."""
        is_news = not self._counters[_NOT_HELD]
        self._counters[_NOT_HELD] += count
        if is_news:
            _log.warning(
                "more than %d connects wait for an answer, or came at once, proxy.max_connections is reached, or "
                "file descriptors have run out: those beyond are plain (said once)",
                MAX_HELD,
            )

    def answered(self) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_ACTIVE] = self._plane.active
        self._plane.connection_over()

    def unclaimed(self, connection: Connection) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_UNCLAIMED] += 1
        if self._log_refused:
            _log.info("%s", journal.unclaimed_line(connection, self._loop.time() - connection.since))
        self._leave(connection)

    def exhausted(self) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_ACCEPT_PAUSES] += 1
        if self._counters[_ACCEPT_PAUSES] == 1:
            _log.warning(
                "no file descriptors or socket memory left with %d connections: accepting rests until there are; "
                "raise LimitNOFILE= or lower proxy.max_connections (said once)",
                self._plane.active,
            )
        self._plane.rest()

    def _over(self, connection: Connection) -> None:
        self._leave(connection)
        self._counters[_ACTIVE] = self._plane.active
        self._plane.connection_over()

    def _leave(self, connection: Connection) -> None:
        if self._sources is not None and connection.admitted:
            self._sources.leave(connection.client[0])
