"""Which rule decides on a packet: the order and the meaning of conditions."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from tnat64d.core import config, description
from tnat64d.core.capture import Packet, decisive_rule
from tnat64d.core.config import Network
from tnat64d.core.ruleset import Match, Verdict
from tnat64d.core.scope import Place, Program, Scope
from tnat64d.core.settings import Mode, Rules

CONFIG = config.parse("local = 10.0.0.0/8\nnat64_prefix = 2001:db8:64::\n", "t.conf")
PACKET = Packet(
    destination=IPv4Address("198.51.100.10"),
    port=443,
    is_own=False,
    uid=33,
    gid=44,
    cgroup="system.slice/web.service",
)
NETWORK = Network.of(IPv4Network("198.51.100.0/24"))
OTHER = Network.of(IPv4Network("203.0.113.0/24"))

CAPTURED = {Mode.REDIRECT: Verdict.REDIRECT, Mode.TPROXY: Verdict.MARK_CONNECTION}


def decided(
    packet: Packet, scope: Scope | None = None, mode: Mode = Mode.REDIRECT
) -> tuple[Verdict, Match] | None:
    rule = decisive_rule(description.describe(CONFIG, Rules(mode=mode), scope or Scope(), 6464), packet)
    return None if rule is None else (rule.verdict, rule.match)


@pytest.mark.parametrize("mode", Mode)
def test_without_a_scope_every_program_is_captured(mode: Mode) -> None:
    assert decided(PACKET, mode=mode) == (CAPTURED[mode], Match(begins_connection=True))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1", "169.254.1.1", "255.255.255.255", "224.0.0.1"])
def test_local_networks_return(mode: Mode, address: str) -> None:
    decision = decided(replace(PACKET, destination=IPv4Address(address)), mode=mode)
    assert decision is not None
    verdict, match = decision
    assert verdict is Verdict.RETURN
    assert match.destination is not None
    assert IPv4Address(address) in match.destination


def test_an_address_of_the_host_itself_returns_before_all_else() -> None:
    packet = replace(PACKET, is_own=True, destination=IPv4Address("10.0.0.1"))
    assert decided(packet) == (Verdict.RETURN, Match(destination_is_own=True))


@pytest.mark.parametrize(
    ("scope", "match"),
    [
        (Scope(not_programs=(Program(uid=33),)), Match(uid=33)),
        (Scope(not_programs=(Program(gid=44),)), Match(gid=44)),
        (Scope(not_programs=(Program(cgroup="system.slice"),)), Match(cgroup="system.slice")),
        (Scope(not_places=(Place(ports=(440, 443)),)), Match(ports=(440, 443))),
        (Scope(not_places=(Place(network=NETWORK),)), Match(destination=NETWORK)),
        (Scope(programs=(Program(uid=33),), not_programs=(Program(gid=44),)), Match(gid=44)),
    ],
)
def test_what_a_scope_excludes_returns(scope: Scope, match: Match) -> None:
    assert decided(PACKET, scope) == (Verdict.RETURN, match)


@pytest.mark.parametrize(
    "scope",
    [
        Scope(programs=(Program(uid=34),)),
        Scope(programs=(Program(gid=45),)),
        Scope(programs=(Program(cgroup="system.slice/web"),)),
        Scope(programs=(Program(cgroup="system.slice/web.service/below"),)),
        Scope(places=(Place(ports=(444, 500)),)),
        Scope(places=(Place(network=OTHER),)),
        Scope(places=(Place(network=NETWORK, ports=(80, 80)),)),
    ],
)
def test_what_a_scope_does_not_include_meets_no_rule(scope: Scope) -> None:
    assert decided(PACKET, scope) is None


@pytest.mark.parametrize(
    ("scope", "match"),
    [
        (Scope(programs=(Program(uid=1), Program(uid=33))), Match(uid=33)),
        (Scope(programs=(Program(cgroup="system.slice"),)), Match(cgroup="system.slice")),
        (Scope(programs=(Program(cgroup=PACKET.cgroup),)), Match(cgroup=PACKET.cgroup)),
        (
            Scope(programs=(Program(uid=33),), places=(Place(network=NETWORK, ports=(443, 443)),)),
            Match(uid=33, destination=NETWORK, ports=(443, 443)),
        ),
    ],
)
def test_what_a_scope_includes_is_captured(scope: Scope, match: Match) -> None:
    assert decided(PACKET, scope) == (Verdict.REDIRECT, replace(match, begins_connection=True))


def test_a_port_that_is_not_known_fits_no_condition_on_ports() -> None:
    unknown = replace(PACKET, port=0)
    assert decided(unknown, Scope(places=(Place(ports=(1, 65535)),))) is None
    everything = (Verdict.REDIRECT, Match(begins_connection=True))
    assert decided(unknown, Scope(not_places=(Place(ports=(1, 65535)),))) == everything
