"""What a network says to a SYN that leads nowhere, sent by this host in its stead.

Owns the two packets (a TCP reset, an ICMP error) and the raw sockets they leave by. Refuses to own when one is
due (`proxy.syn_gate`).

Not by a REJECT rule: in OUTPUT its ICMP error does not reach the host's own program. The SYN must have been
dropped. The format of the reset: RFC 9293 section 3.1.
"""

from __future__ import annotations

import errno
import socket
import struct
from enum import Enum

from tnat64d.errors import PrivilegeError
from tnat64d.kernel import icmp
from tnat64d.kernel.nfqueue import Syn
from tnat64d.kernel.original_dst import set_mark

_HOP_LIMIT = 64
_DONT_FRAGMENT = 0x4000
_TCP_HEADER_BYTES = 20
_RST_ACK = 0x14


class Refusal(Enum):
    """What the program is told, and the code of the ICMP error (RFC 792, RFC 1122 section 3.2.2.1)."""

    RESET = (errno.ECONNREFUSED, None)
    NETWORK_UNREACHABLE = (errno.ENETUNREACH, 0)
    HOST_UNREACHABLE = (errno.EHOSTUNREACH, 1)
    PROHIBITED = (errno.EACCES, 13)

    def __init__(self, code: int, icmp_code: int | None) -> None:
        """`code`: the errno of the dial. Over IPv4 Linux makes EHOSTUNREACH of 13 (icmp_err_convert)."""
        self.errno = code
        self.icmp_code = icmp_code

    @classmethod
    def of(cls, code: int) -> Refusal:
        """That which says what the errno `code` said; RESET for all that has no other."""
        return _BY_ERRNO.get(code, cls.RESET)


_BY_ERRNO = {refusal.errno: refusal for refusal in Refusal} | {errno.EPERM: Refusal.PROHIBITED}


class Refuser:
    """Sends refusals."""

    def __init__(self, mark: int) -> None:
        """`mark`: keeps them from conntrack (`core.ruleset.refusal_mark`).

        Raises PrivilegeError without CAP_NET_RAW.
        """
        try:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        except PermissionError:
            raise PrivilegeError(
                'connect = "honest" in tnat64d.toml needs CAP_NET_RAW (or root), to refuse connections'
            ) from None
        set_mark(self._socket, mark)
        self._socket.setblocking(False)

    def send(self, syn: Syn, refusal: Refusal) -> None:
        """Answer `syn`."""
        if refusal.icmp_code is None:
            packet = _reset(syn)
        else:
            # From the destination, the only address that is sure to have a way to the client.
            source, target = socket.inet_aton(syn.destination[0]), socket.inet_aton(syn.client[0])
            packet = icmp.destination_unreachable(refusal.icmp_code, source, target, syn.quote)
        try:
            self._socket.sendto(packet, (syn.client[0], 0))
        except OSError:
            pass  # it has no way back: the client's next SYN is dialled again

    def close(self) -> None:
        """Send nothing any more."""
        self._socket.close()


def _ip_header(protocol: int, source: bytes, target: bytes, content: bytes) -> bytes:
    """The kernel fills in checksum and identification (raw(7), IP_HDRINCL)."""
    size = 20 + len(content)
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, _DONT_FRAGMENT, _HOP_LIMIT, protocol, 0, source, target)


def _reset(syn: Syn) -> bytes:
    """Acknowledges the SYN, or it would not be believed (RFC 9293, 3.10.7.3)."""
    source, target = socket.inet_aton(syn.destination[0]), socket.inet_aton(syn.client[0])
    fields = (syn.destination[1], syn.client[1], 0, (syn.sequence + 1) & 0xFFFFFFFF, 0x50, _RST_ACK, 0)
    without = struct.pack("!HHIIBBHHH", *fields, 0, 0)
    pseudo_header = source + target + struct.pack("!BBH", 0, socket.IPPROTO_TCP, _TCP_HEADER_BYTES)
    content = struct.pack("!HHIIBBHHH", *fields, icmp.checksum(pseudo_header + without), 0)
    return _ip_header(socket.IPPROTO_TCP, source, target, content) + content
