"""The bytes between two connected sockets, until both sides have finished.

Owns both sockets from `Relay(...)` to `Reactor.close`. Refuses to own how they came to be, and the log line.

Theory of operation
-------------------
A relay has two ends; each `End` is also the direction that begins at it and leads to its `peer`.

    copying    recv(2) into a fresh buffer, send(2) at once. What the peer does not take stays in `unsent`, and
               reading stops until the peer is writable again: back-pressure is the kernel's.
    splicing   a direction that filled its buffer FULL_READS times in a row goes through a pipe, splice(2) in
               and out, until a piece is small again. The pipe goes back to the pool whenever it is empty.
               It moves a share at a time, when the reactor's queue has come to it: what is small goes before.
    finished   the source sent FIN and all of it was passed on; the peer was shut down for writing, or, as the
               second direction to finish, both sockets are closed.

A reset or an error on either end ends the relay: what had arrived before it is passed on as far as the other end
takes it at once, then that end is reset too (SO_LINGER 0), and nothing that is still under way is waited for, as
between two hosts without a proxy.

A read that returns less than it could has drained the socket (epoll(7), "Questions and answers" 9), and if the
FIN was reported before that read, it was the last. So the usual connection never asks for EAGAIN or for an end
of file, and its last bytes wait for the FIN, to leave in one segment with it (MSG_MORE, send(2)). Urgent data
breaks this rule, for reads end at the mark (tcp(7)): such a direction reads to EAGAIN, gets the urgent byte in
line, and never splices, since splice(2) does not pass a mark. A read at the mark loses the byte unless
SO_OOBINLINE is set. The listener sets it for clients; for an upstream socket it is set before the first read
that no event of the socket led to, since only an event tells of the mark in time.
"""

from __future__ import annotations

import os
import socket
import struct
from _socket import socket as RawSocket
from collections.abc import Callable
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from typing import Final

from tnat64d.proxy.pipes import PIPE_SIZE_BYTES, Pipe, PipePool
from tnat64d.proxy.reactor import Reactor

READ_SIZE_BYTES: Final = 64 * 1024
FULL_READS = 2
SPLICE_WORTH_BYTES: Final = 16 * 1024
"""A piece smaller than this is cheaper to copy than to pass through a pipe."""

SHARE_BYTES = 512 * 1024
"""What a direction may pass on before it queues, and others have their turn. What the pipe holds beyond
that goes, too."""

READS: Final = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET
READS_AND_WRITES: Final = READS | EPOLLOUT

# Names of this module's own that are final: mypyc looks up any other at each use.
_IN: Final = EPOLLIN
_OUT: Final = EPOLLOUT
_ERR: Final = EPOLLERR
_PRI: Final = EPOLLPRI
_HUP: Final = EPOLLRDHUP | EPOLLHUP
_SHUT_WR: Final = socket.SHUT_WR
_ARRIVED: Final = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLPRI  # EPOLLPRI alone: an urgent byte and nothing else
_RARE: Final = EPOLLERR | EPOLLPRI | EPOLLRDHUP | EPOLLHUP
_DONTWAIT: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_FIN_FOLLOWS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL | socket.MSG_MORE)
_SPLICE: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


def reset(sock: RawSocket, by_reset: bool = True) -> None:
    """Make closing `sock` send RST instead of FIN (socket(7), SO_LINGER with a zero timeout), or FIN again."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", by_reset, 0))
    except OSError:
        pass  # the connection is gone already


class End:
    """One socket of a relay, and the direction from it to its peer."""

    __slots__ = (
        "closed",
        "fd",
        "finished",
        "fin_reported",
        "full_reads",
        "may_delay",
        "passed_bytes",
        "peer",
        "pipe",
        "queued",
        "relay",
        "sock",
        "unsent",
        "urgent",
        "watched",
    )

    __deletable__ = ("peer", "relay")  # for mypyc

    peer: End

    def __init__(self, relay: Relay, sock: RawSocket) -> None:
        self.relay = relay
        self.closed = False
        self.sock = sock
        self.fd = sock.fileno()
        self.watched = 0
        self.unsent: bytes | None = None
        self.pipe: Pipe | None = None
        self.full_reads = 0
        self.passed_bytes = 0
        self.may_delay = False
        self.fin_reported = False
        self.finished = False
        self.urgent = False
        self.queued = False

    def ready(self, mask: int) -> None:
        """See `reactor.Watcher`."""
        if self.closed:
            return
        if mask & _RARE:
            if mask & _ERR:
                self._pass_on_last_words()
                self.relay.abort()
                return
            if mask & _PRI and not self.urgent:
                self._expect_marks()
            if mask & _HUP:
                self.fin_reported = True
        if mask & _ARRIVED and not self.finished and self.pipe is None:
            self.pump()  # with a pipe in hand only the peer's EPOLLOUT helps
        if mask & _OUT and not self.closed:
            peer = self.peer
            if peer.unsent is not None or peer.pipe is not None:
                peer.pump()

    def crashed(self) -> None:
        """See `reactor.Watcher`."""
        if not self.closed:
            self.relay.abort()

    def pump(self) -> None:
        """Pass on what has arrived here, as far as the peer takes it; a big flow queues for that."""
        if self.queued:
            return
        if self.pipe is None and self.full_reads < FULL_READS:
            self._pass_on()
        else:
            self._queue()

    def go_on(self) -> None:
        """See `reactor.Waiting`."""
        self.queued = False
        if not self.closed and not self.finished:
            self._pass_on()

    def _queue(self) -> None:
        if not self.queued:
            self.queued = True
            self.relay.reactor.queue(self)

    def _pass_on(self) -> None:
        try:
            drained = self._copy_or_splice()
        except OSError:
            self.peer._pass_on_last_words()  # it may be its reset, of which no event has told yet
            self.relay.abort()
            return
        if drained:
            self.relay.finish(self)

    def _pass_on_last_words(self) -> None:
        """Pass on what arrived before the reset: recv(2) and splice(2) give it out first, then the error."""
        self.fin_reported = False  # it ends with a reset, which would overtake what waits for a FIN
        before_bytes = -1
        try:
            while not self.finished and before_bytes != self.passed_bytes:
                before_bytes = self.passed_bytes
                self._copy_or_splice()
        except OSError:
            pass  # the reset itself; the relay ends anyway

    def _copy_or_splice(self) -> bool:
        """Pass on a share; True if nothing more will ever come."""
        if self.unsent is not None and not self._send(self.unsent):
            return False
        if self.pipe is None and self.full_reads < FULL_READS:
            return self._copy()
        return self._splice()

    def _copy(self) -> bool:
        """Copy a share, or until there is nothing more for now; True if nothing more will ever come."""
        for _ in range(SHARE_BYTES // READ_SIZE_BYTES):
            try:
                data = self.sock.recv(READ_SIZE_BYTES, _DONTWAIT)
            except BlockingIOError:
                return False
            size_bytes = len(data)
            if not size_bytes:
                return True
            if self.may_delay and self.passed_bytes:
                self._send_without_delay()
            is_last = self.fin_reported and size_bytes < READ_SIZE_BYTES and not self.urgent
            if not self._send(data, _FIN_FOLLOWS if is_last else _DONTWAIT):
                return False
            if size_bytes < READ_SIZE_BYTES:
                self.full_reads = 0
                if not self.urgent:
                    return is_last
            elif not self.urgent:
                self.full_reads += 1
                if self.full_reads == 1:
                    self._take_urgent_data_in_line()
                    self._send_without_delay()
                if self.full_reads >= FULL_READS:
                    break
        self._queue()
        return False

    def _send_without_delay(self) -> None:
        """A first small segment is never held back (RFC 896: nothing is unacknowledged), the next may be. So
        only a connection with more than one thing to say pays for the option."""
        self.may_delay = False
        try:
            self.peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # the connection is gone already, and the next call on it says so

    def _send(self, data: bytes, flags: int = _DONTWAIT) -> bool:
        """Send `data` to the peer; False if some of it is left in `unsent`."""
        peer = self.peer
        try:
            sent_bytes = peer.sock.send(data, flags)
        except BlockingIOError:
            sent_bytes = 0
        self.passed_bytes += sent_bytes
        if sent_bytes == len(data):
            self.unsent = None
            return True
        self.unsent = data[sent_bytes:] if sent_bytes else data
        self._take_urgent_data_in_line()
        peer.watch_for_writing()
        return False

    def _splice(self) -> bool:
        """Splice a share, or until there is nothing more for now; True if nothing more will ever come."""
        pipe = self.pipe or self._take_pipe()
        if pipe is None:
            self.full_reads = 0
            return self._copy()
        share_ends, is_big = self.passed_bytes + SHARE_BYTES, True
        while self._empty(pipe):
            if self.urgent or not is_big:
                self._return_pipe()
                return self._copy()
            if self.passed_bytes >= share_ends:
                self._return_pipe()
                self._queue()
                return False
            try:
                pipe.held_bytes = os.splice(self.fd, pipe.write_fd, PIPE_SIZE_BYTES, flags=_SPLICE)
            except BlockingIOError:
                self._return_pipe()
                return False
            if not pipe.held_bytes:
                # The end of the stream, or a mark that the FIN has overtaken (net/ipv4/tcp.c,
                # tcp_splice_read); recv(2) tells.
                self._expect_marks()
            elif pipe.held_bytes < SPLICE_WORTH_BYTES:
                self.full_reads, is_big = 0, False
        return False

    def _empty(self, pipe: Pipe) -> bool:
        """Pass on what `pipe` holds; False if the peer does not take all of it now."""
        while pipe.held_bytes:
            try:
                passed_bytes = os.splice(pipe.read_fd, self.peer.fd, pipe.held_bytes, flags=_SPLICE)
            except BlockingIOError:
                self.peer.watch_for_writing()
                return False
            pipe.held_bytes -= passed_bytes
            self.passed_bytes += passed_bytes
        return True

    def _take_pipe(self) -> Pipe | None:
        # splice(2) looks at the file's O_NONBLOCK, not only at its own flag (net/ipv4/tcp.c, tcp_splice_read).
        os.set_blocking(self.fd, False)
        os.set_blocking(self.peer.fd, False)
        self.pipe = self.relay.pipes.take()
        return self.pipe

    def _return_pipe(self) -> None:
        if self.pipe is not None:
            self.relay.pipes.give_back(self.pipe)
            self.pipe = None

    def _expect_marks(self) -> None:
        """From now on a short read does not mean that the socket is empty."""
        self.urgent = True
        self.full_reads = 0
        self._take_urgent_data_in_line()

    def _take_urgent_data_in_line(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    def watch_for_writing(self) -> None:
        """Be told when this socket takes bytes again; costs a system call only the first time."""
        if not self.watched & _OUT:
            self.watched = READS_AND_WRITES
            self.relay.reactor.change(self.fd, READS_AND_WRITES)

    def close(self) -> None:
        """Let go of the pipe, the socket, and all that knows this end: no reference cycle is left, so that a
        connection costs the garbage collector nothing."""
        self.closed = True
        self._return_pipe()
        self.relay.reactor.close(self.sock)
        del self.relay, self.peer


class Relay:
    """Two ends and their life together. `closed_by_reset`: it did not end with both FINs."""

    __slots__ = ("client", "closed", "closed_by_reset", "ended", "pipes", "reactor", "upstream")

    def __init__(
        self,
        reactor: Reactor,
        pipes: PipePool,
        client: RawSocket,
        upstream: RawSocket,
        ended: Callable[[Relay], None],
    ) -> None:
        """`ended` is called once, after both sockets were given up."""
        self.reactor = reactor
        self.pipes = pipes
        self.ended = ended
        self.closed = False
        self.closed_by_reset = False
        self.client = End(self, client)
        self.upstream = End(self, upstream)
        self.client.peer = self.upstream
        self.upstream.peer = self.client
        self.client.may_delay = True  # what comes from upstream does not: clients inherit it from the listener

    def start(self, client_mask: int | None, upstream_mask: int) -> None:
        """Begin. `upstream_mask`: what was reported of the upstream socket, which is watched for
        READS_AND_WRITES already; `client_mask`: the same for the client, None if it is not watched yet.
        """
        reactor, client, upstream = self.reactor, self.client, self.upstream
        upstream.watched = READS_AND_WRITES
        reactor.hand_over(upstream.fd, upstream)
        client.watched = READS
        if client_mask is not None:
            reactor.hand_over(client.fd, client)
            client.ready(client_mask | _IN)
        else:
            # Read before watching: what is there already then needs no event of its own.
            client.pump()
            if not self.closed:
                reactor.watch(client.fd, client.watched, client)
        if upstream_mask & ~_OUT:
            upstream.ready(upstream_mask)

    def finish(self, end: End) -> None:
        """The direction from `end` is complete: pass the FIN on."""
        end.finished = True
        peer = end.peer
        if peer.finished:
            self._close()
        else:
            try:
                peer.sock.shutdown(_SHUT_WR)
            except OSError:
                self.abort()

    def abort(self) -> None:
        """End both sides with a reset."""
        if not self.closed:
            self.closed_by_reset = True
            reset(self.client.sock)
            reset(self.upstream.sock)
            self._close()

    def _close(self) -> None:
        self.closed = True
        self.client.close()
        self.upstream.close()
        self.ended(self)
