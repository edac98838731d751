"""What others have put into addresses, links, routes and policy rules, read by rtnetlink(7) through pyroute2.

Owns looking. Refuses to own what is ours (`kernel.routes`) and changing anything. Needs no privilege.
"""

from __future__ import annotations

import fnmatch
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from tnat64d.core.marks import Mark
from tnat64d.core.ruleset import ROUTE_PROTOCOL
from tnat64d.kernel import sysctl

_REFUSING = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
"""Route types of linux/rtnetlink.h that answer instead of leading on."""

_RT_TABLE_MAIN, _RT_TABLE_DEFAULT = 254, 253
BRIDGES_ASK_RULES = "net.bridge.bridge-nf-call-iptables"
_DISCARD_PORT = 9


@dataclass(frozen=True, slots=True)
class MarkRule:
    """A policy rule that looks at the mark."""

    priority: int
    mark: Mark


def _ip() -> Any:
    from pyroute2 import IPRoute  # takes 0.3 s to import

    return IPRoute()


def mark_rules() -> list[MarkRule]:
    """Other people's IPv4 policy rules that look at the mark."""
    with _ip() as ip:
        rules = list(ip.get_rules(family=socket.AF_INET))
    return [
        MarkRule(
            message.get_attr("FRA_PRIORITY") or 0,
            Mark(message.get_attr("FRA_FWMARK"), message.get_attr("FRA_FWMASK") or 0xFFFFFFFF),
        )
        for message in rules
        if message.get_attr("FRA_FWMARK") and message.get_attr("FRA_PROTOCOL") != ROUTE_PROTOCOL
    ]


def refusing_default() -> str | None:
    """The type of an IPv4 default route of main or default that leads nowhere, as ip-route(8) writes it."""
    with _ip() as ip:
        routes = list(ip.get_routes(family=socket.AF_INET))
    for message in routes:
        table = message.get_attr("RTA_TABLE") or message["table"]
        is_asked_before_ours = table in (_RT_TABLE_MAIN, _RT_TABLE_DEFAULT)
        if is_asked_before_ours and message["dst_len"] == 0 and message["type"] in _REFUSING:
            return f"{_REFUSING[message['type']]} default table {table}"
    return None


def ipv4_addresses() -> list[tuple[str, IPv4Address]]:
    """(device, address) of every IPv4 address."""
    with _ip() as ip:
        messages = list(ip.get_addr(family=socket.AF_INET))
    names = dict(socket.if_nameindex())
    return [(names.get(message["index"], "?"), IPv4Address(message.get_attr("IFA_LOCAL"))) for message in messages]


def bridges() -> set[str]:
    """The names of all bridges."""
    with _ip() as ip:
        return {message.get_attr("IFLA_IFNAME") for message in ip.get_links(kind="bridge")}


def losing_bridges(patterns: Iterable[str]) -> list[str]:
    """Of the bridges that match one of `patterns` those by which TPROXY gets no connection; all or none.

    br_netfilter lets a packet meet the rules in the bridge, and behind that the socket that TPROXY gave it is gone
    (net/bridge/br_netfilter_hooks.c, skb_orphan() in net/ipv4/ip_input.c).
    """
    if not sysctl.read(BRIDGES_ASK_RULES):
        return []
    return sorted(name for name in bridges() if any(fnmatch.fnmatchcase(name, each) for each in patterns))


def why_no_route(address: IPv6Address) -> str | None:
    """What the kernel says to a packet for `address`, None if it has a way. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _DISCARD_PORT))
    except OSError as error:
        return error.strerror or str(error)
    return None
