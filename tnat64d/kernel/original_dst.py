"""The destination that a captured connection was meant for, and the socket options that capture needs.

Owns the two ways to ask for it: SO_ORIGINAL_DST for REDIRECT, getsockname() for TPROXY. Refuses to own what
is done with it.
"""

from __future__ import annotations

import socket
import struct
from _socket import socket as RawSocket
from collections.abc import Callable
from errno import EACCES, EPERM
from typing import Final

from tnat64d.errors import PrivilegeError

_SOL_IP: Final = int(socket.SOL_IP)

SO_ORIGINAL_DST: Final = 80
"""linux/netfilter_ipv4.h; level SOL_IP, a struct sockaddr_in."""

IP_TRANSPARENT = 19
"""linux/in.h."""

Destination = tuple[str, int]
"""Dotted address and port."""

DestinationOf = Callable[[RawSocket], bytes | Destination | None]
"""Asks for a connection's destination: a value to remember it by, None where the connection has none."""


def redirected(sock: RawSocket) -> bytes | None:
    """The `struct sockaddr_in` of a connection that REDIRECT changed; None where conntrack does not know it.

    A connection that nobody redirected gives the listener's own address (or None): the caller refuses both.
    """
    try:
        return sock.getsockopt(_SOL_IP, SO_ORIGINAL_DST, 16)
    except OSError:
        return None


def diverted(sock: RawSocket) -> Destination | None:
    """The local address of a connection that TPROXY diverted, which is its destination."""
    try:
        address, port = sock.getsockname()
    except OSError:
        return None
    return address, port


def parse(destination: bytes | Destination) -> Destination:
    """The dotted address and port of what `redirected` or `diverted` returned."""
    if isinstance(destination, tuple):
        return destination
    port, address = struct.unpack_from("!2xH4s", destination)
    return socket.inet_ntoa(address), port


def is_own(address: str) -> bool:
    """Whether `address` is one of this host's."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def allow_foreign_addresses(listener: socket.socket) -> None:
    """Let `listener` accept what TPROXY diverts to it.

    Raises PrivilegeError without CAP_NET_RAW and CAP_NET_ADMIN.
    """
    try:
        listener.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    except OSError as error:
        if error.errno in (EPERM, EACCES):
            raise PrivilegeError("TPROXY mode needs CAP_NET_RAW (or root) for IP_TRANSPARENT") from None
        raise


def set_mark(sock: RawSocket, mark: int) -> None:
    """Let the packets of `sock` carry the fwmark `mark`. Raises OSError.

    Its 32 bits are packed here, for Python takes integers of socket options for signed.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))


def require_marking(mark: int) -> None:
    """Prove that this process may mark its IPv4 attempts, or each would be captured again.

    Raises PrivilegeError without CAP_NET_RAW (Linux 5.17 or newer) and CAP_NET_ADMIN.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            set_mark(probe, mark)
        except OSError as error:
            if error.errno in (EPERM, EACCES):
                raise PrivilegeError(
                    "marking the daemon's own IPv4 connections (SO_MARK) needs CAP_NET_RAW, before Linux 5.17 "
                    "CAP_NET_ADMIN, or root"
                ) from None
            raise
