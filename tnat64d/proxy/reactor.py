"""One edge-triggered epoll for all data-plane sockets of a worker.

Owns the epoll, who is told about which file descriptor, and the moment at which a socket is closed. Refuses
to own what the sockets carry, and who waits: either an event loop has the epoll as one of its readers (`nest`),
or it waits by it (`proxy.loop`), which saves a system call and a callback for each wake-up.

Why not `loop.add_reader` for each socket: it costs a fifth of the connections per second, and neither uvloop
nor asyncio reports a reset that follows a FIN (libuv issue 3449); epoll does, as EPOLLERR | EPOLLHUP.

Edge-triggered (epoll(7)): a watcher must read until the kernel has no more, or `queue` for the rest. Of the
queue, one a turn goes on, behind all that has news: so what is small waits for one share of a big flow, however
many of these there are. (What comes first after a burst is taken for more of it, and queues.)
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from _socket import socket as RawSocket
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

_log = logging.getLogger(__name__)

EVENTS_PER_TURN = 256
"""A turn's length bounds how long the control plane waits for its share of the loop."""

NEWS_PER_SHARE: Final = 64
"""A share of one who queues takes about as long as so many small exchanges."""


class Watcher(Protocol):
    """Whoever owns a watched socket."""

    def ready(self, mask: int) -> None:
        """The socket has news: `mask` of EPOLL* bits (its state now, not only what changed)."""

    def crashed(self) -> None:
        """`ready` raised what nobody expected: give up everything that belongs to this connection."""


class Waiting(Protocol):
    """Whoever has more to do than others should wait for."""

    def go_on(self) -> None:
        """Its turn has come: do a share, and queue again if there is more."""

    def crashed(self) -> None:
        """See Watcher; of `go_on`."""


class Reactor:
    """Tells watchers about their sockets, a turn of the event loop at a time."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._epoll = select.epoll()
        self._watchers: dict[int, Watcher] = {}
        self._closing: list[RawSocket] = []
        self._late: list[Callable[[], None]] = []
        self._queue: deque[Waiting] = deque()
        self._turn_is_due = False
        self._in_turn = False
        self._interrupted = False
        self._stopped = False
        self._news = 0

    def nest(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let `loop` make the turns, whose selector knows nothing of this epoll."""
        self._loop = loop
        loop.add_reader(self._epoll.fileno(), self.turn, 0.0)

    def run(self, timeout_s: float | None) -> None:
        """Make turns for `timeout_s` (None: for ever), or until `interrupt`."""
        self._interrupted = False
        if timeout_s is None:
            while not self._interrupted:
                self.turn(-1.0)
            return
        deadline = time.monotonic() + timeout_s
        while True:
            self.turn(timeout_s)
            if self._interrupted or (timeout_s := deadline - time.monotonic()) <= 0:
                return

    def interrupt(self) -> None:
        """Let `run` return after this turn: its caller has something to do."""
        self._interrupted = True

    def watch(self, fd: int, mask: int, watcher: Watcher) -> None:
        """Report the events of `mask` on `fd` to `watcher`, beginning with what is true already."""
        self._epoll.register(fd, mask)
        self._watchers[fd] = watcher

    def change(self, fd: int, mask: int) -> None:
        """Report the events of `mask` on `fd` from now on, beginning with what is true already."""
        self._epoll.modify(fd, mask)

    def unwatch(self, fd: int) -> None:
        """Report nothing on `fd` any more; for a socket that stays open."""
        del self._watchers[fd]
        self._epoll.unregister(fd)

    def hand_over(self, fd: int, watcher: Watcher) -> None:
        """From now on `watcher` is told of `fd`; no system call."""
        self._watchers[fd] = watcher

    def close(self, sock: RawSocket) -> None:
        """Close `sock` after this turn, and tell nobody of it any more.

        Closed at once, its number could be taken by a new socket, which would then be given the events that
        this turn still holds for the old one. close(2) also removes it from the epoll.
        """
        self._watchers.pop(sock.fileno(), None)
        if self._in_turn:
            self._closing.append(sock)
        else:
            sock.close()

    def late(self, call: Callable[[], None]) -> None:
        """Call `call` when this turn is over; at once if none is under way."""
        if self._in_turn:
            self._late.append(call)
        else:
            call()

    def queue(self, waiting: Waiting) -> None:
        """Let `waiting` go on when all who queued before it have, one a turn."""
        self._queue.append(waiting)
        if not self._in_turn:
            self._make_a_turn_due()

    def load(self) -> int:
        """How much this turn does, in watchers that have news."""
        return self._news + (NEWS_PER_SHARE if self._queue else 0)

    def unnest(self) -> None:
        """Watch nothing any more, if an event loop made the turns; nothing if it waits by this very epoll."""
        if self._loop is not None:
            self.stop()

    def stop(self) -> None:
        """Watch nothing any more."""
        if not self._stopped:
            self._stopped = True
            if self._loop is not None:
                # uvloop's returns None, which compiled code does not take for the promised bool.
                forget: Callable[[int], object] = self._loop.remove_reader
                forget(self._epoll.fileno())
            self._epoll.close()

    def turn(self, timeout_s: float) -> None:
        """Tell what has happened, or wait `timeout_s` (negative: for ever) for it to happen."""
        if self._stopped:
            return
        if self._queue:
            timeout_s = 0.0
        watchers = self._watchers
        self._in_turn = True
        events = self._epoll.poll(timeout_s, EVENTS_PER_TURN)
        self._news = len(events)
        for fd, mask in events:
            watcher = watchers.get(fd)
            if watcher is not None:
                try:
                    watcher.ready(mask)
                except Exception:
                    self._give_up(watcher)
        if self._queue:
            self._serve_first()
        self._in_turn = False
        if self._late:
            late, self._late = self._late, []
            for call in late:
                try:
                    call()
                except Exception:
                    _log.exception("what was to be done late was not, because of a bug")
        if self._closing:
            for sock in self._closing:
                sock.close()
            self._closing.clear()

    def _serve_first(self) -> None:
        waiting = self._queue.popleft()
        try:
            waiting.go_on()
        except Exception:
            self._give_up(waiting)
        if self._queue:
            self._make_a_turn_due()

    def _make_a_turn_due(self) -> None:
        if self._loop is not None and not self._turn_is_due:
            self._turn_is_due = True
            self._loop.call_soon(self._due_turn)

    def _due_turn(self) -> None:
        self._turn_is_due = False
        self.turn(0.0)

    @staticmethod
    def _give_up(who: Watcher | Waiting) -> None:
        """The connection's boundary: a bug in one must not end the others."""
        _log.exception("a connection was given up because of a bug")
        try:
            who.crashed()
        except Exception:
            _log.exception("a connection could not even be given up")
