"""The daemon's own IPv4 connections, which are captured where somebody's rule marks them, and what is not one."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.lab import IdealNat64Lab, Nat64Lab, Port
from tests.lab.daemon import Daemon, Service, dial, echo, expect_refused
from tests.lab.servers import BANNER

RULES = ("-j CONNMARK --restore-mark", "-j MARK --set-mark 1")
IPV4 = ("address add 203.0.113.9/24 dev eth0", "route add default via 203.0.113.1")


@pytest.mark.netns("iptables-nft")
@pytest.mark.parametrize("connect", ["plain", "honest"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_the_daemon_does_not_carry_its_own_connections(
    ideal_lab: IdealNat64Lab, rule: str, workers: int, connect: str
) -> None:
    host = ideal_lab.client
    settings = {"proxy": {"workers": workers, "connect": connect}}
    with Daemon(host, ideal_lab.directory, settings=settings, leaves_kernel_as_found=False) as daemon:
        for command in IPV4:
            host.run(["ip", *command.split()])
        host.run(["iptables-nft", "-t", "mangle", "-A", "OUTPUT", *rule.split()])
        expect_refused(host, Port.ECHO)
        daemon.wait_for_log("WARNING: the daemon's own connection to 198.51.100.10:7 came back to it")
        daemon.wait_for_total("active", 0)
        assert daemon.total("accepted") <= 100, "no more than it takes to come to the worker that knows it"


@pytest.mark.parametrize("connect", ["plain", "honest"])
def test_a_program_is_carried_from_a_port_that_the_daemon_uses_for_another_destination(
    nat64_lab: Nat64Lab, connect: str
) -> None:
    nat64_lab.add_ipv4_to_client()
    host, settings = nat64_lab.client, {"proxy": {"workers": 1, "connect": connect}}
    with Daemon(host, nat64_lab.directory, settings=settings), ExitStack() as stack:
        host.write_sysctl("net.ipv4.ip_local_port_range", "40000 40015")  # each but one taken, by one or the other
        for port in 7 * [Port.ECHO] + 8 * [Port.BANNER]:
            sock = stack.enter_context(dial(host, port))
            if port is Port.BANNER:
                assert sock.recv(len(BANNER)) == BANNER
            echo(sock, b"x")


@pytest.mark.netns("iptables-nft")
@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_programs_whose_packets_somebody_marks_are_carried(
    ideal_lab: IdealNat64Lab, is_static: bool, mode: str
) -> None:
    """A packet with another mark is routed anew (ip_route_me_harder in net/ipv4/netfilter.c)."""
    host = ideal_lab.client
    rule = "-t mangle -A OUTPUT -p tcp -j MARK --set-xmark 0x10000/0xf0000"
    host.run(["iptables-nft", *rule.split()])
    with Service(host, ideal_lab.directory, settings={"rules": {"mode": mode}}, is_static=is_static):
        with dial(host, Port.ECHO) as sock:
            echo(sock, b"x" * 100_000)
