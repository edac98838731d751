"""What others have put into the routing of a host is seen, and what is ours is not."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.kernel.bare_host import ip
from tests.lab import Namespace
from tnat64d.core.marks import Mark
from tnat64d.kernel import routing

pytestmark = pytest.mark.netns


def test_rules_that_look_at_the_mark_are_seen_unless_ours(host: Namespace) -> None:
    ip(
        host,
        "rule add pref 100 fwmark 0x64/0xff lookup 100",
        "rule add pref 101 fwmark 0x7 lookup 100",
        "rule add pref 102 fwmark 0x8 lookup 100 protocol 64",
        "rule add pref 103 to 192.0.2.1 lookup 100",
    )
    assert host.call(routing.mark_rules) == [
        routing.MarkRule(100, Mark(0x64, 0xFF)),
        routing.MarkRule(101, Mark(0x7, 0xFFFFFFFF)),
    ]


@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit"])
def test_a_default_route_that_refuses_is_seen_in_the_table_main_only(host: Namespace, kind: str) -> None:
    ip(host, f"route add {kind} default table 100", f"route add {kind} 192.0.2.0/24")
    assert host.call(routing.refusing_default) is None
    ip(host, f"route add {kind} default")
    assert host.call(routing.refusing_default) == f"{kind} default table 254"


def test_every_ipv4_address_is_seen_with_its_device(host: Namespace) -> None:
    ip(host, "address add 192.0.2.7/32 dev lo")
    assert set(host.call(routing.ipv4_addresses)) == {
        ("lo", IPv4Address("127.0.0.1")),
        ("lo", IPv4Address("192.0.2.7")),
    }


def test_a_route_is_there_or_the_kernel_says_why_not(host: Namespace) -> None:
    address = IPv6Address("2001:db8::1")
    assert host.call(routing.why_no_route, address) == "Network is unreachable"
    ip(host, "route add local 2001:db8::/32 dev lo")
    assert host.call(routing.why_no_route, address) is None


def test_bridges_are_told_from_other_interfaces(host: Namespace) -> None:
    assert host.call(routing.bridges) == set()
    ip(host, "link add br0 type bridge", "link add br1 type veth peer name veth1")
    assert host.call(routing.bridges) == {"br0"}
