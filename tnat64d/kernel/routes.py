"""Address, route and policy rules of a `core.ruleset`, through pyroute2.

Owns what carries our protocol number or our label. Refuses to own anything else: what is there already under
our address or priority, but not by us, is neither changed nor removed.

pyroute2 is synchronous here and must not run on a thread with a running event loop (its issue 1342); a daemon
calls this in a thread of its own.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any

from tnat64d.core.marks import Mark
from tnat64d.core.ruleset import ADDRESS_LABEL, ROUTE_PROTOCOL, Address, PolicyRule, Route, Ruleset
from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError

RT_SCOPE_LINK = 253
RT_SCOPE_HOST = 254
"""rtnetlink(7); the latter is the scope that a route of type local must have."""

_RTN_LOCAL = 2
"""linux/rtnetlink.h."""

_FR_ACT_UNREACHABLE = 7
"""linux/fib_rules.h."""


def commands(ruleset: Ruleset) -> list[str]:
    """What `install` does where nothing stands, as ip(8) commands."""
    lines = [_address_command(ruleset.address), _route_command(ruleset.route)]
    return lines + [_rule_command("add", rule) for rule in ruleset.policy_rules]


def _address_command(address: Address) -> str:
    if address.peer is None:
        return f"ip address add {address.address}/32 dev {address.device} label {ADDRESS_LABEL}"
    return f"ip address add {address.address} peer {address.peer}/32 dev {address.device}"


def _route_command(route: Route) -> str:
    kind = "local " if route.is_local else ""
    return (
        f"ip -4 route add {kind}default dev {route.device} src {route.source} table {route.table} "
        f"proto {ROUTE_PROTOCOL}"
    )


def _rule_command(verb: str, rule: PolicyRule) -> str:
    words = [f"ip -4 rule {verb}", f"pref {rule.priority}"]
    if rule.in_device is not None:
        words.append(f"iif {rule.in_device}")
    if rule.mark is not None:
        words.append(f"fwmark {rule.mark}")
    if rule.tcp_only:
        words.append("ipproto tcp")
    words.append("unreachable" if rule.table is None else f"lookup {rule.table}")
    words.append(f"protocol {ROUTE_PROTOCOL}")
    return " ".join(words)


def install(ruleset: Ruleset) -> None:
    """Make address, route and policy rules stand, and no others of ours.

    Raises PrivilegeError without CAP_NET_ADMIN, UnavailableError while the loopback device is down, Tnat64Error
    where the table has somebody else's default route or the kernel refuses.
    """
    with _netlink() as ip:
        _require_loopback(ip)
        _remove_rules(ip, keep=ruleset.policy_rules)
        _remove_routes(ip, keep=ruleset.route)
        _remove_addresses(ip, keep=ruleset.address)
        _add_address(ip, ruleset.address)
        if not _own_routes(ip):
            _add_route(ip, ruleset.route)
        standing = [_policy_rule(message) for message in _own_rules(ip)]
        for rule in ruleset.policy_rules:
            if rule not in standing:
                ip.rule("add", **_rule(rule))


def plan(ruleset: Ruleset) -> list[str]:
    """What `install` would do now, as ip(8) commands. Raises as `install`."""
    with _netlink() as ip:
        lines = _removal_commands(
            _surplus_rules(ip, ruleset.policy_rules),
            _surplus_routes(ip, ruleset.route),
            _surplus_addresses(ip, ruleset.address),
        )
        if not _has_address(ip, ruleset.address.address):
            lines.append(_address_command(ruleset.address))
        if not any(_is(message, ruleset.route) for message in _own_routes(ip)):
            lines.append(_route_command(ruleset.route))
        standing = [_policy_rule(message) for message in _own_rules(ip)]
        return lines + [_rule_command("add", rule) for rule in ruleset.policy_rules if rule not in standing]


def remove() -> None:
    """Leave no address, route or policy rule of ours. Raises as `install`."""
    with _netlink() as ip:
        _remove_rules(ip)
        _remove_routes(ip)
        _remove_addresses(ip)


def removal_commands() -> list[str]:
    """What `remove` would do now, as ip(8) commands. Raises as `install`."""
    with _netlink() as ip:
        return _removal_commands(_own_rules(ip), _own_routes(ip), _own_addresses(ip))


def _removal_commands(rules: list[Any], routes: list[Any], addresses: list[Any]) -> list[str]:
    lines = [_rule_command("del", _policy_rule(message)) for message in rules]
    for message in routes:
        kind = "local " if message["type"] == _RTN_LOCAL else ""
        table = message.get_attr("RTA_TABLE")
        lines.append(f"ip -4 route del {kind}default table {table} proto {ROUTE_PROTOCOL}")
    for message in addresses:
        network = f"{message.get_attr('IFA_LOCAL')}/{message['prefixlen']}"
        device = socket.if_indextoname(message["index"])
        lines.append(f"ip address del {network} dev {device} label {ADDRESS_LABEL}")
    return lines


@contextmanager
def _netlink() -> Iterator[Any]:
    from pyroute2 import IPRoute  # takes 0.3 s to import
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise PrivilegeError("changing addresses, routes and rules needs root (CAP_NET_ADMIN)") from None
        raise Tnat64Error(f"the kernel refused a route, rule or address: {error}") from None
    except OSError as error:  # a device that somebody deletes meanwhile
        raise Tnat64Error(f"cannot change routes, rules and addresses: {error.strerror or error}") from None


def _require_loopback(ip: Any) -> None:
    """A new network namespace has it down, and then no route can use it."""
    if not ip.link_lookup(ifname="lo", operstate="UNKNOWN") and not ip.link_lookup(ifname="lo", operstate="UP"):
        raise UnavailableError("the loopback device is down: ip link set lo up")


def bring_up(device: str, mtu_bytes: int) -> None:
    """Make `device` ready for routes. Raises as `install`."""
    with _netlink() as ip:
        ip.link("set", index=socket.if_nametoindex(device), mtu=mtu_bytes, state="up")


def delete_device(device: str) -> None:
    """Delete `device`, if it is there, and address and routes with it. Raises as `install`."""
    with _netlink() as ip:
        for index in ip.link_lookup(ifname=device):
            ip.link("del", index=index)


def _add_address(ip: Any, address: Address) -> None:
    """Unless somebody has it already: then it serves as well, and is left to him."""
    if _has_address(ip, address.address):
        return
    fields: dict[str, Any] = {"index": socket.if_nametoindex(address.device), "prefixlen": 32}
    if address.peer is None:
        ip.addr("add", address=str(address.address), label=ADDRESS_LABEL, **fields)
    else:
        ip.addr("add", local=str(address.address), address=str(address.peer), **fields)


def _add_route(ip: Any, route: Route) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        ip.route("add", **_route(route))
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        raise Tnat64Error(
            f"routing table {route.table} has a default route of somebody else's already: set rules.table in "
            "tnat64d.toml to the number of a table that is free"
        ) from None


def _route(route: Route) -> dict[str, Any]:
    # dst in full: 'default' without a family fails in pyroute2 0.9.
    fields: dict[str, Any] = {
        "dst": "0.0.0.0/0",
        "oif": socket.if_nametoindex(route.device),
        "prefsrc": str(route.source),
        "table": route.table,
        "proto": ROUTE_PROTOCOL,
        "scope": RT_SCOPE_LINK,
    }
    if route.is_local:
        fields |= {"type": "local", "scope": RT_SCOPE_HOST}
    return fields


def _rule(rule: PolicyRule) -> dict[str, Any]:
    fields: dict[str, Any] = {"family": socket.AF_INET, "priority": rule.priority, "protocol": ROUTE_PROTOCOL}
    if rule.table is None:
        fields["action"] = "unreachable"
    else:
        fields["table"] = rule.table
    if rule.in_device is not None:
        fields["iifname"] = rule.in_device
    if rule.mark is not None:
        fields |= {"fwmark": rule.mark.value, "fwmask": rule.mark.mask}
    if rule.tcp_only:
        fields["ip_proto"] = socket.IPPROTO_TCP
    return fields


def _is(message: Any, route: Route) -> bool:
    found = (message.get_attr("RTA_TABLE"), message.get_attr("RTA_OIF"), message.get_attr("RTA_PREFSRC"))
    wanted = (route.table, socket.if_nametoindex(route.device), str(route.source))
    return found == wanted and (message["type"] == _RTN_LOCAL) == route.is_local


def _own_rules(ip: Any) -> list[Any]:
    rules = list(ip.get_rules(family=socket.AF_INET))
    return [message for message in rules if message.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL]


def _own_routes(ip: Any) -> list[Any]:
    return [
        message
        for message in list(ip.get_routes(family=socket.AF_INET))
        if message["proto"] == ROUTE_PROTOCOL and message["dst_len"] == 0
    ]


def _addresses(ip: Any) -> list[Any]:
    return list(ip.get_addr(family=socket.AF_INET))


def _own_addresses(ip: Any) -> list[Any]:
    return [message for message in _addresses(ip) if message.get_attr("IFA_LABEL") == ADDRESS_LABEL]


def _has_address(ip: Any, address: IPv4Address) -> bool:
    return any(message.get_attr("IFA_LOCAL") == str(address) for message in _addresses(ip))


def _policy_rule(message: Any) -> PolicyRule:
    mark = message.get_attr("FRA_FWMARK")
    return PolicyRule(
        priority=message.get_attr("FRA_PRIORITY"),
        table=None if message["action"] == _FR_ACT_UNREACHABLE else message.get_attr("FRA_TABLE"),
        in_device=message.get_attr("FRA_IIFNAME"),
        mark=None if mark is None else Mark(mark, message.get_attr("FRA_FWMASK")),
        tcp_only=message.get_attr("FRA_IP_PROTO") == socket.IPPROTO_TCP,
    )


def _surplus_rules(ip: Any, keep: tuple[PolicyRule, ...]) -> list[Any]:
    """Our rules that are not in `keep`; the same rule twice is one too many."""
    kept = list(keep)
    surplus = []
    for message in _own_rules(ip):
        if (rule := _policy_rule(message)) in kept:
            kept.remove(rule)
        else:
            surplus.append(message)
    return surplus


def _surplus_routes(ip: Any, keep: Route | None) -> list[Any]:
    return [message for message in _own_routes(ip) if keep is None or not _is(message, keep)]


def _surplus_addresses(ip: Any, keep: Address | None) -> list[Any]:
    """Those on lo; an address on a device of ours goes with it."""
    kept = str(keep.address) if keep is not None and keep.peer is None else None
    return [message for message in _own_addresses(ip) if message.get_attr("IFA_LOCAL") != kept]


def _remove_rules(ip: Any, keep: tuple[PolicyRule, ...] = ()) -> None:
    for message in _surplus_rules(ip, keep):
        ip.rule("del", **_rule(_policy_rule(message)))


def _remove_routes(ip: Any, keep: Route | None = None) -> None:
    for message in _surplus_routes(ip, keep):
        ip.route(
            "del",
            dst="0.0.0.0/0",
            table=message.get_attr("RTA_TABLE"),
            proto=ROUTE_PROTOCOL,
            type=message["type"],
            scope=message["scope"],
        )


def _remove_addresses(ip: Any, keep: Address | None = None) -> None:
    for message in _surplus_addresses(ip, keep):
        address = message.get_attr("IFA_LOCAL")
        ip.addr("del", index=message["index"], address=address, prefixlen=message["prefixlen"])
