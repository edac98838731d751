"""What stands of ours in the kernel, part by part, to be compared with what stood.

Owns reading address, route and policy rules (rtnetlink(7), without privileges) and the comparison. Refuses to own
chains (each backend reads its own) and what is done about a loss.

A part has the name by which a sentence speaks of it. Its value says what it is like, in whatever form; only
whether two values are equal counts.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from tnat64d.core.ruleset import ROUTE_PROTOCOL, Ruleset
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.rtnetlink import RTM_GETADDR, RTM_GETROUTE, RTM_GETRULE, RTMSG, attributes, dump, dumping

_FRA_PRIORITY, _FRA_PROTOCOL = 6, 21
_RTA_TABLE = 15
_IFA_LOCAL = 2
_IFADDRMSG_SIZE_BYTES, _FIB_RULE_HDR_SIZE_BYTES = 8, 12

Standing = Mapping[str, bytes]
"""The parts by name."""


def lost(before: Standing, now: Standing) -> tuple[str, ...]:
    """The parts of `before` that are gone or changed."""
    return tuple(name for name, value in before.items() if now.get(name) != value)


def incomplete(wanted: Iterable[str], now: Standing) -> Standing:
    """`now`, and a value that nothing equals for each part of `wanted` that went before it could be read."""
    return {**now, **{name: b"" for name in wanted if name not in now}}


def routing_parts(ruleset: Ruleset) -> tuple[str, ...]:
    """The names that `routing` has while `ruleset` stands."""
    return (
        *(_rule_name(rule.priority) for rule in ruleset.policy_rules),
        _route_name(ruleset.route.table),
        _address_name(ruleset.address.address),
    )


def routing(table: int, address: IPv4Address) -> Standing:
    """Policy rules and fallback route that carry our number, and `address`, whoever made it.

    Raises Tnat64Error where the kernel does not tell.
    """
    try:
        return {**_rules(), **_routes(table), **_address(address)}
    except OSError as error:
        raise Tnat64Error(f"cannot read rules, routes and addresses: {error.strerror or error}") from None


def _rule_name(priority: int) -> str:
    return f"the routing rule {priority}"


def _route_name(table: int) -> str:
    return f"the route of table {table}"


def _address_name(address: IPv4Address) -> str:
    return f"the address {address}"


def _rules() -> Standing:
    found: dict[str, bytes] = {}
    request = struct.pack("=B11x", socket.AF_INET)
    with dumping() as netlink:
        for _, body in dump(netlink, RTM_GETRULE, request):
            values = dict(attributes(body, _FIB_RULE_HDR_SIZE_BYTES))
            if values.get(_FRA_PROTOCOL) == bytes((ROUTE_PROTOCOL,)):
                (priority,) = struct.unpack("=I", values.get(_FRA_PRIORITY, bytes(4)))
                name = _rule_name(priority)
                found[name] = found.get(name, b"") + body
    return found


def _routes(table: int) -> Standing:
    """Without rtm_flags, which tell of the link."""
    found = b""
    request = RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0) + struct.pack("=HHI", 8, _RTA_TABLE, table)
    with dumping(strict=True) as netlink:
        try:
            for _, body in dump(netlink, RTM_GETROUTE, request):
                _, length, _, _, _, protocol, _, _, _ = RTMSG.unpack_from(body)
                values = dict(attributes(body, RTMSG.size))
                if (length, protocol, values.get(_RTA_TABLE)) == (0, ROUTE_PROTOCOL, struct.pack("=I", table)):
                    found += body[:8] + body[RTMSG.size :]
        except FileNotFoundError:
            pass  # there is no such table, since nothing is in it
    return {_route_name(table): found} if found else {}


def _address(address: IPv4Address) -> Standing:
    with dumping() as netlink:
        for _, body in dump(netlink, RTM_GETADDR, struct.pack("=B7x", socket.AF_INET)):
            if dict(attributes(body, _IFADDRMSG_SIZE_BYTES)).get(_IFA_LOCAL) == address.packed:
                return {_address_name(address): b"there"}
    return {}
