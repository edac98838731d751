"""Whether a program still waits in connect(), or a connection has its other end here: the states of TCP sockets
of this network namespace.

Owns the question and its wire format (sock_diag(7)). Refuses to own what follows. A program that gives up a
connect() sends nothing: neither a FIN nor a reset leaves a socket in SYN-SENT (RFC 9293, 3.10.4).
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from tnat64d.kernel.original_dst import Destination
from tnat64d.kernel.rtnetlink import HEADER, NLMSG_ERROR

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 0x1
_SYN_SENT, _LISTEN = 2, 10  # net/tcp_states.h
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8


class SocketTable:
    """Asks the kernel; each question is one send and one receive, as the answer is there when send returns."""

    def __init__(self) -> None:
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, flags, _NETLINK_SOCK_DIAG)
        self._asked = 0

    def close(self) -> None:
        """Ask nothing any more."""
        self._socket.close()

    def is_connecting(self, client: Destination, destination: Destination, device: int) -> bool:
        """Whether a socket in SYN-SENT leads from `client` to `destination`.

        `device`: the index of the interface its SYN left by, which it may be bound to. True where nobody knows.
        """
        try:
            return self._state(client, destination, device) == _SYN_SENT
        except OSError:
            return True

    def has(self, end: Destination, peer: Destination) -> bool:
        """Whether a socket has the address `end` and the peer `peer`. Raises OSError."""
        return self._state(end, peer, 0) not in (None, _LISTEN)

    def _state(self, client: Destination, destination: Destination, device: int) -> int | None:
        """Of the socket that leads from `client` to `destination`, or would answer there; None without one."""
        self._ask(client, destination, device)
        answer = self._answer()
        if HEADER.unpack_from(answer)[1] == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", answer, HEADER.size)
            if code == -errno.ENOENT:
                return None
            raise OSError(-code, os.strerror(-code))
        return answer[HEADER.size + 1]

    def _ask(self, client: Destination, destination: Destination, device: int) -> None:
        ports = struct.pack("!HH", client[1], destination[1])
        addresses = socket.inet_aton(client[0]).ljust(16, b"\0") + socket.inet_aton(destination[0]).ljust(
            16, b"\0"
        )
        request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ALL_STATES)
        request += ports + addresses + struct.pack("=I", device) + _NO_COOKIE
        self._asked = (self._asked + 1) & 0xFFFFFFFF
        header = HEADER.pack(HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._asked, 0)
        self._socket.send(header + request)

    def _answer(self) -> bytes:
        """To the last question; an earlier one's may have been left over by an error. Raises OSError."""
        while True:
            answer = self._socket.recv(4096)
            if HEADER.unpack_from(answer)[3] == self._asked:
                return answer
