"""What the programs print of other people's rules is understood."""

from __future__ import annotations

import pytest

from tests.kernel import bare_host
from tests.lab import Namespace
from tnat64d.core.ruleset import Mark
from tnat64d.kernel import firewall
from tnat64d.kernel.installation import Installation

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")

ALL = 0xFFFFFFFF
MARKS = {
    "iptables-nft -t mangle -A OUTPUT -m mark --mark 0x64/0xff -j ACCEPT": Mark(0x64, 0xFF),
    "iptables-nft -t mangle -A OUTPUT -m mark ! --mark 0x64 -j ACCEPT": Mark(0x64, ALL),
    "iptables-legacy -t mangle -A OUTPUT -j MARK --set-xmark 0x64/0xff": Mark(0x64, 0xFF),
    "nft add rule ip t c meta mark 0x64 accept": Mark(0x64, ALL),
    "nft add rule ip t c meta mark and 0xff == 0x64 accept": Mark(0x64, 0xFF),
    "nft add rule ip t c meta mark != 0x64 accept": Mark(0x64, ALL),
    "nft add rule ip t c meta mark set 0x64": Mark(0x64, ALL),
    "nft add rule ip t c meta mark set meta mark and 0xffffff00 or 0x64": Mark(0x64, 0xFF),
}


def run(host: Namespace, script: str) -> None:
    host.run(["sh", "-ec", script])


@pytest.mark.parametrize("rule", MARKS)
def test_marks_are_found_with_their_masks(host: Namespace, rule: str) -> None:
    run(host, f"nft add table ip t; nft add chain ip t c; {rule}")
    program = "nft" if rule.startswith("nft") else f"{rule.split()[0]}-save"
    text = host.call(firewall.listings)[program]
    assert [mark for mark, _ in firewall.marks(text)] == [MARKS[rule]]


@pytest.mark.parametrize("name", ["nftables", *bare_host.BACKENDS])
def test_our_own_rules_are_left_out(host: Namespace, name: str) -> None:
    ruleset = bare_host.ruleset()
    host.call(Installation(bare_host.backend(name)).install, ruleset)
    listings = host.call(firewall.listings)
    assert listings.keys() == {"iptables-nft-save", "iptables-legacy-save", "nft"}
    assert [found for text in listings.values() for found in firewall.marks(text)] == []


def test_a_chain_that_drops_is_named_until_a_rule_lets_the_port_in(host: Namespace) -> None:
    run(host, "iptables-nft -P INPUT DROP")
    listings = host.call(firewall.listings)
    assert list(firewall.dropping_inputs(listings)) == ["iptables-nft, table filter, chain INPUT"]
    assert not firewall.accepts(listings, 6464)
    run(host, "iptables-nft -A INPUT -i br0 -p tcp --dport 6464 -j ACCEPT")
    assert firewall.accepts(host.call(firewall.listings), 6464)


def test_a_host_without_rules_drops_nothing(host: Namespace) -> None:
    assert list(firewall.dropping_inputs(host.call(firewall.listings))) == []
