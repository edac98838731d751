"""From a connection that was asked for to a relay: the attempts that `core.policy` asks for.

Owns the attempts for one connection, and the socket of an accepted client, from `Dial.begin` until they are handed
over or the client is refused. Who else may wait for the outcome is `proxy.syn_gate`'s.
Refuses to own the decision (`core.policy`), the route (`proxy.destination`), what connections share
(`proxy.dialer`) and the bytes (`proxy.relay`).
"""

from __future__ import annotations

import errno
import socket
from _socket import socket as RawSocket
from select import EPOLLERR, EPOLLHUP
from typing import TYPE_CHECKING, Final

from tnat64d.core import policy
from tnat64d.core.policy import Action
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.relay import READS, READS_AND_WRITES, reset

if TYPE_CHECKING:
    from tnat64d.proxy.dialer import Dialer

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""This process or the system has no room for a socket."""

# Names of this module's own that are final: members of enums and names of other modules are looked up at each use.
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
        """See Dial. Should this process be killed from now on, the client meets a reset, and no FIN."""
        if not self.over:
            reset(self.client)
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
        if self.client_mask is not None:
            reset(self.client, False)
        self.dialer.relay(self.connection, self.client, self.client_mask, upstream, mask)

    def failed(self) -> None:
        """See Dial."""
        reset(self.client)
        self.dialer.reactor.close(self.client)
