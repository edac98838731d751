"""Which route the kernel names, for whom and for what."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.kernel.bare_host import ip
from tests.lab import Namespace
from tests.proxy.peer import descriptors_left
from tnat64d.core.facts import RouteFound
from tnat64d.core.ruleset import ROUTE_PROTOCOL
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.route_lookup import look_up

pytestmark = pytest.mark.netns()

SERVER = IPv4Address("198.51.100.10")
UP = (
    "link set lo up",
    "link add eth0 type veth peer name peer0",
    "link set eth0 addrgenmode none up",
    "link set peer0 up",
)
V4 = ("addr add 203.0.113.2/24 dev eth0", "route add default via 203.0.113.1")


def test_without_a_route_it_is_an_error(host: Namespace) -> None:
    assert host.call(look_up, SERVER) == RouteFound(error=errno.ENETUNREACH)
    assert host.call(look_up, IPv6Address("2001:db8::1")) == RouteFound(error=errno.ENETUNREACH)


def test_a_route_is_shown_as_ip_does_with_its_table(host: Namespace) -> None:
    ip(host, *UP, *V4, "addr add 2001:db8:1::2/64 dev eth0 nodad", "route add 2001:db8:64::/96 via 2001:db8:1::1")
    assert host.call(look_up, SERVER).text == "default via 203.0.113.1 dev eth0 table main"
    assert (
        host.call(look_up, IPv4Address("203.0.113.7")).text == "203.0.113.0/24 dev eth0 src 203.0.113.2 table main"
    )
    nat64 = host.call(look_up, IPv6Address("2001:db8:64::c633:640a"))
    assert nat64.text == "2001:db8:64::/96 via 2001:db8:1::1 dev eth0 table main"
    assert not nat64.is_own


def test_an_address_of_the_host_is_told_apart(host: Namespace) -> None:
    ip(
        host,
        *UP,
        *V4,
        "route add local default dev lo table 6464",
        "rule add pref 1 ipproto tcp dport 99 lookup 6464",
    )
    assert host.call(look_up, IPv4Address("203.0.113.2")).is_own
    assert host.call(look_up, IPv4Address("127.0.0.1")).is_own
    assert not host.call(look_up, SERVER).is_own
    of_tproxy = host.call(lambda: look_up(SERVER, port=99))
    assert of_tproxy.text == "default dev lo table 6464"
    assert not of_tproxy.is_own


def test_protocol_mark_port_and_user_choose_the_rule(host: Namespace) -> None:
    rules = {
        1: "ipproto tcp fwmark 0x6464/0xffff",
        2: "ipproto tcp dport 25",
        3: "uidrange 33-33",
        4: "ipproto udp",
    }
    ip(
        host,
        *UP,
        *V4,
        *(f"rule add pref {number} {rule} lookup {100 + number}" for number, rule in rules.items()),
        *(f"route add default dev eth0 table {100 + number} proto {ROUTE_PROTOCOL}" for number in rules),
    )

    def table(port: int = 0, mark: int = 0, uid: int = 0) -> str:
        return host.call(lambda: look_up(SERVER, port=port, mark=mark, uid=uid)).text.split()[-1]

    assert table(mark=0x6464) == "101"
    assert table(port=25) == "102"
    assert table(uid=33) == "103"
    assert table(port=80) == "main"
    assert host.call(lambda: look_up(SERVER, uid=33)).protocol == ROUTE_PROTOCOL


def test_routes_that_refuse_are_the_errors_that_connect_would_give(host: Namespace) -> None:
    ip(host, *UP, "route add unreachable 192.0.2.0/24", "route add prohibit 203.0.113.0/24")
    assert host.call(look_up, IPv4Address("192.0.2.1")).error == errno.EHOSTUNREACH
    assert host.call(look_up, IPv4Address("203.0.113.1")).error == errno.EACCES


def test_a_gateway_of_the_other_family_and_several_gateways_are_shown(host: Namespace) -> None:
    ip(
        host,
        *UP,
        *V4,
        "route add 192.0.2.0/24 via inet6 fe80::1 dev eth0",
        "route add 198.51.100.0/24 nexthop via 203.0.113.5 nexthop via 203.0.113.6",
    )
    assert host.call(look_up, IPv4Address("192.0.2.1")).text == "192.0.2.0/24 via fe80::1 dev eth0 table main"
    assert host.call(look_up, SERVER).text == "198.51.100.0/24 via several gateways table main"


def test_no_descriptor_is_an_error_with_a_sentence() -> None:
    with (
        descriptors_left(0),
        pytest.raises(Tnat64Error, match=f"the kernel does not tell its route to {SERVER}: "),
    ):
        look_up(SERVER)
