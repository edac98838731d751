"""Accepts captured connections and asks where each was meant to go.

Owns the listening socket's place in the reactor, the limit on connections, and the pause when descriptors run
out. Refuses to own a connection: whatever is captured goes to the dialer, anything else is reset at once, and so
is what `proxy.sources` does not admit.
"""

from __future__ import annotations

import asyncio
import socket
from _socket import socket as RawSocket
from select import EPOLLIN
from typing import Final

from tnat64d.kernel.original_dst import DestinationOf
from tnat64d.proxy.connection import Connection, Observer
from tnat64d.proxy.destination import Destinations
from tnat64d.proxy.dial import EXHAUSTED
from tnat64d.proxy.dialer import Dialer
from tnat64d.proxy.reactor import Reactor
from tnat64d.proxy.relay import reset
from tnat64d.proxy.sources import SourceLimit
from tnat64d.proxy.syn_gate import SynGate

_AF_INET: Final = int(socket.AF_INET)
_STREAM: Final = int(socket.SOCK_STREAM)
_TCP: Final = int(socket.IPPROTO_TCP)

FEWEST_ACCEPTS: Final = 2
NEWS_PER_ACCEPT: Final = 8
"""A turn accepts in proportion to what else it does: a crowd in the backlog, each of which costs as much as
several small exchanges, does not make those wait who were let in before, nor they the crowd. Of its own
connections each has news about five times, so that a crowd alone does not add to itself."""

EVERYBODY: Final = 1 << 20
PAUSE_S = 1.0
"""How long accepting rests when the kernel has no descriptors left; connections wait in the backlog."""


class Listener:
    """A `reactor.Watcher` of the listening socket (level-triggered: what is left over is reported again)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        listening: socket.socket,
        destination_of: DestinationOf,
        destinations: Destinations,
        dialer: Dialer,
        observer: Observer,
        max_connections: int,
        sources: SourceLimit | None = None,
        gate: SynGate | None = None,
    ) -> None:
        """`gate`: what may have dialled already for a connection that is accepted."""
        self._loop = loop
        self._reactor = reactor
        self._listening = listening
        self._destination_of = destination_of
        self._destinations = destinations
        self._dialer = dialer
        self._observer = observer
        self._max_connections = max_connections
        self._sources = sources
        self._gate = gate
        self._resume_timer: asyncio.TimerHandle | None = None
        self._watched = False
        self._stopped = False
        # Clients inherit it (net/core/sock.c, sk_clone_lock); `proxy.relay` says why.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    def start(self) -> None:
        """Accept from now on."""
        if not self._watched and not self._stopped:
            self._watched = True
            self._reactor.watch(self._listening.fileno(), EPOLLIN, self)

    def stop(self) -> None:
        """Accept what has connected already, then nothing any more."""
        if self._resume_timer is None:
            self._accept(EVERYBODY)
        self._stopped = True
        if self._resume_timer is not None:
            self._resume_timer.cancel()
        self._unwatch()

    def limit(self, max_connections: int) -> None:
        """Accept while there are fewer connections than that; those above it stay."""
        self._max_connections = max_connections
        self.connection_ended()

    def pause(self) -> None:
        """Rest for a while, and the gate with it: descriptors have run out."""
        self._unwatch()
        self._let_gate_rest(True)
        if self._resume_timer is None and not self._stopped:
            self._resume_timer = self._loop.call_later(PAUSE_S, self._resume)

    def connection_ended(self) -> None:
        """There is room again."""
        if not self._watched and self._resume_timer is None:
            self.start()

    def ready(self, mask: int) -> None:
        """See `reactor.Watcher`."""
        self._accept(max(FEWEST_ACCEPTS, self._reactor.load() // NEWS_PER_ACCEPT))

    def crashed(self) -> None:
        """See `reactor.Watcher`."""

    def _accept(self, most: int) -> None:
        accept = self._listening._accept  # type: ignore[attr-defined]  # a descriptor, not a socket object
        for _ in range(most):
            if self._dialer.active >= self._max_connections:
                self._unwatch()
                return
            try:
                fd, client = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._observer.exhausted()
                    self.pause()
                    return
                continue  # accept(2): errors of the connection that was to be accepted
            self._welcome(RawSocket(_AF_INET, _STREAM, _TCP, fd), client)
            if self._resume_timer is not None:
                return  # there was no descriptor left to dial with

    def _welcome(self, client: RawSocket, address: tuple[str, int]) -> None:
        try:
            destination = self._destination_of(client)
            target = None if destination is None else self._destinations.resolve(destination)
        except Exception:  # a bug, which the reactor reports; the client must not take it for an end (FIN)
            reset(client)
            client.close()
            raise
        if target is None:
            reset(client)
            client.close()
            self._observer.not_captured(address)
            return
        if (address, target.destination) in self._dialer.own_connections:
            reset(client)
            client.close()
            self._observer.came_back(target)
            return
        if self._gate is not None and self._gate.hand_over(client, address, target):
            return
        if self._sources is not None and not self._sources.admit(address[0]):
            reset(client)
            client.close()
            self._observer.over_limit(address)
            return
        self._observer.accepted()
        connection = Connection(address, target, self._loop.time())
        connection.admitted = True
        self._dialer.begin(client, connection)

    def _resume(self) -> None:
        self._resume_timer = None
        self._let_gate_rest(False)
        self.start()

    def _let_gate_rest(self, resting: bool) -> None:
        if self._gate is not None:
            self._gate.rest(resting)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._reactor.unwatch(self._listening.fileno())
