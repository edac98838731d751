"""Address, route and policy rules, beside those of others."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.kernel.bare_host import ip, own_traces, ruleset, run_python, standing
from tests.lab import Namespace
from tnat64d.core.ruleset import Ruleset
from tnat64d.core.settings import Mode
from tnat64d.errors import Tnat64Error, UnavailableError
from tnat64d.kernel import routes

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")

# Under our address, table, priorities and marks, but not ours.
FOREIGN = (
    "address add 192.0.0.2/32 dev lo",
    "address add 192.0.0.3/32 dev lo label lo:other",
    "route add 203.0.113.0/24 dev lo table 6464",
    "route add default dev lo metric 100 table 6464 proto static",
    "route add default dev lo table 6465 proto static",
    "rule add pref 32768 fwmark 0x6464/0xffff unreachable protocol static",
    "rule add pref 32769 ipproto tcp lookup 6464 protocol static",
    "rule add pref 32765 fwmark 0x6465/0xffff lookup 6464",
    "rule add pref 100 from 198.51.100.0/24 lookup 77",
)
FOREIGN_IPV6 = "ip -6 rule add pref 32768 fwmark 0x6464/0xffff unreachable"


def shown(host: Namespace, command: str) -> str:
    return host.run(["ip", "-4", *command.split()]).stdout


def test_installing_and_removing_leaves_what_others_have_as_it_was(host: Namespace, mode: Mode) -> None:
    ip(host, *FOREIGN)
    host.run(FOREIGN_IPV6.split())
    before = standing(host)
    host.call(routes.install, ruleset(mode))
    assert standing(host) != before
    host.call(routes.remove)
    assert standing(host) == before


def test_what_stands_after_installing_is_what_the_commands_would_make(host: Namespace, mode: Mode) -> None:
    before = standing(host)
    wanted = ruleset(mode, table=100, mark=0x10, mark_mask=0xFFFFFFFF, address=IPv4Address("192.0.0.7"))
    host.run(["sh", "-e"], input="\n".join(routes.commands(wanted)))
    expected = standing(host)
    assert expected != before
    host.call(routes.remove)
    assert standing(host) == before
    host.call(routes.install, wanted)
    assert standing(host) == expected


def test_tcp_finds_the_fallback_route_and_a_marked_socket_does_not(host: Namespace) -> None:
    host.call(routes.install, ruleset())
    looked_up = shown(host, "route get 198.51.100.10 ipproto tcp sport 1000 dport 80")
    assert "dev lo table 6464 src 192.0.0.2" in looked_up
    marked = host.run(["ip", "route", "get", "198.51.100.10", "ipproto", "tcp", "mark", "0x6464"], check=False)
    assert "Network is unreachable" in marked.stderr


def test_a_real_ipv4_route_wins_by_itself(host: Namespace) -> None:
    ip(host, "link add eth0 type veth peer name eth1", "addr add 203.0.113.2/24 dev eth0", "link set eth0 up")
    ip(host, "link set eth1 up", "route add default via 203.0.113.1")
    host.call(routes.install, ruleset())
    assert "via 203.0.113.1 dev eth0" in shown(host, "route get 198.51.100.10 ipproto tcp")


def test_installing_again_changes_nothing_and_announces_nothing(host: Namespace, mode: Mode) -> None:
    host.call(routes.install, ruleset(mode))
    before = standing(host)
    with host.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as listener:
        listener.bind((0, 0x10 | 0x40 | 0x80))  # addresses, routes and rules of IPv4: linux/rtnetlink.h
        host.call(routes.install, ruleset(mode))
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(1)
    assert standing(host) == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ruleset(Mode.REDIRECT), ruleset(Mode.TPROXY)),
        (ruleset(Mode.TPROXY), ruleset(Mode.REDIRECT)),
        (ruleset(table=100), ruleset(table=70000)),
        (ruleset(mark=0x10), ruleset(mark=0x20)),
        (ruleset(address=IPv4Address("192.0.0.7")), ruleset(address=IPv4Address("192.0.0.2"))),
    ],
    ids=["to tproxy", "to redirect", "table", "mark", "address"],
)
def test_a_change_leaves_nothing_of_what_was_before(host: Namespace, first: Ruleset, second: Ruleset) -> None:
    host.call(routes.install, second)
    expected = standing(host)
    host.call(routes.remove)
    host.call(routes.install, first)
    assert standing(host) != expected
    host.call(routes.install, second)
    assert standing(host) == expected


@pytest.mark.parametrize(
    "missing",
    [
        "address del 192.0.0.2/32 dev lo",  # takes the route with it
        "route flush table 6464",
        "rule del pref 32768",
        "rule del pref 32769",
        "rule del pref 32765",
    ],
)
def test_what_somebody_removed_is_put_back(host: Namespace, missing: str) -> None:
    host.call(routes.install, ruleset(Mode.TPROXY))
    expected = sorted(own_traces(host))
    ip(host, missing)
    assert sorted(own_traces(host)) != expected
    host.call(routes.install, ruleset(Mode.TPROXY))
    assert sorted(own_traces(host)) == expected


def test_removing_twice_or_for_nothing_changes_nothing(host: Namespace, mode: Mode) -> None:
    before = standing(host)
    host.call(routes.remove)
    assert standing(host) == before
    host.call(routes.install, ruleset(mode))
    host.call(routes.remove)
    host.call(routes.remove)
    assert standing(host) == before


def test_a_default_route_that_somebody_put_before_ours_stays(host: Namespace) -> None:
    host.call(routes.install, ruleset())
    ip(host, "route prepend default dev lo table 6464 proto static")
    host.call(routes.install, ruleset())
    host.call(routes.remove)
    assert shown(host, "route show table 6464").split() == [
        "default",
        "dev",
        "lo",
        "proto",
        "static",
        "scope",
        "link",
    ]


@pytest.mark.parametrize("part", range(4))
def test_what_a_half_finished_setup_left_is_removed(host: Namespace, part: int) -> None:
    before = standing(host)
    wanted = ruleset()
    ip(host, "address add 192.0.0.2/32 dev lo")  # the route needs its source
    host.run(["sh", "-e"], input=routes.commands(wanted)[part].replace("add 192.0.0.2", "add 192.0.0.3"))
    host.call(routes.remove)
    ip(host, "address del 192.0.0.2/32 dev lo")
    assert standing(host) == before


def test_an_address_that_is_there_already_is_used_and_stays(host: Namespace) -> None:
    ip(host, "address add 192.0.0.2/32 dev lo")
    before = shown(host, "address")
    host.call(routes.install, ruleset())
    assert shown(host, "address") == before
    host.call(routes.remove)
    assert shown(host, "address") == before


def test_a_table_with_somebody_elses_default_route_is_refused_with_the_key(host: Namespace, mode: Mode) -> None:
    ip(host, "route add default dev lo table 6464 proto static")
    before = shown(host, "route show table 6464")
    with pytest.raises(Tnat64Error, match=r"table 6464 .* rules\.table"):
        host.call(routes.install, ruleset(mode))
    assert shown(host, "route show table 6464") == before


def test_the_commands_of_a_removal_remove_what_removing_does(host: Namespace, mode: Mode) -> None:
    assert host.call(routes.removal_commands) == []
    ip(host, *FOREIGN)
    before = standing(host)
    host.call(routes.install, ruleset(mode, table=100, mark=0x10, mark_mask=0xFFFFFFFF))
    host.run(["sh", "-e"], input="\n".join(host.call(routes.removal_commands)))
    assert standing(host) == before


def test_where_loopback_is_down_it_says_how_to_mend_that(host: Namespace) -> None:
    ip(host, "link set lo down")
    before = standing(host)
    with pytest.raises(UnavailableError, match="ip link set lo up"):
        host.call(routes.install, ruleset())
    assert standing(host) == before
    host.call(routes.remove)  # which works all the same


@pytest.mark.parametrize("call", ["install(ruleset())", "remove()"])
def test_without_privileges_it_says_so(host: Namespace, call: str) -> None:
    host.call(routes.install, ruleset(table=100))  # for remove to remove, for install to replace
    code = f"""
from tests.kernel.bare_host import ruleset
from tnat64d.errors import PrivilegeError
from tnat64d.kernel.routes import install, remove
try:
    {call}
except PrivilegeError as error:
    print(error)
"""
    assert "CAP_NET_ADMIN" in run_python(host, code, wrapper=["setpriv", "--bounding-set=-net_admin", "--"])


def test_another_refusal_of_the_kernel_is_told_with_its_words(host: Namespace) -> None:
    wanted = ruleset()
    foreign_source = replace(wanted.route, source=IPv4Address("198.51.100.1"))
    with pytest.raises(Tnat64Error, match="Invalid argument"):
        host.call(routes.install, replace(wanted, route=foreign_source))
