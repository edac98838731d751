"""ICMP errors that this host writes itself, as whole IPv4 packets.

Owns the packet and the Internet checksum. Refuses to own how one is sent, and when. Formats: RFC 791, RFC 792.
"""

from __future__ import annotations

import struct

PROTOCOL = 1
NET_UNREACHABLE = 0
QUOTED_PAYLOAD_BYTES = 8
"""Of what follows the IP header of the packet that is answered (RFC 792)."""

_DESTINATION_UNREACHABLE = 3
_HOP_LIMIT = 64
_INTERNETWORK_CONTROL = 0xC0
"""The precedence of ICMP errors (RFC 1812 section 4.3.2.5)."""


def destination_unreachable(code: int, source: bytes, target: bytes, quote: bytes) -> bytes:
    """From `source` to `target`, addresses of four bytes; `quote`: the IP header and what follows it."""
    without = struct.pack("!BBHI", _DESTINATION_UNREACHABLE, code, 0, 0) + quote
    content = struct.pack("!BBHI", _DESTINATION_UNREACHABLE, code, checksum(without), 0) + quote
    size, tos = 20 + len(content), _INTERNETWORK_CONTROL
    header = struct.pack("!BBHHHBBH4s4s", 0x45, tos, size, 0, 0, _HOP_LIMIT, PROTOCOL, 0, source, target)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + content


def checksum(data: bytes) -> int:
    """Of the Internet protocols (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
