"""Each fault between a gateway and the listener is made on a host that is well, and is the only one found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doctor.patient import Patient, patient, sh
from tests.kernel.bare_host import ip
from tests.lab import Port
from tests.lab.daemon import Tables, dial, echo
from tests.test_gateway import GatewayLab

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "unshare")


@pytest.fixture
def lab() -> Iterator[GatewayLab]:
    """A host with br-test, and a container behind it."""
    with GatewayLab() as made:
        made.start_servers()
        yield made


@pytest.fixture
def redirecting(lab: GatewayLab) -> Iterator[Patient]:
    """That host, with a gateway for br-*."""
    with patient(lab, settings={"scope": {"gateway": ["br-*"]}}) as host:
        yield host


@pytest.fixture
def diverting(lab: GatewayLab) -> Iterator[Patient]:
    """The same in TPROXY mode."""
    lab.route_what_bridges_deliver()
    settings: Tables = {"scope": {"gateway": ["br-*"]}, "rules": {"mode": "tproxy"}}
    with patient(lab, is_static=True, settings=settings) as host:
        yield host


def assert_a_container_gets_out(lab: GatewayLab) -> None:
    with dial(lab.container, Port.ECHO) as sock:
        echo(sock)


def assert_the_remedy_opens(lab: GatewayLab, host: Patient, close: str) -> None:
    assert host.faults() == {}
    sh(host, close)
    with pytest.raises(OSError, match=r"timed out|refused|unreachable"):
        dial(lab.container, Port.ECHO, timeout_s=0.5)
    faults = host.faults()
    assert faults.keys() == {"gateway"}, faults
    host.remedy("gateway")
    assert host.faults() == {}
    assert_a_container_gets_out(lab)


CLOSED = {
    "iptables-nft": "iptables-nft -P INPUT DROP; iptables-nft -A INPUT -i eth0 -j ACCEPT; "
    "iptables-nft -A INPUT -i lo -j ACCEPT",
    "iptables-legacy": "iptables-legacy -P INPUT DROP; iptables-legacy -A INPUT -i lo -j ACCEPT",
    "a last rule": "iptables-nft -A INPUT -i lo -j ACCEPT; iptables-nft -A INPUT -j REJECT",
    "nft": "nft add table inet filter; "
    "nft 'add chain inet filter input { type filter hook input priority 0; policy drop; }'; "
    "nft add rule inet filter input iifname lo accept; nft add rule inet filter input iifname eth0 accept",
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_firewall_that_drops_what_is_redirected_is_opened_by_the_remedy(
    lab: GatewayLab, redirecting: Patient, name: str
) -> None:
    assert_the_remedy_opens(lab, redirecting, CLOSED[name])


@pytest.mark.parametrize("name", CLOSED)
def test_a_firewall_that_drops_what_tproxy_diverts_is_opened_by_the_remedy(
    lab: GatewayLab, diverting: Patient, name: str
) -> None:
    assert_the_remedy_opens(lab, diverting, CLOSED[name])


def remedy(host: Patient) -> str:
    (command,) = [each["remedy"] for each in host.findings() if each["check"] == "gateway"]
    return command


def test_of_ufw_the_remedy_is_its_own_command(redirecting: Patient) -> None:
    sh(redirecting, "iptables-nft -N ufw-user-input; " + CLOSED["iptables-nft"])
    assert remedy(redirecting) == "ufw allow in on br-* to any port 6464 proto tcp"


def test_of_ufw_the_remedy_for_tproxy_is_a_rule_of_its_file(diverting: Patient) -> None:
    sh(diverting, "iptables-nft -N ufw-user-input; " + CLOSED["iptables-nft"])
    rule = "-A ufw-before-input -i br-+ -p tcp -m socket --transparent -j ACCEPT"
    first = "-A ufw-before-input -i lo -j ACCEPT"
    assert remedy(diverting) == f"sed -i '/^{first}/a {rule}' /etc/ufw/before.rules && ufw reload"


def test_a_gateway_interface_without_an_address_is_found(redirecting: Patient) -> None:
    ip(redirecting.host, "address flush dev br-test")
    assert redirecting.faults() == {"gateway": "warn: no interface br-* with an IPv4 address is here"}


def test_bridges_that_ask_rules_are_found_where_tproxy_is_in_vain(lab: GatewayLab, diverting: Patient) -> None:
    assert diverting.faults() == {}
    lab.client.write_sysctl("net.bridge.bridge-nf-call-iptables", 1)
    assert diverting.faults() == {
        "gateway": "fail: net.bridge.bridge-nf-call-iptables is 1: what comes in by a bridge (br-test) "
        "is lost on TPROXY, not on REDIRECT; 0 also ends what container engines filter between containers"
    }
    with pytest.raises(TimeoutError):
        dial(lab.container, Port.ECHO, timeout_s=0.5)
    diverting.remedy("gateway")
    assert diverting.faults() == {}
    assert_a_container_gets_out(lab)


@pytest.mark.parametrize("name", ["all", "br-test"])
def test_marks_that_count_for_sources_are_found_where_tproxy_is_in_vain(
    lab: GatewayLab, diverting: Patient, name: str
) -> None:
    lab.client.write_sysctl(f"net.ipv4.conf.{name}.src_valid_mark", 1)
    sentence = f"net/ipv4/conf/{name}/src_valid_mark is 1: the kernel drops what TPROXY has marked on br-test"
    assert diverting.faults() == {"gateway": f"fail: {sentence}"}
    with pytest.raises(TimeoutError):
        dial(lab.container, Port.ECHO, timeout_s=0.5)
    diverting.remedy("gateway")
    assert diverting.faults() == {}
    assert_a_container_gets_out(lab)


@pytest.mark.parametrize("strictness", [1, 2])
def test_reverse_path_filters_are_no_fault(lab: GatewayLab, diverting: Patient, strictness: int) -> None:
    lab.client.write_sysctl("net.ipv4.conf.all.rp_filter", strictness)
    assert_a_container_gets_out(lab)
    assert diverting.faults() == {}


def test_what_concerns_tproxy_alone_is_no_fault_by_redirect(lab: GatewayLab, redirecting: Patient) -> None:
    for key in ("net.bridge.bridge-nf-call-iptables", "net.ipv4.conf.all.src_valid_mark"):
        lab.client.write_sysctl(key, 1)
    assert_a_container_gets_out(lab)
    assert redirecting.faults() == {}
