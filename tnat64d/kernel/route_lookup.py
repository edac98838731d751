"""Which route the kernel takes to an address, by RTM_GETROUTE (rtnetlink(7)). Needs no privileges.

Owns one question and its answer. Refuses to own what the answer means.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from tnat64d.core.facts import RouteFound
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.rtnetlink import HEADER, NLMSG_ERROR, RTM_GETROUTE, RTMSG, attributes, messages

ANSWER_TIMEOUT_S = 5.0

_NLM_F_REQUEST = 0x1
_RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 0x1000, 0x2000
"""Show the route itself, not what would be cached of it (Linux 4.13), and the table that it was found in."""

_FLAGS = _RTM_F_LOOKUP_TABLE | _RTM_F_FIB_MATCH

_RTN_LOCAL, _RT_TABLE_LOCAL = 2, 255
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 7, 9, 15
_RTA_MARK, _RTA_VIA, _RTA_UID, _RTA_IP_PROTO, _RTA_DPORT = 16, 18, 25, 27, 29
_TABLES = {253: "default", 254: "main", 255: "local"}


def look_up(destination: IPv4Address | IPv6Address, *, port: int = 0, mark: int = 0, uid: int = 0) -> RouteFound:
    """The route of a TCP connection of user `uid` with the fwmark `mark`. Raises Tnat64Error."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    body = RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, _FLAGS)
    body += _attribute(_RTA_DST, destination.packed) + _attribute(_RTA_UID, struct.pack("=I", uid))
    body += _attribute(_RTA_IP_PROTO, bytes([socket.IPPROTO_TCP]))
    if port:
        body += _attribute(_RTA_DPORT, struct.pack("!H", port))
    if mark:
        body += _attribute(_RTA_MARK, struct.pack("=I", mark))
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.settimeout(ANSWER_TIMEOUT_S)
            netlink.send(HEADER.pack(HEADER.size + len(body), RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
            answer = netlink.recv(1 << 16)
    except OSError as error:
        raise Tnat64Error(
            f"the kernel does not tell its route to {destination}: {error.strerror or error}"
        ) from None
    kind, found = next(messages(answer))
    if kind == NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", found)
        return RouteFound(error=-code)
    return _found(family, found)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _found(family: int, body: bytes) -> RouteFound:
    _, prefix_length, _, _, table, protocol, _, route_type, _ = RTMSG.unpack_from(body)
    values = dict(attributes(body, RTMSG.size))
    words = [f"{socket.inet_ntop(family, values[_RTA_DST])}/{prefix_length}" if prefix_length else "default"]
    if _RTA_MULTIPATH in values:
        words.append("via several gateways")
    elif _RTA_GATEWAY in values:
        words.append(f"via {socket.inet_ntop(family, values[_RTA_GATEWAY])}")
    elif _RTA_VIA in values:  # a struct rtvia: an IPv6 gateway of an IPv4 route
        words.append(f"via {socket.inet_ntop(socket.AF_INET6, values[_RTA_VIA][2:])}")
    if _RTA_OIF in values:
        words.append(f"dev {_device(*struct.unpack('=I', values[_RTA_OIF]))}")
    if _RTA_PREFSRC in values:
        words.append(f"src {socket.inet_ntop(family, values[_RTA_PREFSRC])}")
    if _RTA_TABLE in values:
        (table,) = struct.unpack("=I", values[_RTA_TABLE])
    words.append(f"table {_TABLES.get(table, table)}")
    return RouteFound(
        text=" ".join(words), protocol=protocol, is_own=route_type == _RTN_LOCAL and table == _RT_TABLE_LOCAL
    )


def _device(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"number {index}"  # it has gone in the meantime
