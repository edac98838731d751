"""Dumps of rtnetlink(7), and what their messages are made of.

Owns the wire. Refuses to own what the messages mean (`kernel.default_routes`, `kernel.standing`). Not by pyroute2:
it needs a thread without an event loop, and a hundred times as long.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_GETRULE = 32, 34
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE = 0x1, 0x10, 0x40, 0x80
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
HEADER = struct.Struct("=IHHII")
RTMSG = struct.Struct("=BBBBBBBBI")
"""struct nlmsghdr of linux/netlink.h, and struct rtmsg of linux/rtnetlink.h."""

_NLM_F_REQUEST_DUMP = 0x301
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12

DUMP_TIMEOUT_S = 5.0


def dump(netlink: socket.socket, kind: int, request: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, body) of each message that the kernel answers with. Raises OSError where it refuses."""
    netlink.send(HEADER.pack(HEADER.size + len(request), kind, _NLM_F_REQUEST_DUMP, 1, 0) + request)
    return dumped(netlink)


def dumping(*, strict: bool = False) -> socket.socket:
    """A socket for `dump`; `strict`: the kernel sends what the request names (Linux 4.20), and else all."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    netlink.settimeout(DUMP_TIMEOUT_S)
    if strict:
        try:
            netlink.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        except OSError:
            pass
    return netlink


def dumped(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The answer to a request for a dump. Raises OSError."""
    while True:
        for kind, body in messages(netlink.recv(1 << 18)):
            if kind == NLMSG_DONE:
                if len(body) >= 4 and (code := struct.unpack_from("=i", body)[0]) < 0:
                    raise OSError(-code, os.strerror(-code))
                return
            if kind == NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", body)
                raise OSError(-code, os.strerror(-code))
            yield kind, body


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, body) of each message in what was received."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, offset)
        yield kind, data[offset + HEADER.size : offset + length]
        offset += max(HEADER.size, (length + 3) & ~3)


def attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """(kind, value) of each attribute from `offset` on, without the flags of the kind."""
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        yield kind & 0x3FFF, body[offset + 4 : offset + length]
        offset += max(4, (length + 3) & ~3)
