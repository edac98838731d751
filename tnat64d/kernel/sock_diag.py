"""Whether a program still waits in connect(): the state of a TCP socket of this network namespace.

Owns the question and its wire format (sock_diag(7)). Refuses to own what follows. A program that gives up a
connect() sends nothing: neither a FIN nor a reset leaves a socket in SYN-SENT (RFC 9293, 3.10.4).
"""

from __future__ import annotations

import errno
import socket
import struct

from tnat64d.kernel.original_dst import Destination

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 0x1
_SYN_SENT = 2  # net/tcp_states.h
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_HEADER = struct.Struct("=IHHII")


class SocketTable:
    """Asks the kernel; each question is one send and one receive."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)

    def close(self) -> None:
        """Ask nothing any more."""
        self._socket.close()

    def is_connecting(self, client: Destination, destination: Destination, device: int) -> bool:
        """Whether a socket in SYN-SENT leads from `client` to `destination`.

        `device`: the index of the interface its SYN left by, which it may be bound to. True where nobody knows.
        """
        ports = struct.pack("!HH", client[1], destination[1])
        addresses = socket.inet_aton(client[0]).ljust(16, b"\0") + socket.inet_aton(destination[0]).ljust(
            16, b"\0"
        )
        request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ALL_STATES)
        request += ports + addresses + struct.pack("=I", device) + _NO_COOKIE
        header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
        try:
            self._socket.send(header + request)
            answer = self._socket.recv(4096)
        except OSError:
            return True
        _, kind, _, _, _ = _HEADER.unpack_from(answer)
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", answer, _HEADER.size)
            return bool(code != -errno.ENOENT)
        return answer[_HEADER.size + 1] == _SYN_SENT
