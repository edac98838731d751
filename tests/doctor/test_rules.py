"""Each fault in the kernel's rules is made on a host that is well, and is the only one found."""

from __future__ import annotations

import pytest

from tests.doctor.patient import Patient, patient, sh
from tests.kernel.bare_host import ip
from tests.lab import IdealNat64Lab
from tests.lab.daemon import Tables

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "unshare")

STATIC: dict[str, Tables] = {
    "nftables": {"rules": {"backend": "nftables"}},
    "iptables-nft": {"rules": {"backend": "iptables", "iptables": "iptables-nft"}},
    "iptables-legacy": {"rules": {"backend": "iptables", "iptables": "iptables-legacy"}},
    "tproxy": {"rules": {"mode": "tproxy"}},
}


@pytest.mark.parametrize("way", STATIC)
def test_static_rules_are_well(ideal_lab: IdealNat64Lab, way: str) -> None:
    with patient(ideal_lab, is_static=True, settings=STATIC[way]) as host:
        assert host.faults() == {}


@pytest.mark.parametrize("is_static", [False, True], ids=["up", "setup"])
@pytest.mark.parametrize("way", ["nftables", "tproxy"])
def test_rules_are_well_with_refusals_remembered_or_not(
    ideal_lab: IdealNat64Lab, way: str, is_static: bool
) -> None:
    """Only those of `up` do; with TPROXY they are static, too."""
    settings: Tables = {**STATIC[way], "proxy": {"refusal_memory_s": 5}}
    with patient(ideal_lab, is_static=is_static, settings=settings) as host:
        assert host.faults() == {}


@pytest.mark.parametrize(
    "command", ["rule del pref 32768", "rule del pref 32769", "route flush table 6464"], ids=lambda text: text
)
def test_a_missing_part_of_the_routing_is_added_by_the_remedy(ideal_lab: IdealNat64Lab, command: str) -> None:
    with patient(ideal_lab, is_static=True) as host:
        ip(host.host, command)
        faults = host.faults()
        assert faults.keys() == {"rules"}
        assert faults["rules"].startswith("fail: missing of our routing: r")
        host.remedy("rules")
        assert host.faults() == {}


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
def test_a_flushed_chain_is_filled_by_the_remedy(ideal_lab: IdealNat64Lab, backend: str) -> None:
    with patient(ideal_lab, is_static=True, settings=STATIC[backend]) as host:
        host.host.run([backend, "-t", "nat", "-F", "OUTPUT"])
        sentence = f"fail: gone, or not as both files say: the jump to TNAT64D ({backend})"
        assert host.faults() == {"rules": sentence}
        host.remedy("rules")
        assert host.faults() == {}


GUTTED = {
    "nftables": "nft flush chain ip tnat64d redirect-output-rules",
    "iptables-nft": "iptables-nft -t nat -F TNAT64D",
    "iptables-legacy": "iptables-legacy -t nat -F TNAT64D",
}


@pytest.mark.parametrize("backend", GUTTED)
def test_a_chain_without_its_rules_is_filled_by_the_remedy(ideal_lab: IdealNat64Lab, backend: str) -> None:
    with patient(ideal_lab, is_static=True, settings=STATIC[backend]) as host:
        sh(host, GUTTED[backend])
        assert host.faults()["rules"].startswith("fail: gone, or not as both files say: the ")
        host.remedy("rules")
        assert host.faults() == {}


def test_a_flushed_ruleset_is_made_again_by_the_remedy(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, is_static=True, settings=STATIC["nftables"]) as host:
        host.host.run(["nft", "flush", "ruleset"])
        assert host.faults() == {"rules": "fail: no rules stand: the daemon gets no connections"}
        host.remedy("rules")
        assert host.faults() == {}


def test_our_rules_in_two_backends_are_found(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, is_static=True, settings=STATIC["nftables"]) as host:
        saved = "*nat\n:TNAT64D - [0:0]\n-A OUTPUT -j TNAT64D\nCOMMIT\n"
        host.host.run(["iptables-nft-restore", "--noflush"], input=saved)
        found = host.faults()
        assert found == {
            "rules": "fail: rules of ours stand in nftables and in iptables-nft: a packet meets them twice"
        }
        host.remedy("rules")


def test_rules_without_a_daemon_are_found_beside_the_daemon(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, is_started=False) as host:
        host.daemon.run("setup", "-f", str(host.daemon.conf))
        assert host.faults().keys() == {"daemon", "rules"}
        host.remedy("rules")
        assert host.faults().keys() == {"daemon"}


def test_nat_rules_of_both_iptables_are_found_and_moved_by_the_remedy(host: Patient) -> None:
    for program, port in (("iptables-nft", "1111"), ("iptables-legacy", "2222")):
        rule = f"-t nat -A OUTPUT -p tcp --dport {port} -j REDIRECT --to-ports 9"
        host.host.run([program, *rule.split()])
    assert host.faults() == {
        "backends": "warn: this host's NAT rules are in iptables-legacy and in iptables-nft: a packet meets both"
    }
    host.remedy("backends")
    assert host.faults() == {}
    saved = host.host.run(["iptables-nft-save", "-t", "nat"]).stdout
    assert "1111" in saved
    assert "2222" in saved


MARKING = {
    "ip rule": "ip rule add pref 100 fwmark 0x64/0xff lookup 100",
    "iptables-nft": "iptables-nft -t mangle -A OUTPUT -m mark --mark 0x6464 -j ACCEPT",
    "iptables-legacy": "iptables-legacy -t mangle -A OUTPUT -p udp -j MARK --set-mark 0x6464",
    "nft": "nft add table inet t; nft add chain inet t c; nft add rule inet t c meta mark 0x6464 accept",
    "nft in a set": "nft add table ip t; nft add chain ip t c; nft add rule ip t c meta mark { 1, 0x6464 } accept",
    "nft in a range": "nft add table ip t; nft add chain ip t c; nft add rule ip t c meta mark 0x6000-0x7000",
    "nft set": "nft add table ip t; nft add chain ip t c; nft add rule ip t c meta mark set 0x6464",
}


@pytest.mark.parametrize("name", MARKING)
def test_somebody_elses_use_of_our_mark_is_found_once(host: Patient, name: str) -> None:
    sh(host, MARKING[name])
    found = [each for each in host.findings() if each["level"] != "ok"]
    assert [each["check"] for each in found] == ["marks"]
    assert "set rules.mark" in found[0]["remedy"]


OVERWRITING = {
    "iptables-nft": "iptables-nft -t mangle -A OUTPUT -j MARK --set-mark 0x1",
    "iptables-legacy": "iptables-legacy -t mangle -A OUTPUT -p tcp -j CONNMARK --restore-mark",
    "nft": "nft add table ip t; nft 'add chain ip t c { type route hook output priority mangle; }'; "
    "nft add rule ip t c meta mark set 1",
}


@pytest.mark.parametrize("mode", ["owned", "iptables-nft", "nftables"])
@pytest.mark.parametrize("name", OVERWRITING)
def test_whoever_writes_over_our_mark_is_found_and_let_past_by_the_remedy(
    ideal_lab: IdealNat64Lab, name: str, mode: str
) -> None:
    with patient(ideal_lab, is_static=mode != "owned", settings=STATIC.get(mode)) as host:
        sh(host, OVERWRITING[name])
        (found,) = [each for each in host.findings() if each["level"] != "ok"]
        assert (found["check"], found["level"]) == ("marks", "warn")
        assert found["sentence"].endswith(" writes over our mark 0x6464/0xffff before our rules see it")
        host.remedy("marks")
        assert host.faults() == {}


def test_other_marks_are_left_alone(host: Patient) -> None:
    host.host.run(["ip", "rule", "add", "pref", "100", "fwmark", "0xca6c", "lookup", "100"])
    sh(host, "iptables-nft -t mangle -A OUTPUT -m mark --mark 0x1/0xff00 -j ACCEPT")
    assert host.faults() == {}


def test_in_tproxy_mode_whoever_restores_whole_marks_is_found(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, is_static=True, settings=STATIC["tproxy"]) as host:
        sh(host, "iptables-nft -t mangle -A PREROUTING -j CONNMARK --restore-mark")
        assert host.faults().keys() == {"marks"}


@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit"])
def test_a_default_route_that_refuses_is_found_and_deleted_by_the_remedy(host: Patient, kind: str) -> None:
    ip(host.host, f"route add {kind} default metric 4278198272")
    assert host.faults() == {
        "default": f"fail: an IPv4 route answers before ours is asked: {kind} default table 254"
    }
    host.remedy("default")
    assert host.faults() == {}
