"""Honest connects: a SYN waits while its destination is dialled, and then meets what the dial met.

Owns the SYNs that are held, and connected upstreams until the connection they were dialled for is accepted.
Refuses to own the dialling (`proxy.dial`), its order (`core.policy`) and the rules that bring SYNs here.

    the dial        the SYN                     the program's connect()
    connected       goes on, to the listener    succeeds; the accepted client is given the upstream
    refused         dropped, reset sent         ECONNREFUSED
    unreachable     dropped, ICMP error sent    ENETUNREACH or EHOSTUNREACH
    silent          dropped                     waits on; its next SYN is dialled anew, as it would be sent anew
    given up        dropped                     (it has ended: see `HeldDial.settle`)
    not dialled     goes on, to the listener    succeeds, and is plain: for want of a descriptor
                    dropped                     waits on, likewise: for want of a source port

One dial for a connection: a SYN that comes again takes the place of the one that is held, which the kernel may
have dropped (it empties its queues when anybody takes rules away: nf_queue_nf_hook_drop in
net/netfilter/nf_queue.c). Another sequence number means another connection from the same port (RFC 9293, 3.4.1),
and the dial for the first ends. What is no bare SYN, what leads nowhere, and what comes when too many are held
or while accepting rests goes on at once, and is plain.
"""

from __future__ import annotations

import asyncio
import errno
from _socket import socket as RawSocket
from select import EPOLLIN
from typing import Final

from tnat64d.core import policy
from tnat64d.core.marks import Mark
from tnat64d.kernel.nfqueue import Syn, SynQueue
from tnat64d.kernel.original_dst import Destination
from tnat64d.kernel.refusals import Refusal, Refuser
from tnat64d.kernel.sock_diag import SocketTable
from tnat64d.proxy.connection import Connection, Observer
from tnat64d.proxy.deadlines import Deadlines
from tnat64d.proxy.destination import Destinations, Target
from tnat64d.proxy.dial import EXHAUSTED, Dial
from tnat64d.proxy.dialer import Dialer
from tnat64d.proxy.reactor import Reactor
from tnat64d.proxy.sources import SourceLimit

MAX_HELD: Final = 4096
"""SYNs that one worker holds."""

QUEUE_ROOM: Final = 2 * MAX_HELD
"""What one queue takes beyond its reader."""

HANDSHAKE_S = 10.0
"""How long a connected upstream waits for its client to be accepted: SYN-ACKs are sent again after 1, 3, 7 s."""

SILENCE_S: Final = 4.0
"""A client behind a gateway sends its SYN again after 1 s, older systems after 3 s (RFC 6298), then after twice as
long each time."""

RESENT_AFTER_S: Final = 0.5
"""No SYN comes again before that: hosts wait for 1 s (RFC 6298, 2.1)."""

_NO_ANSWER: Final = frozenset({errno.ETIMEDOUT, errno.EADDRNOTAVAIL})
"""Of the destination: silence, and this host's own want of a source port."""

_Key = tuple[Destination, Destination]


class HeldDial(Dial):
    """Who waits is a program in connect(), whose SYN is held."""

    __slots__ = ("gate", "key", "seen_at", "syn")

    def __init__(self, gate: SynGate, dialer: Dialer, connection: Connection, syn: Syn, key: _Key) -> None:
        super().__init__(dialer, connection)
        self.gate = gate
        self.syn = syn
        self.key = key
        self.seen_at = connection.since

    def settle(self) -> None:
        """See Dial."""
        if not self.over:
            if self.gate.is_wanted(self):
                self.dialer.settle_later(self)
            else:
                self.give_up()

    def give_up(self) -> None:
        """Nobody waits any more."""
        self.connection.client_gone = True
        self.refuse()

    def connected(self, upstream: RawSocket, mask: int) -> None:
        """See Dial."""
        self.gate.let_go(self, upstream, mask)

    def failed(self) -> None:
        """See Dial."""
        self.gate.refuse(self)


class Upstream:
    """A connected socket that waits for its client; remembers what is reported of it meanwhile."""

    __slots__ = ("connection", "gate", "mask", "pair", "sequence", "sock")

    def __init__(self, gate: SynGate, dial: HeldDial, sock: RawSocket, mask: int) -> None:
        self.gate = gate
        self.pair = (dial.syn.client[0], dial.syn.destination)
        self.connection = dial.connection
        self.sequence = dial.syn.sequence
        self.sock = sock
        self.mask = mask

    def ready(self, mask: int) -> None:
        """See `reactor.Watcher`."""
        self.mask |= mask

    def crashed(self) -> None:
        """See `reactor.Watcher`."""


class SynGate:
    """A `reactor.Watcher` of the queues (level-triggered: what is left over is reported again)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        queue: SynQueue,
        refuser: Refuser,
        sockets: SocketTable,
        destinations: Destinations,
        dialer: Dialer,
        observer: Observer,
        max_held: int,
        max_connections: int,
        sources: SourceLimit | None = None,
        mark: Mark | None = None,
    ) -> None:
        """`queue`, `refuser` and `sockets` are the gate's from now on.

        `mark`: leads those for whom it has dialled to the listener of the same worker (`kernel.reuseport`).
        """
        self._loop = loop
        self._reactor = reactor
        self._queue = queue
        self._refuser = refuser
        self._sockets = sockets
        self._destinations = destinations
        self._dialer = dialer
        self._observer = observer
        self._max_held = max_held
        self._max_connections = max_connections
        self._sources = sources
        self._mark = mark
        self._held: dict[_Key, HeldDial] = {}
        # By client's address and destination, then by client's port: NAT may give the client another port on the
        # way from here to the listener, where that port leads to the listener already.
        self._waiting: dict[tuple[str, Destination], dict[int, Upstream]] = {}
        self._waiting_count = 0
        self._resting = False
        self._turns_away = False
        self._stopped = False
        self._sends_soon = False
        self._handshakes = Deadlines[Upstream](loop, HANDSHAKE_S, self._close)

    def start(self) -> None:
        """Hold SYNs from now on."""
        self._reactor.watch(self._queue.fileno(), EPOLLIN, self)

    def turn_away(self) -> None:
        """Refuse those that are held, and from now on all that come."""
        self._turns_away = True
        for dial in tuple(self._held.values()):
            dial.refuse()
        for upstreams in tuple(self._waiting.values()):
            for upstream in tuple(upstreams.values()):
                self._close(upstream)

    def stop(self) -> None:
        """Refuse those that are held; hold none any more, and give back everything. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self.turn_away()
        self._reactor.unwatch(self._queue.fileno())
        self._handshakes.cancel()
        self._queue.close()
        self._refuser.close()
        self._sockets.close()

    def limit(self, max_connections: int) -> None:
        """Let so many connections be, those that wait among them."""
        self._max_connections = max_connections

    def rest(self, resting: bool) -> None:
        """Hold none while `resting`: there is nothing to dial with, and the listener accepts nothing."""
        self._resting = resting

    def ready(self, mask: int) -> None:
        """See `reactor.Watcher`."""
        for syn in self._queue.read():
            self._receive(syn)
        if self._queue.missed_count:
            self._observer.not_held(self._queue.missed_count)
            self._queue.missed_count = 0
        self._send_soon()  # also for what passed unread

    def crashed(self) -> None:
        """See `reactor.Watcher`."""

    def hand_over(self, client: RawSocket, address: Destination, target: Target) -> bool:
        """Relay between the accepted `client` and the upstream that was dialled for it; False if there is none.

        Its source was admitted when its SYN was held.
        """
        upstream = self._upstream_for(address, target)
        if upstream is not None and self._loop.time() - upstream.connection.since > RESENT_AFTER_S:
            # Its SYN may have come again before the handshake was over: it is read while its upstream is known.
            self.ready(EPOLLIN)
            upstream = self._upstream_for(address, target)
        if upstream is None:
            return False
        self._forget(upstream)
        self._observer.accepted()
        self._dialer.relay(upstream.connection, client, None, upstream.sock, upstream.mask)
        return True

    def is_wanted(self, dial: HeldDial) -> bool:
        """Whether somebody still waits for `dial`."""
        syn = dial.syn
        if not syn.in_device:
            return self._sockets.is_connecting(syn.client, syn.destination, syn.out_device)
        silence_s = max(SILENCE_S, 2 * (dial.seen_at - dial.connection.since) + 1)
        return self._loop.time() - dial.seen_at < silence_s

    def let_go(self, dial: HeldDial, sock: RawSocket, mask: int) -> None:
        """`dial` has connected `sock`."""
        syn = dial.syn
        del self._held[dial.key]
        upstream = Upstream(self, dial, sock, mask)
        upstreams = self._waiting.get(upstream.pair)
        if upstreams is None:
            upstreams = self._waiting[upstream.pair] = {}
        upstreams[syn.client[1]] = upstream
        self._waiting_count += 1
        self._reactor.hand_over(sock.fileno(), upstream)
        self._handshakes.start(upstream)
        self._accept(syn, self._mark)
        self._observer.answered()

    def refuse(self, dial: HeldDial) -> None:
        """`dial` has failed."""
        syn, connection = dial.syn, dial.connection
        del self._held[dial.key]
        code = errno.ECONNREFUSED  # this daemon's own answer, if it ended the dial
        if dial.phase is policy.Phase.DONE:
            code = policy.outcome(connection.ipv4_error, connection.nat64_error)
        if code in EXHAUSTED and not connection.client_gone:
            self._accept(syn)
            return
        self._drop(syn)
        if not connection.client_gone and code not in _NO_ANSWER:
            self._refuser.send(syn, Refusal.of(code))

    def _receive(self, syn: Syn) -> None:
        key = (syn.client, syn.destination)
        if not syn.is_bare or key in self._dialer.own_connections:  # the latter is for the listener to reset
            self._accept(syn)
            return
        held = self._held.get(key)
        if held is not None:
            if held.syn.sequence == syn.sequence:
                held.seen_at = self._loop.time()
                self._drop(held.syn)
                held.syn = syn
                return
            held.give_up()
        elif self._is_answered(syn):
            self._accept(syn, self._mark)
            return
        target = self._destinations.resolve(syn.destination)
        if target is None:
            self._accept(syn)
        elif self._turns_away:
            self._reset(syn)
        elif self._is_full():
            self._observer.not_held(1)
            self._accept(syn)
        elif self._is_admitted(syn):
            self._hold(syn, target, key)
        else:
            self._observer.over_limit(syn.client)
            self._reset(syn)

    def _accept(self, syn: Syn, mark: Mark | None = None) -> None:
        self._queue.accept(syn, mark)
        self._send_soon()

    def _drop(self, syn: Syn) -> None:
        self._queue.drop(syn)
        self._send_soon()

    def _send_soon(self) -> None:
        """All verdicts of a turn go together: who waits in connect() is woken once for several."""
        if not self._sends_soon:
            self._sends_soon = True
            self._reactor.late(self._send_verdicts)

    def _send_verdicts(self) -> None:
        self._sends_soon = False
        self._queue.send()

    def _reset(self, syn: Syn) -> None:
        self._drop(syn)
        self._refuser.send(syn, Refusal.RESET)

    def _is_admitted(self, syn: Syn) -> bool:
        """Before the dial: a SYN costs its sender nothing. The host's own programs have no limit."""
        return not syn.in_device or self._sources is None or self._sources.admit(syn.client[0])

    def _is_full(self) -> bool:
        return (
            self._resting
            or len(self._held) >= self._max_held
            or self._dialer.active + self._waiting_count >= self._max_connections
        )

    def _hold(self, syn: Syn, target: Target, key: _Key) -> None:
        connection = Connection(syn.client, target, self._loop.time())
        connection.admitted = bool(syn.in_device)
        dial = HeldDial(self, self._dialer, connection, syn, key)
        self._held[key] = dial
        self._observer.held()
        self._dialer.run(dial)

    def _is_answered(self, syn: Syn) -> bool:
        """Whether its upstream waits already: the handshake has lost a packet. Of an older one nothing is left."""
        upstreams = self._waiting.get((syn.client[0], syn.destination))
        upstream = None if upstreams is None else upstreams.get(syn.client[1])
        if upstream is None:
            return False
        if upstream.sequence == syn.sequence:
            return True
        self._close(upstream)
        return False

    def _upstream_for(self, address: Destination, target: Target) -> Upstream | None:
        """The one for that port, or where NAT has changed it, the one that has waited longest: they lead to the
        same server."""
        upstreams = self._waiting.get((address[0], target.destination))
        if upstreams is None:
            return None
        return upstreams.get(address[1]) or next(iter(upstreams.values()))

    def _close(self, upstream: Upstream) -> None:
        """Its client has not come."""
        self._forget(upstream)
        self._dialer.forget_source(upstream.connection)
        self._reactor.close(upstream.sock)
        self._observer.unclaimed(upstream.connection)

    def _forget(self, upstream: Upstream) -> None:
        upstreams = self._waiting[upstream.pair]
        del upstreams[upstream.connection.client[1]]
        if not upstreams:
            del self._waiting[upstream.pair]
        self._waiting_count -= 1
        self._handshakes.stop(upstream)
