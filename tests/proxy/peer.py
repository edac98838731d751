"""The programs at both ends of a connection, as a test drives them, and what a test knows of this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import select
import socket
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator
from functools import cache

from tnat64d.proxy import relay

PATIENCE_S = 10.0
"""After that, what is awaited will not come."""


class Peer:
    """One end of a TCP connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        """Send all of `data`."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def send_urgent(self, byte: bytes) -> None:
        """Send `byte` as urgent data (tcp(7))."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(BlockingIOError):
                    self.sock.send(byte, socket.MSG_OOB)
                    return
                await asyncio.sleep(0.001)

    async def receive(self, size_bytes: int) -> bytes:
        """Exactly so many bytes, or fewer if the stream ends. Raises ConnectionResetError."""
        parts = []
        async with asyncio.timeout(PATIENCE_S):
            while size_bytes and (
                part := await asyncio.get_running_loop().sock_recv(self.sock, min(size_bytes, 1 << 20))
            ):
                parts.append(part)
                size_bytes -= len(part)
        return b"".join(parts)

    async def receive_all(self) -> bytes:
        """Everything up to the end of the stream. Raises ConnectionResetError."""
        return await self.receive(1 << 40)

    async def reset_error(self) -> int:
        """Wait until the connection is broken: ECONNRESET, or EPIPE where a FIN came before the RST."""

        def wait() -> int:
            poll = select.poll()
            poll.register(self.sock, 0)  # POLLERR and POLLHUP are always reported
            poll.poll(PATIENCE_S * 1000)
            return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

        return await asyncio.to_thread(wait)

    async def fill(self) -> int:
        """Send until nobody takes any more; how many bytes that was."""
        sent_bytes = 0
        quiet = 0
        chunk = bytes(1 << 16)
        while quiet < 30:
            try:
                sent_bytes += self.sock.send(chunk)
                quiet = 0
            except BlockingIOError:
                quiet += 1
                await asyncio.sleep(0.0002)
        return sent_bytes

    def half_close(self) -> None:
        """Send FIN and go on receiving."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        relay.reset(self.sock)
        self.sock.close()

    def close(self) -> None:
        """Close; sends RST instead of FIN if something was not received (RFC 2525, 2.17)."""
        self.sock.close()


def tcp_pair(listening: socket.socket | None = None, sizes_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over loopback, the one that connected first; buffers of `sizes_bytes` if given."""
    with contextlib.ExitStack() as stack:
        if listening is None:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        if sizes_bytes:
            _limit_buffers(listening, sizes_bytes)
        connecting = socket.socket(listening.family)
        if sizes_bytes:
            _limit_buffers(connecting, sizes_bytes)
        connecting.connect(listening.getsockname())
        accepted, _ = listening.accept()
    return connecting, accepted


def _limit_buffers(sock: socket.socket, size_bytes: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size_bytes)


def raw(sock: socket.socket) -> RawSocket:
    """The same socket as the proxy holds its own; `sock` is not usable any more."""
    return RawSocket(sock.family, sock.type, sock.proto, sock.detach())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (what the proxy knows announces itself to nobody)
            await asyncio.sleep(0.001)


@cache
def noise(size_bytes: int, seed: int = 0) -> bytes:
    """Bytes in which a lost, doubled or moved piece shows."""
    return random.Random(seed).randbytes(size_bytes)


def descriptors() -> set[str]:
    """The open file descriptors of this process and their kinds, such as "7 socket"."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of listdir itself
            kind, _, _ = os.readlink(f"/proc/self/fd/{entry}").partition(":")
            found.add(f"{entry} {kind}")
    return found


def pipes() -> int:
    """How many ends of pipes this process has open."""
    return sum(descriptor.endswith(" pipe") for descriptor in descriptors())


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[Callable[[], None]]:
    """This process can open `count` more descriptors, then EMFILE. Yields what gives plenty back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(descriptor.split()[0]) for descriptor in descriptors())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, hard))
    held: list[int] = []

    def release() -> None:
        while held:
            os.close(held.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    try:
        with contextlib.suppress(OSError):  # EMFILE
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(count):
            os.close(held.pop())
        yield release
    finally:
        release()
