"""When others may have changed the kernel's rules: the moments to look, not what changed.

Owns the subscriptions: addresses, links, IPv4 routes and policy rules (rtnetlink(7), no privilege needed), and
nf_tables (CAP_NET_ADMIN). Refuses to own looking (`kernel.standing`).

iptables-legacy announces nothing (its audit records want CAP_AUDIT_READ and an audit that is on). So where it has
tables, the kernel is asked each second for the shape of each, one system call: the number of rules and where the
chains begin (linux/netfilter_ipv4/ip_tables.h). A rule replaced by one of the same size is not seen.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
from collections.abc import Callable

from tnat64d.kernel.nfnetlink import NETLINK_NETFILTER
from tnat64d.kernel.rtnetlink import RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_LINK

LEGACY_INTERVAL_S = 1.0

_ROUTING_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV4_RULE
_NFTABLES_GROUP = 1 << 6  # NFNLGRP_NFTABLES
_IPT_SO_GET_INFO = 64
_IPT_GETINFO_SIZE_BYTES = 84
_LEGACY_TABLES = "/proc/thread-self/net/ip_tables_names"


class ChangeMonitor:
    """Calls `noticed()` whenever there is a reason to look.

    `packet_rules`: whether packet rules count as well; that raises OSError without CAP_NET_ADMIN.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, noticed: Callable[[], None], *, packet_rules: bool
    ) -> None:
        self._loop = loop
        self._noticed = noticed
        self._legacy: asyncio.TimerHandle | None = None
        self._sockets = [_subscribed(socket.NETLINK_ROUTE, _ROUTING_GROUPS)]
        if packet_rules:
            try:
                self._sockets.append(_subscribed(NETLINK_NETFILTER, _NFTABLES_GROUP))
            except OSError:
                self._sockets[0].close()
                raise
            self._shapes = legacy_shapes()
            self._legacy = loop.call_later(LEGACY_INTERVAL_S, self._look_at_legacy)
        for netlink in self._sockets:
            loop.add_reader(netlink.fileno(), self._announced, netlink)

    def close(self) -> None:
        """Watch no more."""
        if self._legacy is not None:
            self._legacy.cancel()
        for netlink in self._sockets:
            self._loop.remove_reader(netlink.fileno())
            netlink.close()

    def _announced(self, netlink: socket.socket) -> None:
        """What it says does not matter; nor does ENOBUFS, that something it said was lost."""
        while True:
            try:
                netlink.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                continue
        self._noticed()

    def _look_at_legacy(self) -> None:
        self._legacy = self._loop.call_later(LEGACY_INTERVAL_S, self._look_at_legacy)
        shapes = legacy_shapes()
        if shapes != self._shapes:
            self._shapes = shapes
            self._noticed()


def _subscribed(family: int, groups: int) -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
    try:
        netlink.setblocking(False)
        netlink.bind((0, groups))
    except OSError:
        netlink.close()
        raise
    return netlink


def legacy_shapes() -> dict[str, bytes]:
    """What the kernel tells of each table that iptables-legacy has here; none without CAP_NET_ADMIN."""
    try:
        with open(_LEGACY_TABLES) as file:
            names = file.read().split()
    except OSError:
        return {}  # no ip_tables in this kernel, or not ours to read
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return {name: _legacy_info(sock, name) for name in names}


def _legacy_info(sock: socket.socket, table: str) -> bytes:
    """IPT_SO_GET_INFO; empty where it is refused. By ctypes: Python's getsockopt() gives the kernel nothing."""
    info = ctypes.create_string_buffer(table.encode(), _IPT_GETINFO_SIZE_BYTES)
    size = ctypes.c_uint32(_IPT_GETINFO_SIZE_BYTES)
    libc = ctypes.CDLL(None)
    if libc.getsockopt(sock.fileno(), socket.SOL_IP, _IPT_SO_GET_INFO, info, ctypes.byref(size)):
        return b""
    return info.raw
