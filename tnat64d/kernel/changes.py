"""When others may have changed the kernel's rules: the moments to look, not what changed.

Owns the subscriptions: addresses, links, IPv4 routes and policy rules (rtnetlink(7), no privilege needed), and
nf_tables (CAP_NET_ADMIN). Refuses to own looking (`kernel.standing`).

Two things announce nothing, and are looked at each second where they matter:
- iptables-legacy (its audit records want CAP_AUDIT_READ and an audit that is on): the shape of its tables, that is
  the number of rules and where the chains begin (linux/netfilter_ipv4/ip_tables.h). A rule replaced by one of the
  same size is not seen.
- Control groups that are made anew, as when a unit restarts: their identities. inotify(7) tells of them, too, but
  by a watch on each parent, and a parent can be made anew as well.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
from collections.abc import Callable, Collection

from tnat64d.kernel import cgroup
from tnat64d.kernel.nfnetlink import NETLINK_NETFILTER
from tnat64d.kernel.rtnetlink import RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_LINK

INTERVAL_S = 1.0
"""Between two looks at what announces nothing."""

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
        self._has_legacy = packet_rules
        self._groups: tuple[str, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._sockets = [_subscribed(socket.NETLINK_ROUTE, _ROUTING_GROUPS)]
        if packet_rules:
            try:
                self._sockets.append(_subscribed(NETLINK_NETFILTER, _NFTABLES_GROUP))
            except OSError:
                self._sockets[0].close()
                raise
        self._unannounced = self._look()
        self._set_timer()
        for netlink in self._sockets:
            loop.add_reader(netlink.fileno(), self._announced, netlink)

    def watch_groups(self, paths: Collection[str]) -> None:
        """Let control groups that get, lose or change one of `paths` be a reason, too, from now on."""
        if tuple(paths) != self._groups:
            self._groups = tuple(paths)
            self._unannounced = self._look()
            self._set_timer()

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
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

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        is_needed = self._has_legacy or self._groups
        self._timer = self._loop.call_later(INTERVAL_S, self._look_again) if is_needed else None

    def _look_again(self) -> None:
        self._set_timer()
        seen = self._look()
        if seen != self._unannounced:
            self._unannounced = seen
            self._noticed()

    def _look(self) -> object:
        return legacy_shapes() if self._has_legacy else None, cgroup.identities(self._groups)


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
