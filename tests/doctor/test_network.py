"""Each fault of the network is made on a host that is well, and is the only one found."""

from __future__ import annotations

import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

import pytest

from tests.doctor.patient import SILENCE, Patient, patient, sh
from tests.kernel.bare_host import ip
from tests.lab import CLIENT_V6, ROUTER_V6, SERVER_V4, IdealNat64Lab, Namespace, Port
from tests.lab.daemon import dial, echo
from tnat64d.core.settings import Mode
from tnat64d.doctor.examination import CHECKS

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "unshare")


def test_a_host_that_is_well_has_no_fault(host: Patient) -> None:
    assert host.faults() == {}
    code, text = host.say()
    assert code == 0
    assert text.endswith(f"\nall {len(CHECKS)} checks are ok\n")


def test_a_missing_address_hides_ipv4_and_is_added_by_the_remedy(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, is_static=True) as host:
        ip(host.host, "address flush dev lo to 192.0.0.2")
        faults = host.faults()
        assert faults.keys() == {"address"}
        assert faults["address"].startswith("fail: getaddrinfo() with AI_ADDRCONFIG hides IPv4 addresses")
        host.remedy("address")
        assert host.faults() == {}


def test_a_clat_by_its_process_is_found(host: Patient) -> None:
    program = host.lab.directory / "tayga"
    program.symlink_to("/bin/sleep")
    process = host.host.start([program, "600"])
    assert host.faults() == {"clat": f"warn: tayga (pid {process.pid}) runs here, and may be a CLAT"}
    host.remedy("clat")
    process.wait()
    assert host.faults() == {}


def test_a_clat_by_its_address_is_found_and_removed_by_the_remedy(host: Patient) -> None:
    ip(host.host, "address add 192.0.0.5/32 dev eth0")
    assert host.faults() == {"clat": "warn: eth0 has 192.0.0.5, an address of a CLAT"}
    host.remedy("clat")
    assert host.faults() == {}


def test_a_clat_by_its_interface_is_found_and_removed_by_the_remedy(host: Patient) -> None:
    ip(host.host, "tuntap add dev clat mode tun")
    assert host.faults() == {"clat": "warn: the interface clat may be a CLAT's"}
    host.remedy("clat")
    assert host.faults() == {}


def fill_connection_tracking(host: Namespace, count: int) -> None:
    """One UDP packet to each of `count` addresses of lo; nobody reads them."""
    with host.socket(type=socket.SOCK_DGRAM) as reader, host.socket(type=socket.SOCK_DGRAM) as writer:
        reader.bind(("0.0.0.0", 9))
        for number in range(count):
            address = socket.inet_ntoa(struct.pack("!I", int(IPv4Address("127.1.0.0")) + number))
            writer.sendto(b"", (address, 9))


def test_connection_tracking_that_is_nearly_full_is_found(host: Patient) -> None:
    limit = int(host.host.run(["cat", "/proc/sys/net/netfilter/nf_conntrack_max"]).stdout)
    if limit > 1 << 20:
        pytest.skip(f"this host tracks {limit} connections, too many to fill")
    fill_connection_tracking(host.host, round(limit * 0.95))
    assert host.faults().keys() == {"conntrack"}


def test_a_prefix_without_a_route_is_found(host: Patient) -> None:
    ip(host.host, f"route del ::/0 via {ROUTER_V6}")
    assert host.faults() == {
        "prefix": "fail: no IPv6 route leads to 2001:db8:64::/96: Network is unreachable",
    }
    ip(host.host, f"route add 2001:db8:64::/96 via {ROUTER_V6}")
    assert host.faults() == {}


def test_ipv6_that_is_switched_off_is_found(host: Patient) -> None:
    host.host.write_sysctl("net.ipv6.conf.eth0.disable_ipv6", 1)
    host.host.write_sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    host.host.write_sysctl("net.ipv6.conf.lo.disable_ipv6", 0)  # the name server is there
    assert host.faults() == {"prefix": "fail: IPv6 is switched off"}
    host.remedy("prefix")
    ip(host.host, f"address add {CLIENT_V6}/64 dev eth0", f"route add ::/0 via {ROUTER_V6}")
    assert host.faults() == {}


def test_a_network_without_dns64_is_found(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, answer=None) as host:
        assert host.faults().keys() == {"dns64"}


def test_a_resolver_that_does_not_answer_is_not_waited_for(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, answer=SILENCE) as host:
        assert host.faults() == {
            "dns64": "warn: no DNS64 gives ipv4only.arpa an IPv6 address: no answer within 3 s"
        }


def test_a_dns64_of_another_prefix_is_found_and_the_remedy_names_it(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, answer="64:ff9b::c000:aa") as host:
        found = [each for each in host.findings() if each["level"] != "ok"]
        assert [each["check"] for each in found] == ["dns64"]
        assert found[0]["sentence"].endswith(f" of no prefix of {host.daemon.conf}:1")
        assert host.remedy("dns64").startswith("sed -i '1s|.*|nat64_prefix = 64:ff9b::/96|' ")
        assert host.faults() == {}
        assert host.daemon.status()["summary"].count("64:ff9b::/96") == 1


def test_a_whole_connection_is_tried_where_a_target_is_given(host: Patient) -> None:
    assert host.faults("-t", f"{SERVER_V4}:{Port.HTTP:d}") == {}
    assert host.faults("-t", f"{SERVER_V4}:{Port.REFUSED:d}").keys() == {"connection"}


def test_a_name_without_an_address_is_a_finding_like_others(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, answer=SILENCE) as host:
        faults = host.faults("-t", "nonesuch.example")
        assert faults.keys() == {"dns64", "connection"}
        sentence = "fail: nonesuch.example has no IPv4 address to try: no answer within 3 s"
        assert faults["connection"] == sentence


@pytest.mark.parametrize("mode", Mode)
def test_connections_of_others_do_not_hide_that_one_is_redirected(ideal_lab: IdealNat64Lab, mode: Mode) -> None:
    stop = threading.Event()

    def keep_dialling(host: Patient) -> None:
        while not stop.is_set():
            dial(host.host, Port.ECHO).close()

    with (
        patient(ideal_lab, is_static=True, settings={"rules": {"mode": mode.value}}) as host,
        host.host.socket() as thief,
        ThreadPoolExecutor() as threads,
    ):
        assert host.faults() == {}
        thief.bind(("127.0.0.1", 7777))
        thief.listen()
        sh(host, "iptables-nft -t nat -I OUTPUT -p tcp --dport 443 -j REDIRECT --to-ports 7777")
        dialling = threads.submit(keep_dialling, host)
        try:
            assert host.faults() == {
                "connection": "fail: a connection to 192.0.2.1:443 does not come to the daemon"
            }
        finally:
            stop.set()
        dialling.result()


def test_a_connection_that_somebody_else_redirects_is_found(host: Patient) -> None:
    with host.host.socket() as thief:
        thief.bind(("127.0.0.1", 7777))
        thief.listen()
        sh(host, "iptables-nft -t nat -I OUTPUT -p tcp --dport 443 -j REDIRECT --to-ports 7777")
        assert host.faults() == {"connection": "fail: a connection to 192.0.2.1:443 does not come to the daemon"}


def test_a_connection_that_is_rejected_before_it_is_redirected_is_found(host: Patient) -> None:
    sh(host, "iptables-nft -t mangle -A OUTPUT -p tcp --dport 443 -j DROP")
    assert host.faults().keys() == {"connection"}


@pytest.mark.parametrize("is_static", [False, True])
def test_reverse_path_filters_are_no_fault(ideal_lab: IdealNat64Lab, is_static: bool) -> None:
    """Neither of them, alone or together, keeps a connection from the daemon, so no check looks at them."""
    with patient(ideal_lab, is_static=is_static) as host:
        for key in ("rp_filter", "src_valid_mark"):
            host.host.write_sysctl(f"net.ipv4.conf.all.{key}", 1)
            with dial(host.host, Port.ECHO) as sock:
                echo(sock)
        assert host.faults() == {}
