"""Who is at the other end of a unix socket: its process, user and groups when it connected.

Owns the socket options that tell (unix(7), and SO_PEERPIDFD of include/uapi/asm-generic/socket.h), and the defence
against descriptors that strangers send. Refuses to own what anybody may do.

A descriptor sent is closed by who reads or closes the socket, though he asked for none (unix(7), SCM_RIGHTS). Of a
TCP socket with SO_LINGER (socket(7)) and unsent data that close waits as long as its sender likes. So descriptors
are refused (`refuse_descriptors`); before Linux 6.16, which cannot, the wait is cut short (`without_lingering`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77
_SO_PASSRIGHTS = 83
_MAX_GROUPS = 256
"""As many as Python's getsockopt() has room for."""

LINGER_S = 0.005


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


def refuse_descriptors(listener: socket.socket) -> None:
    """Let who connects to `listener` from now on send no descriptors: he gets EPERM. Before Linux 6.16 nothing."""
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


@contextmanager
def without_lingering() -> Iterator[None]:
    """Let what is read or closed inside linger for LINGER_S at most. For the main thread.

    A signal ends the wait (net/core/stream.c, sk_stream_wait_close), and while it is pending those that follow.
    It is repeated, for the first may come before the wait.
    """
    handler = signal.signal(signal.SIGALRM, lambda number, frame: None)
    timer = signal.setitimer(signal.ITIMER_REAL, LINGER_S, LINGER_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
