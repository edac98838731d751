"""Who is at the other end of a unix socket: its process, user and groups when it connected.

Owns the socket options that tell (unix(7), and SO_PEERPIDFD of include/uapi/asm-generic/socket.h). Refuses to own
what anybody may do.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from dataclasses import dataclass

_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77
_MAX_GROUPS = 256
"""As many as Python's getsockopt() has room for."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`pid`: 0 where its PID namespace is not visible from here."""

    pid: int
    uid: int
    gid: int


def credentials(connection: socket.socket) -> Peer:
    """The peer of `connection`."""
    return Peer(*struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def supplementary_groups(connection: socket.socket) -> frozenset[int]:
    """The peer's groups beside its first one; none where it has more than 256."""
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"={len(packed) // 4}I", packed))


def is_running(connection: socket.socket) -> bool:
    """Whether the process that connected still is; before Linux 6.5, whether one of its number is."""
    try:
        process = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        try:
            process = os.pidfd_open(credentials(connection).pid)
        except OSError:
            return False
    try:
        ended = select.poll()
        ended.register(process, select.POLLIN)  # pidfd_open(2)
        return not ended.poll(0)
    finally:
        os.close(process)
