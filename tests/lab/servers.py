"""The servers behind the NAT64, one process, one port each. Run: `servers.py DIRECTORY`; prints `ready`.

    HTTP        the files in DIRECTORY
    ECHO        sends back what comes, until the client's end of stream, then ends too
    BANNER      speaks first (as SMTP and SSH do), then is an ECHO
    SINK        reads to the end of stream, then answers `BYTES SHA256\\n`
    SOURCE      reads `BYTES\\n`, sends so many bytes and then the 64 hex digits of their SHA-256
    HALF_CLOSE  answers only after the client's end of stream: all that came, once more
    RESET       reads `BYTES\\n`, sends so many bytes, waits until they are acknowledged, and resets
    REFUSED     nothing listens here

All listen on `::` for both families, so that they serve an IPv4 host and an ideal NAT64 alike. Standard library
only and importable: the ports are constants for the tests.
"""

from __future__ import annotations

import enum
import fcntl
import functools
import hashlib
import http.server
import random
import socket
import socketserver
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

INDEX_PAGE = b"hello from the IPv4 server\n"
BANNER = b"220 server.example ESMTP\r\n"
CHUNK_BYTES = 1 << 16
_DATA_BYTES = (1 << 20) + 7  # a prime number: no power of two divides it, so a lost or doubled buffer shows


class Port(enum.IntEnum):
    """Where each server listens."""

    ECHO = 7
    SINK = 9
    SOURCE = 19
    BANNER = 25
    HTTP = 80
    HALF_CLOSE = 1001
    RESET = 1002
    REFUSED = 1003


def echo(connection: socket.socket) -> None:
    """Send back what comes."""
    while chunk := connection.recv(CHUNK_BYTES):
        connection.sendall(chunk)


def banner(connection: socket.socket) -> None:
    """Greet, then echo."""
    connection.sendall(BANNER)
    echo(connection)


def sink(connection: socket.socket) -> None:
    """Count and hash what comes."""
    size_bytes, digest = 0, hashlib.sha256()
    while chunk := connection.recv(CHUNK_BYTES):
        size_bytes += len(chunk)
        digest.update(chunk)
    connection.sendall(f"{size_bytes} {digest.hexdigest()}\n".encode())


def source(connection: socket.socket) -> None:
    """Send as much as asked for, and its hash."""
    left_bytes, digest = int(read_line(connection)), hashlib.sha256()
    while left_bytes:
        chunk = _data()[:left_bytes]
        connection.sendall(chunk)
        digest.update(chunk)
        left_bytes -= len(chunk)
    connection.sendall(digest.hexdigest().encode())


def half_close(connection: socket.socket) -> None:
    """Answer after the end."""
    chunks = []
    while chunk := connection.recv(CHUNK_BYTES):
        chunks.append(chunk)
    connection.sendall(b"".join(chunks))


def reset(connection: socket.socket) -> None:
    """Send as much as asked for, and reset."""
    connection.sendall(_data()[: int(read_line(connection))])
    while _unacknowledged_bytes(connection):  # a reset discards what is still queued
        time.sleep(0.001)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()  # here: socketserver would end the stream in order first


def read_line(connection: socket.socket) -> bytes:
    """The first line, without its end; b"" when the stream ends first. Nothing after it may have been sent."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            return b""
        line += byte
    return line.rstrip(b"\r\n")


@functools.cache
def _data() -> bytes:
    return random.Random(6464).randbytes(_DATA_BYTES)


def _unacknowledged_bytes(connection: socket.socket) -> int:
    """SIOCOUTQ of tcp(7)."""
    answer = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
    count: int = struct.unpack("i", answer)[0]
    return count


class _DualStackServer(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    request_queue_size = 4096
    allow_reuse_address = True
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event worth a traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _HttpServer(_DualStackServer, http.server.HTTPServer):
    def server_bind(self) -> None:
        _DualStackServer.server_bind(self)  # without HTTPServer's look-up of the host's own name


SERVERS: dict[Port, Callable[[socket.socket], None]] = {
    Port.ECHO: echo,
    Port.SINK: sink,
    Port.SOURCE: source,
    Port.BANNER: banner,
    Port.HALF_CLOSE: half_close,
    Port.RESET: reset,
}


def main(directory: str) -> None:
    """Serve until killed."""
    _data()  # made before anyone is told that the servers are ready
    files = functools.partial(http.server.SimpleHTTPRequestHandler, directory=directory)
    listening: list[socketserver.BaseServer] = [_HttpServer(("::", Port.HTTP), files)]
    for port, serve in SERVERS.items():
        listening.append(_DualStackServer(("::", port), _handler(serve)))
    for server in listening:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


def _handler(serve: Callable[[socket.socket], None]) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            serve(self.request)

    return Handler


if __name__ == "__main__":
    main(sys.argv[1])
