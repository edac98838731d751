"""What the programs print of other people's rules is understood."""

from __future__ import annotations

import pytest

from tests.lab import Namespace
from tnat64d.kernel import firewall

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")


def run(host: Namespace, script: str) -> None:
    host.run(["sh", "-ec", script])


def test_a_chain_that_drops_is_named_until_a_rule_lets_the_port_in(host: Namespace) -> None:
    run(host, "iptables-nft -P INPUT DROP")
    listings = host.call(firewall.listings)
    assert list(firewall.dropping_inputs(listings)) == ["iptables-nft, table filter, chain INPUT"]
    assert not firewall.accepts(listings, 6464, "br0")
    run(host, "iptables-nft -A INPUT -i br0 -p tcp --dport 6464 -j ACCEPT")
    assert firewall.accepts(host.call(firewall.listings), 6464, "br0")
    assert not firewall.accepts(host.call(firewall.listings), 6464, "docker0")


NFT = "nft add table inet f; nft 'add chain inet f in { type filter hook input priority 0; policy drop; }'; "
OPENING = {
    "iptables-nft -A INPUT -i br+ -p tcp --dport 6464 -j ACCEPT": True,
    "iptables-nft -A INPUT -i br0 -j ACCEPT": True,
    "iptables-nft -N m; iptables-nft -A INPUT -j m; iptables-nft -A m -p tcp --dport 6464 -j ACCEPT": True,
    "iptables-nft -A FORWARD -p tcp --dport 6464 -j ACCEPT": False,
    "iptables-nft -A INPUT -i eth0 -p tcp --dport 6464 -j ACCEPT": False,
    "iptables-nft -A INPUT -p tcp --dport 64640 -j ACCEPT": False,
    NFT + "nft add rule inet f in iifname br0 tcp dport { 22, 6464 } accept": True,
    NFT + "nft add rule inet f in iifname br0 counter accept": True,
    NFT + "nft add rule inet f in iifname eth0 tcp dport 6464 accept": False,
    NFT + "nft add chain inet f out; nft add rule inet f out tcp dport 6464 accept": False,
}


@pytest.mark.parametrize("script", OPENING)
def test_only_what_comes_in_from_the_device_is_let_in(host: Namespace, script: str) -> None:
    run(host, script)
    assert firewall.accepts(host.call(firewall.listings), 6464, "br0") is OPENING[script]


DIVERTING = {
    "iptables-nft -A INPUT -i br+ -p tcp -m socket --transparent -j ACCEPT": True,
    "iptables-legacy -A INPUT -m socket --transparent -j ACCEPT": True,
    "iptables-nft -A INPUT -i eth0 -p tcp -m socket --transparent -j ACCEPT": False,
    "iptables-nft -A INPUT -i br0 -p tcp --dport 6464 -j ACCEPT": False,
    NFT + "nft add rule inet f in iifname br0 socket transparent 1 counter accept": True,
    NFT + "nft add rule inet f in iifname br0 tcp dport 6464 accept": False,
}


@pytest.mark.parametrize("script", DIVERTING)
def test_what_tproxy_diverts_is_let_in_whatever_its_port(host: Namespace, script: str) -> None:
    run(host, script)
    assert firewall.accepts(host.call(firewall.listings), None, "br0") is DIVERTING[script]


def test_a_host_without_rules_drops_nothing(host: Namespace) -> None:
    assert list(firewall.dropping_inputs(host.call(firewall.listings))) == []
