"""The listening sockets, one for each worker, all on one port.

Owns their options. Refuses to own accepting (`proxy.listener`). The supervisor holds them all until
it drains, so that what has connected waits for a new worker when one dies.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from tnat64d.core.marks import Mark
from tnat64d.core.settings import Mode, Settings
from tnat64d.errors import Tnat64Error
from tnat64d.kernel import original_dst, reuseport
from tnat64d.proxy.dialer import keep_alive

BACKLOG = 8192
"""The kernel takes the smaller of this and net.core.somaxconn (listen(2))."""

LOOPBACK = "127.0.0.1"
"""Where REDIRECT sends what the host's own programs sent (iptables-extensions(8))."""

ANY = "0.0.0.0"
"""What comes in by a gateway's device REDIRECT sends to that device's own address. A connection to it that
nobody redirected is refused by the listener all the same."""


def address(settings: Settings) -> str:
    """Where to listen: TPROXY names the listener itself, whatever a packet's destination."""
    return ANY if settings.scope.gateway and settings.rules.mode is Mode.REDIRECT else LOOPBACK


def listen(
    address: str,
    port: int,
    count: int,
    mode: Mode,
    keepalive_s: int,
    *,
    marks: Sequence[Mark] | None = None,
) -> list[socket.socket]:
    """`count` sockets on one port, by SO_REUSEPORT: the kernel spreads connections over them (socket(7)).

    `marks`: of SYNs, where they are held, so that who has dialled accepts (`core.marks`, worker_marks); None where
    they are not.

    Raises Tnat64Error if the port is taken, PrivilegeError where TPROXY mode needs more rights.
    """
    sockets: list[socket.socket] = []
    try:
        _require_free(address, port)
        for _ in range(count):
            sock = _listening_socket(address, port, mode, keepalive_s, share=count > 1)
            sockets.append(sock)
        if marks is not None and count > 1:
            reuseport.follow_worker(sockets[0], count, marks)
    except OSError as error:
        for sock in sockets:
            sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Tnat64Error(
                f"port {port} on {address} is taken by another program (or another tnat64d): stop it, or set "
                "proxy.port in tnat64d.toml"
            ) from None
        raise Tnat64Error(f"cannot listen on {address} port {port}: {error.strerror}") from None
    return sockets


def _require_free(address: str, port: int) -> None:
    """SO_REUSEPORT alone would let a second daemon of the same user share the port unnoticed."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        probe.listen(1)


def _listening_socket(address: str, port: int, mode: Mode, keepalive_s: int, *, share: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if mode is Mode.TPROXY:
            original_dst.allow_foreign_addresses(sock)
        # Accepted sockets inherit these (net/core/sock.c, sk_clone_lock).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock, keepalive_s)
        sock.setblocking(False)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
