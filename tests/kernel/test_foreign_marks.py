"""Where other people's packet rules use marks, and which of them write over ours."""

from __future__ import annotations

import pytest

from tests.kernel import bare_host
from tests.lab import Namespace
from tnat64d.core.marks import Mark
from tnat64d.kernel import firewall, foreign_marks
from tnat64d.kernel.foreign_marks import Packets
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
    "nft add rule ip t c meta mark set meta mark or 0x64": Mark(0x64, 0x64),
    "nft add rule ip t c meta mark { 0x64 } accept": Mark(0x64, ALL),
    "nft add rule ip t c meta mark vmap { 0x64 : accept }": Mark(0x64, ALL),
    "nft add rule ip t c meta mark 0x40-0x7f accept": Mark(0x40, 0xFFFFFFC0),
    "nft 'add set ip t s { type mark; elements = { 0x64 }; }'; nft add rule ip t c meta mark @s accept": Mark(
        0x64, ALL
    ),
}


def run(host: Namespace, script: str) -> None:
    host.run(["sh", "-ec", script])


@pytest.mark.parametrize("rule", MARKS)
def test_marks_are_found_with_their_masks(host: Namespace, rule: str) -> None:
    run(host, f"nft add table ip t; nft add chain ip t c; {rule}")
    program = "nft" if rule.startswith("nft") else f"{rule.split()[0]}-save"
    found = host.call(lambda: list(foreign_marks.uses(firewall.listings())))
    assert [use.mark for use in found if use.program == program] == [MARKS[rule]]


def test_a_comment_is_no_mark(host: Namespace) -> None:
    run(host, "iptables-nft -A OUTPUT -m comment --comment 'not -m mark --mark 0x64 \\\"' -j ACCEPT")
    assert host.call(lambda: list(foreign_marks.uses(firewall.listings()))) == []


@pytest.mark.parametrize("name", ["nftables", *bare_host.BACKENDS])
def test_our_own_rules_are_left_out(host: Namespace, name: str) -> None:
    ruleset = bare_host.ruleset()
    host.call(Installation(bare_host.backend(name)).install, ruleset)
    listings = host.call(firewall.listings)
    assert listings.keys() == {"iptables-nft-save", "iptables-legacy-save", "nft"}
    assert host.call(lambda: list(foreign_marks.uses(listings))) == []


OURS = Packets(Mark(0x6464, 0xFFFF), uid=7)

# Behind OUTPUT of mangle, by both programs.
IPTABLES = {
    "-j MARK --set-mark 1": True,
    "-j MARK --set-xmark 1/1": True,
    "-j MARK --or-mark 0x8": True,
    "-j MARK --or-mark 0x4": False,  # which is set already
    "-j MARK --and-mark 0xffff0000": True,
    "-j MARK --set-xmark 0x10000/0xffff0000": False,  # beside our mask
    "-j MARK --set-mark 0x6464": False,
    "-j CONNMARK --restore-mark": True,
    "-j CONNMARK --restore-mark --mask 0xff0000": False,
    "-j CONNMARK --save-mark": False,
    "-p tcp -d 198.51.100.0/24 -j MARK --set-mark 1": True,
    "-p udp -j MARK --set-mark 1": False,
    "! -p udp -j MARK --set-mark 1": True,
    "-m mark --mark 0x5 -j MARK --set-mark 1": False,
    "-m mark --mark 0/0x80 -j MARK --set-mark 1": True,
    "-m mark ! --mark 0x6464/0xffff -j MARK --set-mark 1": False,
    "-m mark ! --mark 0x6464 -j MARK --set-mark 1": True,  # one with other bits beside our mask
    "-m mark ! --mark 0x5 -j MARK --set-mark 1": True,
    "-m owner --uid-owner 1-6 -j MARK --set-mark 1": False,
    "-m owner --uid-owner 7 -j MARK --set-mark 1": True,
    "-m owner ! --uid-owner 7 -j MARK --set-mark 1": False,
    "-m owner ! --uid-owner 0 -j MARK --set-mark 1": True,
    "-m owner --gid-owner 7 -j MARK --set-mark 1": False,
    "-m mark --mark 0x6464/0xffff -j ACCEPT; PROGRAM -t mangle -A OUTPUT -j MARK --set-mark 1": False,
    "-m mark --mark 0x6464 -j ACCEPT; PROGRAM -t mangle -A OUTPUT -j MARK --set-mark 1": True,
    "-j foreign; PROGRAM -t mangle -A foreign -j MARK --set-mark 1": True,
    "-p udp -j foreign; PROGRAM -t mangle -A foreign -j MARK --set-mark 1": False,
    "-j foreign; PROGRAM -t mangle -A foreign -j other; PROGRAM -t mangle -A other -j MARK --set-mark 1": True,
}


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_a_rule_of_iptables_writes_over_our_mark_or_does_not(host: Namespace, program: str) -> None:
    for rule, writes in IPTABLES.items():
        run(host, f"{program} -t mangle -F; {program} -t mangle -X; {program} -t mangle -N foreign")
        run(host, f"{program} -t mangle -N other")
        run(host, f"{program} -t mangle -A OUTPUT {rule}".replace("PROGRAM", program))
        found = overwriting(host)
        assert (len(found) == 1) is writes, rule
        if writes:
            assert found[0].place.startswith(f"a rule of iptables ({program} -t mangle -A ")
            run(host, found[0].remedy)
            assert overwriting(host) == [], rule


NFT = {
    "meta mark set 1": True,
    "meta mark set ct mark": True,
    "meta mark set ct mark and 0xff": True,
    "meta mark set mark and 0xffff0000": True,
    "meta mark set mark and 0xffff": False,
    "meta mark set mark or 0x4": False,
    "meta mark set mark or 0x8": True,
    "meta mark set mark xor 0x4": True,
    "meta mark set mark and 0xffff or 0x10000": False,
    "meta mark set ip daddr map { 192.0.2.1 : 1 }": True,
    "ip daddr 198.51.100.0/24 tcp dport 443 counter meta mark set 1": True,
    "udp dport 53 meta mark set 1": False,
    "meta l4proto udp meta mark set 1": False,
    "meta l4proto { tcp, udp } meta mark set 1": True,
    "ip protocol != tcp meta mark set 1": False,
    "meta nfproto ipv6 meta mark set 1": False,
    "ip6 daddr 2001:db8::/32 meta mark set 1": False,
    "meta skuid 1-6 meta mark set 1": False,
    "meta skuid { 0, 7 } meta mark set 1": True,
    "meta skuid != 7 meta mark set 1": False,
    "meta skgid 7 meta mark set 1": False,
    "iifname eth0 meta mark set 1": False,
    "meta mark 5 meta mark set 1": False,
    "meta mark { 5, 0x6464 } meta mark set 1": True,
    "meta mark and 0xffff != 0x6464 meta mark set 1": False,
    "meta mark != 0x6464 meta mark set 1": True,
    "meta mark and 0xffff == 0x6464 counter accept; nft add rule inet t c meta mark set 1": False,
    "jump d; nft add rule inet t d meta mark set 1": True,
    "meta l4proto udp jump d; nft add rule inet t d meta mark set 1": False,
}


def test_a_rule_of_nft_writes_over_our_mark_or_does_not(host: Namespace) -> None:
    for rule, writes in NFT.items():
        run(host, f"{nft_chain('route', 'output', -150)}; nft add rule inet t c {quoted(rule)}")
        found = overwriting(host)
        assert (len(found) == 1) is writes, rule
        if writes:
            assert found[0].place.startswith("a rule of nft (table inet t, chain ")
            run(host, found[0].remedy)
            assert overwriting(host) == [], rule


@pytest.mark.parametrize(
    ("kind", "hook", "priority", "is_before"),
    [
        ("route", "output", -150, True),
        ("filter", "output", -300, True),
        ("filter", "output", 0, False),
        ("filter", "prerouting", -150, False),
        ("filter", "postrouting", -150, False),
    ],
)
def test_only_what_comes_before_our_rules_counts(
    host: Namespace, kind: str, hook: str, priority: int, is_before: bool
) -> None:
    run(host, f"{nft_chain(kind, hook, priority)}; nft add rule inet t c meta mark set 1")
    assert bool(overwriting(host)) is is_before


def nft_chain(kind: str, hook: str, priority: int) -> str:
    base = f"{{ type {kind} hook {hook} priority {priority}; policy accept; }}"
    anew = "nft add table inet t; nft delete table inet t; nft add table inet t; nft add chain inet t d"
    return f"{anew}; nft 'add chain inet t c {base}'"


def quoted(rule: str) -> str:
    """The braces of sets are not the shell's."""
    return rule.replace("{", "'{").replace("}", "}'")


def overwriting(host: Namespace) -> list[foreign_marks.Overwriting]:
    return host.call(lambda: list(foreign_marks.overwriting(firewall.listings(), OURS)))
