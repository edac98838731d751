"""The host's default routes, and when they change, by rtnetlink(7).

Owns the dump and the subscription. Refuses to own what a change means. Our own routes do not count.

The kernel announces a deleted IPv4 route, but not the routes that vanish with their device or its last address
(net/ipv4/fib_frontend.c, fib_disable_ip). So an announcement is only a reason to look: what counts is whether
the set of default routes differs from the one before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator

from tnat64d.core.ruleset import ROUTE_PROTOCOL
from tnat64d.errors import Tnat64Error

_log = logging.getLogger(__name__)

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_DELADDR = 16, 17, 21
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_NLM_F_REQUEST_DUMP = 0x301
_RTMGRP = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_RTM_F_CLONED = 0x200
_IFF_UP = 0x1
_HEADER = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTRIBUTES = {4, 5, 6, 9, 15, 18}  # RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA

DUMP_TIMEOUT_S = 5.0

DefaultRoutes = frozenset[tuple[int, int, bytes]]
"""(family, type, the attributes that tell it from others) of each default route."""


def default_routes() -> DefaultRoutes:
    """Those of IPv4 and IPv6, of every table. Raises Tnat64Error where the kernel does not tell."""
    try:
        return _default_routes()
    except OSError as error:
        raise Tnat64Error(f"cannot read the default routes: {error.strerror or error}") from None


def _default_routes() -> DefaultRoutes:
    found = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(DUMP_TIMEOUT_S)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            netlink.send(_HEADER.pack(16 + len(request), _RTM_GETROUTE, _NLM_F_REQUEST_DUMP, 1, 0) + request)
            for kind, body in _dumped(netlink):
                if kind == _RTM_NEWROUTE and _is_foreign_default(body):
                    found.add((family, body[7], _distinction(body)))
    return frozenset(found)


class DefaultRouteMonitor:
    """Calls `changed()` after the default routes have changed, or may have: they cannot be read.

    Making one raises Tnat64Error as `default_routes`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.setblocking(False)
        self._netlink.bind((0, _RTMGRP))
        self._known = default_routes()
        loop.add_reader(self._netlink.fileno(), self._announced)

    def close(self) -> None:
        """Watch no more."""
        self._loop.remove_reader(self._netlink.fileno())
        self._netlink.close()

    def _announced(self) -> None:
        look = False
        while True:
            try:
                data = self._netlink.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: announcements were lost
                look = True
                continue
            look = look or any(_is_reason_to_look(kind, body) for kind, body in _messages(data))
        if look:
            self._look()

    def _look(self) -> None:
        try:
            found = default_routes()
        except Tnat64Error as error:
            _log.warning("%s: they are taken to have changed", error)
            self._changed()
            return
        if found != self._known:
            self._known = found
            self._changed()


def _is_reason_to_look(kind: int, body: bytes) -> bool:
    if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
        return _is_foreign_default(body)
    if kind == _RTM_NEWLINK:
        (flags,) = struct.unpack_from("=I", body, 8)
        return not flags & _IFF_UP
    return kind in (_RTM_DELLINK, _RTM_DELADDR)


def _dumped(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        for kind, body in _messages(netlink.recv(1 << 18)):
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", body)
                raise OSError(-code, os.strerror(-code))
            yield kind, body


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _is_foreign_default(body: bytes) -> bool:
    _, destination_length, _, _, _, protocol, _, _, flags = _RTMSG.unpack_from(body)
    return destination_length == 0 and protocol != ROUTE_PROTOCOL and not flags & _RTM_F_CLONED


def _distinction(body: bytes) -> bytes:
    """The attributes in `_ATTRIBUTES`, as they stand; others (lifetimes, counters) change without meaning."""
    found = []
    offset = _RTMSG.size
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if kind & 0x3FFF in _ATTRIBUTES:
            found.append(body[offset : offset + length])
        offset += max(4, (length + 3) & ~3)
    return b"".join(found)
