"""The host's default routes, and when they change, by rtnetlink(7).

Owns the dump and the subscription. Refuses to own what a change means. Our own routes do not count.

The kernel announces a deleted IPv4 route, but not the routes that vanish with their device or its last address
(net/ipv4/fib_frontend.c, fib_disable_ip). So an announcement is only a reason to look: what counts is whether
the set of default routes differs from the one before.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable

from tnat64d.core.ruleset import ROUTE_PROTOCOL
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.rtnetlink import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
    RTMSG,
    attributes,
    dump,
    dumping,
    messages,
)

_log = logging.getLogger(__name__)

_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
_RTM_F_CLONED = 0x200
_IFF_UP = 0x1
_ATTRIBUTES = {4, 5, 6, 9, 15, 18}  # RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA

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
    with dumping() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for kind, body in dump(netlink, RTM_GETROUTE, RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
                if kind == RTM_NEWROUTE and _is_foreign_default(body):
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
        self._netlink.bind((0, _GROUPS))
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
            look = look or any(_is_reason_to_look(kind, body) for kind, body in messages(data))
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
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return _is_foreign_default(body)
    if kind == RTM_NEWLINK:
        (flags,) = struct.unpack_from("=I", body, 8)
        return not flags & _IFF_UP
    return kind in (RTM_DELLINK, RTM_DELADDR)


def _is_foreign_default(body: bytes) -> bool:
    _, destination_length, _, _, _, protocol, _, _, flags = RTMSG.unpack_from(body)
    return destination_length == 0 and protocol != ROUTE_PROTOCOL and not flags & _RTM_F_CLONED


def _distinction(body: bytes) -> bytes:
    """The attributes in `_ATTRIBUTES`, as they stand; others (lifetimes, counters) change without meaning."""
    kept = [(kind, value) for kind, value in attributes(body, RTMSG.size) if kind in _ATTRIBUTES]
    return b"".join(struct.pack("=HH", kind, len(value)) + value for kind, value in kept)
