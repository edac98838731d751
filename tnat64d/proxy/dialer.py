"""From a connection that was asked for to a relay: the attempts that `core.policy` asks for.

Owns the attempts, and the socket of an accepted client, from `Dialer.begin` until the relay has them or the client
is refused. Who else may wait for the outcome is `proxy.syn_gate`'s.
Refuses to own the decision (`core.policy`), the route (`proxy.destination`) and the bytes (`proxy.relay`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from _socket import socket as RawSocket
from dataclasses import dataclass
from select import EPOLLERR, EPOLLHUP
from typing import Final

from tnat64d.core import policy
from tnat64d.core.policy import Action, ScopeState, StickyMemory
from tnat64d.kernel.original_dst import Destination, set_mark
from tnat64d.proxy.connection import Connection, Observer
from tnat64d.proxy.deadlines import Deadlines
from tnat64d.proxy.pipes import PipePool
from tnat64d.proxy.reactor import Reactor
from tnat64d.proxy.relay import READS, READS_AND_WRITES, End, Relay, reset

SETTLE_S = 1.0
"""Most connections are over by then; what only a longer life needs (keepalive, a watch on a client that
waits) is not paid for before."""

# Plain integers of this module's own: members of enums and names of other modules are looked up at each use.
_AF_INET: Final = int(socket.AF_INET)
_AF_INET6: Final = int(socket.AF_INET6)
_STREAM: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_TCP: Final = int(socket.IPPROTO_TCP)
_LOST: Final = EPOLLERR | EPOLLHUP
_IN_PROGRESS: Final = errno.EINPROGRESS
# An enum's member costs 0.1 us to look up (Python 3.11, enum.property.__get__), and these are looked up often.
_DONE: Final = policy.Phase.DONE
_FALLING_BACK: Final = policy.Phase.IPV4_FIRST
_RELAY_NAT64: Final = Action.RELAY_NAT64
_RELAY_IPV4: Final = Action.RELAY_IPV4
_DIAL_NAT64: Final = Action.DIAL_NAT64
_REFUSE: Final = Action.REFUSE
_WAIT: Final = Action.WAIT

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""This process or the system has no room for a socket."""

KEEPALIVE_PROBES: Final = 5


@dataclass(frozen=True, slots=True)
class DialSettings:
    """Times in seconds, 0 for never; `mark`: the fwmark of IPv4 attempts."""

    mark: int
    fallback_delay_s: float
    connect_timeout_s: float
    idle_timeout_s: float
    keepalive_s: int


class Attempt:
    """One connect(2) under way."""

    __slots__ = ("dial", "is_nat64", "sock")

    def __init__(self, dial: Dial, sock: RawSocket, is_nat64: bool) -> None:
        self.dial = dial
        self.sock = sock
        self.is_nat64 = is_nat64

    def ready(self, mask: int) -> None:
        """See `reactor.Watcher`."""
        error = 0
        if mask & _LOST:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNABORTED
        self.dial.ended(self, error, mask)

    def crashed(self) -> None:
        """See `reactor.Watcher`."""
        self.dial.refuse()


class Dial:
    """The attempts for one connection. A subclass knows who waits for their outcome, and tells them."""

    __slots__ = ("connection", "dialer", "ipv4", "nat64", "over", "phase")

    def __init__(self, dialer: Dialer, connection: Connection) -> None:
        self.dialer = dialer
        self.connection = connection
        self.ipv4: Attempt | None = None
        self.nat64: Attempt | None = None
        self.phase = _DONE
        self.over = False

    def begin(self) -> None:
        """Take the first step."""
        target = self.connection.target
        self._follow(policy.begin(target.way, self.dialer.memory.state(target.scope)), 0)

    def ended(self, attempt: Attempt, error: int, mask: int) -> None:
        """`attempt` has ended with `error`, an errno, 0 for connected."""
        self.dialer.connect_deadlines.stop(attempt)
        if error:
            self._close(attempt)
        self._follow(policy.advance(self.phase, self._event(attempt.is_nat64, error)), mask)

    def fall_back(self) -> None:
        """The fallback delay is over; nothing if IPv4 alone is not what is waited for."""
        if not self.over and self.phase is _FALLING_BACK:
            self._follow(policy.advance(self.phase, policy.Event.FALLBACK_DELAY), 0)

    def settle(self) -> None:
        """Who waits has waited for a while: notice if they give up."""
        raise NotImplementedError

    def connected(self, upstream: RawSocket, mask: int) -> None:
        """Tell them: `upstream` is connected, and `mask` was reported of it. It is theirs from now on."""
        raise NotImplementedError

    def failed(self) -> None:
        """Tell them: no way led to the destination."""
        raise NotImplementedError

    def refuse(self) -> None:
        """End every attempt, and tell who waits."""
        if not self.over:
            self.over = True
            self._abandon(self.ipv4)
            self._abandon(self.nat64)
            self.nat64 = self.ipv4 = None  # no reference cycle is left
            self.failed()
            self.dialer.over(self)
            self.dialer.observer.refused(self.connection)

    def _follow(self, transition: policy.Transition, mask: int) -> None:
        """Do what `transition` says, and what follows from that at once. `mask`: of the socket that connected."""
        while True:
            self.phase = transition.phase
            if transition.because is not None:
                self.connection.because = transition.because
            if transition.scope is not None:
                self.dialer.learn(self.connection, transition.scope)
            action = transition.action
            if action is _RELAY_NAT64 or action is _RELAY_IPV4:
                return self._relay(action is _RELAY_NAT64, mask)
            if action is _REFUSE:
                return self.refuse()
            if action is _WAIT:
                return None
            is_nat64 = action is _DIAL_NAT64
            error = self._connect(is_nat64)
            if error == _IN_PROGRESS:
                return None
            transition = policy.advance(self.phase, self._event(is_nat64, error))

    def _connect(self, is_nat64: bool) -> int:
        """Begin an attempt; EINPROGRESS, or the errno that it ended with at once."""
        dialer = self.dialer
        target = self.connection.target
        try:
            sock = dialer.socket(is_nat64)
        except OSError as failure:
            if failure.errno in EXHAUSTED:
                dialer.observer.exhausted()
            return failure.errno or errno.EIO
        address = target.nat64 if is_nat64 else target.destination
        assert address is not None
        error = sock.connect_ex(address)
        if error and error != _IN_PROGRESS:
            sock.close()
            return error
        attempt = Attempt(self, sock, is_nat64)
        if is_nat64:
            self.nat64 = attempt
        else:
            self.ipv4 = attempt
            dialer.remember_source(self.connection, sock)
            if self.phase is _FALLING_BACK:
                dialer.fallback_deadlines.start(self)
        dialer.connect_deadlines.start(attempt)
        # Also when it connected at once: the first turn of the reactor reports it.
        dialer.reactor.watch(sock.fileno(), READS_AND_WRITES, attempt)
        return _IN_PROGRESS

    def _event(self, is_nat64: bool, error: int) -> policy.Event:
        if is_nat64:
            if error:
                self.nat64 = None
                self.connection.nat64_error = error
            return policy.nat64_event(error)
        if error:
            self.ipv4 = None
            self.connection.ipv4_error = error
        return policy.ipv4_event(error)

    def _relay(self, by_nat64: bool, mask: int) -> None:
        winner, other = (self.nat64, self.ipv4) if by_nat64 else (self.ipv4, self.nat64)
        assert winner is not None
        self.over = True
        self._abandon(other)
        self.nat64 = self.ipv4 = None  # no reference cycle is left
        self.connection.by_nat64 = by_nat64
        self.dialer.over(self)
        self.connected(winner.sock, mask)

    def _abandon(self, attempt: Attempt | None) -> None:
        if attempt is not None:
            self.dialer.connect_deadlines.stop(attempt)
            self._close(attempt)

    def _close(self, attempt: Attempt) -> None:
        if not attempt.is_nat64:
            self.dialer.forget_source(self.connection)
        self.dialer.reactor.close(attempt.sock)


class AcceptedDial(Dial):
    """Who waits is a client whose connection was accepted."""

    __slots__ = ("client", "client_mask")

    def __init__(self, dialer: Dialer, client: RawSocket, connection: Connection) -> None:
        super().__init__(dialer, connection)
        self.client = client
        self.client_mask: int | None = None

    def settle(self) -> None:
        """See Dial."""
        if not self.over:
            self.dialer.reactor.watch(self.client.fileno(), READS, self)
            self.client_mask = 0

    def ready(self, mask: int) -> None:
        """See `reactor.Watcher`. A FIN alone does not mean that the client gave up: it may still read."""
        self.client_mask = mask
        if mask & _LOST:
            self.connection.client_gone = True
            self.refuse()

    def crashed(self) -> None:
        """See `reactor.Watcher`."""
        self.refuse()

    def connected(self, upstream: RawSocket, mask: int) -> None:
        """See Dial."""
        self.dialer.relay(self.connection, self.client, self.client_mask, upstream, mask)

    def failed(self) -> None:
        """See Dial."""
        reset(self.client)
        self.dialer.reactor.close(self.client)


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
        self.sources: set[Destination] = set()
        """Where this worker's own IPv4 connections come from: one of them that is captured would be carried again,
        and again. The mark keeps them out of the rules, unless a rule of somebody's rewrites it."""
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
        self.sources.add(connection.source)

    def forget_source(self, connection: Connection) -> None:
        """The IPv4 attempt of `connection`, if there was one, has been given up."""
        if connection.source is not None:
            self.sources.discard(connection.source)
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


__all__ = ["EXHAUSTED", "AcceptedDial", "Attempt", "Dial", "DialSettings", "Dialer", "End", "keep_alive"]
