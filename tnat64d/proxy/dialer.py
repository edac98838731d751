"""What the connections of a worker share while they dial and relay.

Owns which dials and relays are under way, their deadlines, pipes and sources, and the options of the sockets they
dial with.
Refuses to own the attempts for one connection (`proxy.dial`) and its bytes (`proxy.relay`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from _socket import socket as RawSocket
from dataclasses import dataclass
from typing import Final

from tnat64d.core.policy import ScopeState, StickyMemory
from tnat64d.kernel.original_dst import Destination, set_mark
from tnat64d.proxy.connection import Connection, Observer
from tnat64d.proxy.deadlines import Deadlines
from tnat64d.proxy.dial import AcceptedDial, Attempt, Dial
from tnat64d.proxy.pipes import PipePool
from tnat64d.proxy.reactor import Reactor
from tnat64d.proxy.relay import Relay

SETTLE_S = 1.0
"""Most connections are over by then; what only a longer life needs (keepalive, a watch on a client that
waits) is not paid for before."""

# Plain integers of this module's own: members of enums and names of other modules are looked up at each use.
_AF_INET: Final = int(socket.AF_INET)
_AF_INET6: Final = int(socket.AF_INET6)
_STREAM: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_TCP: Final = int(socket.IPPROTO_TCP)

KEEPALIVE_PROBES: Final = 5


@dataclass(frozen=True, slots=True)
class DialSettings:
    """Times in seconds, 0 for never; `mark`: the fwmark of IPv4 attempts."""

    mark: int
    fallback_delay_s: float
    connect_timeout_s: float
    idle_timeout_s: float
    keepalive_s: int


class Dialer:
    """Dials for every connection of a worker, and keeps what they share."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        settings: DialSettings,
        memory: StickyMemory,
        observer: Observer,
    ) -> None:
        self.reactor = reactor
        self.memory = memory
        self.observer = observer
        self._loop = loop
        self._settings = settings
        self._pipes = PipePool()
        self._dials: set[Dial] = set()
        self._relays: dict[Relay, Connection] = {}
        self.own_connections: set[tuple[Destination, Destination]] = set()
        """This worker's own IPv4 connections, by source and destination: one of them that is captured would be
        carried again, and again. The mark keeps them out of the rules, unless a rule of somebody's rewrites it.
        A source alone says nothing: the kernel gives a port to several, if they go to different destinations."""
        self.connect_deadlines = Deadlines[Attempt](loop, settings.connect_timeout_s, self._timed_out)
        self.fallback_deadlines = Deadlines[Dial](loop, settings.fallback_delay_s, Dial.fall_back)
        self._dial_settling = Deadlines[Dial](loop, SETTLE_S, lambda dial: dial.settle())
        self._relay_settling = Deadlines[Relay](loop, SETTLE_S, self._keep_alive)
        self._idle_check_s = settings.idle_timeout_s / 8
        self._idle = Deadlines[Relay](loop, self._idle_check_s, self._check_idle)

    def use(self, settings: DialSettings) -> None:
        """Go by `settings` from now on, but for the mark and keepalive, which sockets have already."""
        self._settings = settings
        self.connect_deadlines.change(settings.connect_timeout_s)
        self.fallback_deadlines.change(settings.fallback_delay_s)
        self._idle_check_s = settings.idle_timeout_s / 8
        self._idle.change(self._idle_check_s)

    @property
    def active(self) -> int:
        """Connections that are dialling or relaying."""
        return len(self._dials) + len(self._relays)

    def begin(self, client: RawSocket, connection: Connection) -> None:
        """Take over the accepted `client`."""
        self.run(AcceptedDial(self, client, connection))

    def run(self, dial: Dial) -> None:
        """Dial as `dial` says."""
        self._dials.add(dial)
        self._dial_settling.start(dial)
        try:
            dial.begin()
        except Exception:  # a bug, which the reactor reports
            dial.refuse()
            raise

    def abort_all(self) -> None:
        """Reset every connection."""
        for dial in tuple(self._dials):
            dial.refuse()
        for relay in tuple(self._relays):
            relay.abort()

    def close(self) -> None:
        """Give back what does not belong to a connection."""
        self._pipes.close()
        for deadlines in (self.connect_deadlines, self.fallback_deadlines, self._dial_settling):
            deadlines.cancel()
        self._relay_settling.cancel()
        self._idle.cancel()

    def socket(self, is_nat64: bool) -> RawSocket:
        """A non-blocking socket to dial with. Raises OSError (EMFILE and the like)."""
        sock = RawSocket(_AF_INET6 if is_nat64 else _AF_INET, _STREAM, _TCP)
        if not is_nat64:
            # Rule 32768 of core.ruleset; without it the attempt would be captured like any other.
            set_mark(sock, self._settings.mark)
        return sock

    def learn(self, connection: Connection, state: ScopeState) -> None:
        """The scope of `connection` is in `state` from now on."""
        scope = connection.target.scope
        if self.memory.learn(scope, state):
            self.observer.learned(scope, state, connection)

    def over(self, dial: Dial) -> None:
        """`dial` has ended."""
        self._dials.discard(dial)
        self._dial_settling.stop(dial)
        self.fallback_deadlines.stop(dial)

    def remember_source(self, connection: Connection, sock: RawSocket) -> None:
        """`sock` is the IPv4 attempt of `connection`."""
        connection.source = sock.getsockname()
        self.own_connections.add((connection.source, connection.target.destination))

    def forget_source(self, connection: Connection) -> None:
        """The IPv4 attempt of `connection`, if there was one, has been given up."""
        if connection.source is not None:
            self.own_connections.discard((connection.source, connection.target.destination))
            connection.source = None

    def settle_later(self, dial: Dial) -> None:
        """`dial` has settled, and wants to settle again."""
        self._dial_settling.start(dial)

    def relay(
        self, connection: Connection, client: RawSocket, client_mask: int | None, upstream: RawSocket, mask: int
    ) -> None:
        """Relay between `client` and `upstream`, of which these masks were reported; None: not watched yet."""
        relay = Relay(self.reactor, self._pipes, client, upstream, self._ended)
        self._relays[relay] = connection
        self._relay_settling.start(relay)
        self._idle.start(relay)
        try:
            relay.start(client_mask, mask)
        except Exception:  # a bug, which the reactor reports
            relay.abort()
            raise

    def _ended(self, relay: Relay) -> None:
        self._relay_settling.stop(relay)
        self._idle.stop(relay)
        connection = self._relays.pop(relay)
        self.forget_source(connection)
        self.observer.closed(connection, relay)

    def _timed_out(self, attempt: Attempt) -> None:
        attempt.dial.ended(attempt, errno.ETIMEDOUT, 0)

    def _keep_alive(self, relay: Relay) -> None:
        keep_alive(relay.upstream.sock, self._settings.keepalive_s)

    def _check_idle(self, relay: Relay) -> None:
        connection = self._relays[relay]
        passed_bytes = relay.client.passed_bytes + relay.upstream.passed_bytes
        now = self._loop.time()
        if passed_bytes != connection.passed_bytes_before:
            connection.passed_bytes_before = passed_bytes
            connection.idle_since = now
        elif now - connection.idle_since >= self._settings.idle_timeout_s:
            connection.idle = True
            relay.abort()
            return
        self._idle.start(relay)


def keep_alive(sock: RawSocket | socket.socket, idle_s: int) -> None:
    """Let the kernel find out whether the peer of `sock` still lives (tcp(7)); 0: leave it alone."""
    if idle_s <= 0:
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle_s // KEEPALIVE_PROBES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    except OSError:
        pass  # the connection has just ended; the reactor reports it
