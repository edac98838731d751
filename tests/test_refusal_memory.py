"""Refusals that the kernel remembers: in plain mode the second connect() to what failed is told the truth."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Mapping

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Namespace, Port, wait_until
from tests.lab.daemon import Daemon, Service, Tables, dial, echo, expect_reset
from tests.test_gateway import GatewayLab, gateway_lab

__all__ = ["gateway_lab"]

pytestmark = pytest.mark.netns("tayga", "iptables-nft", "iptables-legacy", "nft")

LONG_S, SHORT_S = 60.0, 1.5
WAYS: dict[str, dict[str, Mapping[str, object]]] = {
    "owned": {},
    "tproxy": {"rules": {"mode": "tproxy", "backend": "nftables"}},
}
"""The second is static."""


def settings(memory_s: float, proxy: Mapping[str, object] | None = None, **tables: Mapping[str, object]) -> Tables:
    return {"proxy": {"refusal_memory_s": memory_s, **(proxy or {})}, **tables}


def connect_code(host: Namespace, port: int, address: str = SERVER_V4) -> int:
    with host.socket() as sock:
        sock.settimeout(5.0)
        return sock.connect_ex((address, port))


def wait_until_refused(host: Namespace, port: int = Port.REFUSED) -> int:
    """The kernel is told some milliseconds after the client was reset. How many connections came to the daemon."""
    expect_reset(host, port)
    count = 1

    def is_refused() -> bool:
        nonlocal count
        if connect_code(host, port) == errno.ECONNREFUSED:
            return True
        count += 1
        return False

    wait_until(is_refused, "the kernel refuses")
    return count


def has_set(host: Namespace) -> bool:
    return "set refused" in host.run(["nft", "list", "ruleset"]).stdout


@pytest.mark.parametrize("way", WAYS)
def test_a_destination_that_refused_is_refused_by_the_kernel(ideal_lab: IdealNat64Lab, way: str) -> None:
    host = ideal_lab.client
    with Daemon(host, ideal_lab.directory, settings=settings(LONG_S, **WAYS[way])) as daemon:
        assert daemon.status()["rules"]["way"] == ("owned" if way == "owned" else "static")
        accepted = wait_until_refused(host)
        daemon.wait_for_total("accepted", accepted)
        for _ in range(5):
            assert connect_code(host, Port.REFUSED) == errno.ECONNREFUSED
        assert daemon.total("accepted") == accepted, "they never came to the daemon"
        assert daemon.status()["refused_by_kernel"] == 6
        assert f"{accepted} refused, 6 refused by the kernel itself, 0 reset" in daemon.run("status").stdout
        with dial(host, Port.ECHO) as sock:  # another port of the same address
            echo(sock)
        expect_reset(host, Port.REFUSED, "203.0.113.10")
        daemon.wait_for_total("accepted", accepted + 2)
        assert daemon.status()["rules_restored"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_when_the_time_is_over_the_destination_is_asked_again(ideal_lab: IdealNat64Lab, way: str) -> None:
    host = ideal_lab.client
    with Daemon(host, ideal_lab.directory, settings=settings(SHORT_S, **WAYS[way])):
        wait_until_refused(host)
        with ideal_lab.server.socket(socket.AF_INET6) as server:
            server.bind(("::", Port.REFUSED))
            server.listen()
            assert connect_code(host, Port.REFUSED) == errno.ECONNREFUSED, "not before"
            wait_until(lambda: connect_code(host, Port.REFUSED) == 0, "it is asked again")
            server.settimeout(5.0)
            server.accept()[0].close()


@pytest.mark.alone
@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_waits_for_the_reset_is_told_the_truth_milliseconds_later(
    ideal_lab: IdealNat64Lab, way: str
) -> None:
    host = ideal_lab.client
    with Daemon(host, ideal_lab.directory, settings=settings(LONG_S, **WAYS[way])):
        taken_s = []
        for port in range(1003, 1006):
            begun_at = time.monotonic()
            wait_until_refused(host, port)
            taken_s.append(time.monotonic() - begun_at)
        assert min(taken_s) < 0.1, "the failures of a flood are told after 0.2 s"


def test_a_change_of_the_default_routes_begins_anew(ideal_lab: IdealNat64Lab) -> None:
    host = ideal_lab.client
    with Daemon(host, ideal_lab.directory, settings=settings(LONG_S), leaves_kernel_as_found=False) as daemon:
        wait_until_refused(host)
        ideal_lab.ip("client", "route add ::/0 dev lo metric 4000")
        daemon.wait_for_log("default routes have changed")
        wait_until(lambda: connect_code(host, Port.REFUSED) == 0, "it is asked again")


def test_a_reload_begins_anew_and_can_end_it(ideal_lab: IdealNat64Lab) -> None:
    host = ideal_lab.client
    with Daemon(host, ideal_lab.directory, settings=settings(LONG_S)) as daemon:
        wait_until_refused(host)
        daemon.settings.write_text(daemon.settings.read_text().replace("60.0", "0"))
        assert daemon.run("reload").returncode == 0
        assert not has_set(host)
        expect_reset(host, Port.REFUSED)


def test_unreachable_is_remembered_and_silence_is_not(ideal_lab: IdealNat64Lab) -> None:
    host = ideal_lab.client
    silent = 1010
    ideal_lab.server.run(["ip6tables-nft", "-A", "INPUT", "-p", "tcp", "--dport", str(silent), "-j", "DROP"])
    proxy = {"connect_timeout_s": 0.5, "fallback_delay_s": 0.2}
    with Daemon(host, ideal_lab.directory, settings=settings(LONG_S, proxy)) as daemon:
        for count in (1, 2, 3):  # the third comes long after the first was told
            expect_reset(host, silent)
            daemon.wait_for_total("accepted", count)
        ideal_lab.ip("client", "route add unreachable 2001:db8:64::/96")
        wait_until_refused(host, Port.ECHO)
        ideal_lab.ip("client", "route del unreachable 2001:db8:64::/96")


@pytest.mark.parametrize("is_far", [False, True], ids=["on this host", "in the network"])
def test_prohibited_is_remembered(ideal_lab: IdealNat64Lab, is_far: bool) -> None:
    host = ideal_lab.client
    if is_far:
        reject = ["-p", "tcp", "--dport", str(int(Port.ECHO)), "-j", "REJECT", "--reject-with", "adm-prohibited"]
        ideal_lab.server.run(["ip6tables-nft", "-A", "INPUT", *reject])
    else:
        ideal_lab.ip("client", "route add prohibit 2001:db8:64::/96")
    with Daemon(host, ideal_lab.directory, settings=settings(LONG_S)) as daemon:
        wait_until_refused(host, Port.ECHO)
        daemon.wait_for_log("NAT64: Permission denied")


def test_where_connects_are_honest_the_destination_is_asked_each_time(ideal_lab: IdealNat64Lab) -> None:
    host = ideal_lab.client
    proxy = {"connect": "honest", "honest_ports": ["1-1003"]}
    with Daemon(host, ideal_lab.directory, settings=settings(LONG_S, proxy)) as daemon:
        for count in (1, 2):
            assert connect_code(host, Port.REFUSED) == errno.ECONNREFUSED
            daemon.wait_for_total("held", count)
        wait_until_refused(host, 1004)
        with ideal_lab.server.socket(socket.AF_INET6) as server:
            server.bind(("::", Port.REFUSED))
            server.listen()
            assert connect_code(host, Port.REFUSED) == 0


@pytest.mark.parametrize("way", WAYS)
def test_those_behind_a_gateway_are_told_the_truth_too(gateway_lab: GatewayLab, way: str) -> None:
    if way == "tproxy":
        gateway_lab.route_what_bridges_deliver()
    chosen = settings(LONG_S, scope={"gateway": ["br-test"]}, **WAYS[way])
    with Daemon(gateway_lab.client, gateway_lab.directory, settings=chosen) as daemon:
        accepted = wait_until_refused(gateway_lab.container)
        daemon.wait_for_total("accepted", accepted)
        assert connect_code(gateway_lab.container, Port.REFUSED) == errno.ECONNREFUSED
        assert connect_code(gateway_lab.client, Port.REFUSED) == errno.ECONNREFUSED
        with dial(gateway_lab.container, Port.ECHO) as sock:
            echo(sock)
        assert daemon.total("accepted") == accepted + 1


def test_beside_setup_it_has_no_effect_and_the_log_says_why(ideal_lab: IdealNat64Lab) -> None:
    with Service(ideal_lab.client, ideal_lab.directory, settings=settings(LONG_S)) as service:
        service.daemon.wait_for_log(
            "refusal_memory_s in tnat64d.toml has no effect: it needs rules that the daemon"
        )
        assert not has_set(ideal_lab.client)
        expect_reset(ideal_lab.client, Port.REFUSED)


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_with_iptables_it_has_no_effect_and_the_log_says_why(ideal_lab: IdealNat64Lab, program: str) -> None:
    rules = {"backend": "iptables", "iptables": program}
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=settings(LONG_S, rules=rules)) as daemon:
        daemon.wait_for_log("refusal_memory_s in tnat64d.toml has no effect: the rules are those of iptables")
        assert not has_set(ideal_lab.client)
        expect_reset(ideal_lab.client, Port.REFUSED)
