"""What is read of ours, and what is found lost."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from tests.kernel.bare_host import BACKENDS, backend, ip, ruleset
from tests.lab import Namespace
from tnat64d.core.settings import Mode
from tnat64d.kernel import standing
from tnat64d.kernel.backends import Backend
from tnat64d.kernel.installation import Installation
from tnat64d.kernel.nftables import PART
from tnat64d.kernel.standing import Standing

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", [*BACKENDS, "nftables"])
def test_all_parts_of_what_was_installed_are_found_and_a_second_time_the_same(
    host: Namespace, name: str, mode: Mode
) -> None:
    installation = Installation(backend(name))
    wanted = ruleset(mode)
    host.call(installation.install, wanted)
    found = host.call(installation.standing, wanted)
    assert set(found) == set(installation.parts(wanted))
    assert all(found.values())
    host.call(installation.install, wanted)
    assert host.call(installation.standing, wanted) == found
    host.call(installation.remove)
    assert host.call(installation.standing, wanted) == {}


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("rule del pref 32768", "the routing rule 32768"),
        ("rule add pref 32769 ipproto tcp lookup 77 proto 64", "the routing rule 32769"),
        ("route replace default dev lo src 127.0.0.1 table 6464 proto 64", "the route of table 6464"),
        ("route flush table 6464", "the route of table 6464"),
    ],
)
def test_a_part_that_is_gone_or_changed_is_lost(host: Namespace, command: str, part: str) -> None:
    wanted = ruleset()
    installation = Installation(backend("nftables"))
    host.call(installation.install, wanted)
    before = host.call(installation.standing, wanted)
    ip(host, command)
    assert standing.lost(before, host.call(installation.standing, wanted)) == (part,)


def read(host: Namespace, chains: Backend) -> Standing:
    return host.call(chains.standing)


@pytest.mark.parametrize(
    "change",
    [
        "flush chain ip tnat64d guard-output",
        "insert rule ip tnat64d redirect-output accept",
        "delete table ip tnat64d",
        "delete rule ip tnat64d redirect-output-rules handle {first}",
    ],
)
def test_whatever_is_changed_in_the_table_is_seen(host: Namespace, change: str) -> None:
    chains = backend("nftables")
    host.call(chains.install, ruleset())
    before = read(host, chains)
    listed = host.run(["nft", "-a", "list", "chain", "ip", "tnat64d", "redirect-output-rules"]).stdout
    first = listed.splitlines()[2].rpartition("handle ")[2]
    host.run(["nft", change.format(first=first)])
    assert standing.lost(before, read(host, chains)) == (PART,)


@pytest.mark.parametrize("program", BACKENDS)
def test_rules_of_others_do_not_count(host: Namespace, program: str) -> None:
    chains = backend(program)
    host.call(chains.install, ruleset())
    before = read(host, chains)
    host.run([program, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT"])
    assert read(host, chains) == before
    host.run([program, "-t", "nat", "-R", "TNAT64D", "1", "-j", "ACCEPT"])
    assert standing.lost(before, read(host, chains)) == ("the chain TNAT64D",)


def test_a_part_that_went_before_it_could_be_read_is_lost_from_the_start() -> None:
    known = standing.incomplete(("a", "b"), {"a": b"1"})
    assert standing.lost(known, {"a": b"1"}) == ("b",)
    assert standing.lost(known, {"a": b"1", "b": b"2"}) == ("b",)


def test_without_rules_of_ours_nothing_is_found(host: Namespace) -> None:
    ip(host, "rule add pref 32769 lookup 77", "route add default dev lo table 6464")
    assert host.call(standing.routing, 6464, IPv4Address("192.0.0.2")) == {}
