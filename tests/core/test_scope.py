"""The [scope] table: what its keys mean together, and the rules that come of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from tests.core.test_description import CAPTURE, CONFIG, PORT, chain
from tnat64d.core import settings
from tnat64d.core.config import Network
from tnat64d.core.description import describe
from tnat64d.core.ruleset import Hook, Match, Ruleset, Verdict
from tnat64d.core.scope import Lookup, Place, Program, Scope, honest_places, resolve
from tnat64d.core.settings import Mode, Rules
from tnat64d.errors import ConfigurationError

USERS = {"alice": 1000, "bob": 1001}
GROUPS = {"staff": 50}


def _uid(name: str) -> int:
    if name not in USERS:
        raise ConfigurationError([f"there is no user {name}"])
    return USERS[name]


LOOKUP = Lookup(_uid, GROUPS.__getitem__, lambda unit: f"system.slice/{unit}", lambda: "commands")
NETWORK = Network.of(IPv4Network("203.0.113.0/24"))
HTTPS = (443, 443)


@pytest.fixture(params=Mode)
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


def scope(**table: Any) -> Scope:
    return resolve(settings.Scope(**table), LOOKUP)


def rules(mode: Mode, scope: Scope, device: str = "lo") -> Ruleset:
    return describe(CONFIG, Rules(mode=mode), scope, PORT, device)


def captures(mode: Mode, scope: Scope) -> list[Match]:
    """What is captured, if nothing before has let it pass."""
    found = chain(rules(mode, scope), CAPTURE[mode]).rules
    return [rule.match for rule in found if rule.verdict in (Verdict.REDIRECT, Verdict.MARK_CONNECTION)]


def returns(mode: Mode, scope: Scope) -> list[Match]:
    found = chain(rules(mode, scope), CAPTURE[mode]).rules
    return [rule.match for rule in found if rule.verdict is Verdict.RETURN]


def test_an_empty_table_is_everything() -> None:
    assert scope() == Scope()


def test_every_key_of_programs_adds_to_the_programs() -> None:
    found = scope(users=("alice", "bob"), groups=("staff",), cgroups=("x.slice/y",), units=("z.service",))
    assert found.programs == (
        Program(uid=1000),
        Program(uid=1001),
        Program(gid=50),
        Program(cgroup="x.slice/y"),
        Program(cgroup="system.slice/z.service"),
    )
    assert found.not_programs == ()


def test_every_not_key_of_programs_adds_to_those_left_alone() -> None:
    found = scope(not_users=("bob",), not_groups=("staff",), not_cgroups=("x",), not_units=("z.service",))
    assert found.programs == ()
    assert [program.uid for program in found.not_programs] == [1001, None, None, None]
    assert [program.cgroup for program in found.not_programs] == [None, None, "x", "system.slice/z.service"]


def test_ports_and_networks_must_both_fit() -> None:
    assert scope(ports=("443",)).places == (Place(ports=HTTPS),)
    assert scope(networks=("203.0.113.0/24",)).places == (Place(network=NETWORK),)
    both = scope(ports=("443", "8000-8100"), networks=("203.0.113.0/24",))
    assert both.places == (Place(network=NETWORK, ports=HTTPS), Place(network=NETWORK, ports=(8000, 8100)))


def test_either_of_not_ports_and_not_networks_is_enough() -> None:
    found = scope(not_ports=("443",), not_networks=("203.0.113.0/24",))
    assert set(found.not_places) == {Place(ports=HTTPS), Place(network=NETWORK)}


def test_a_network_without_length_is_one_address() -> None:
    (place,) = scope(networks=("203.0.113.7",)).places
    assert place.network is not None
    assert IPv4Address("203.0.113.7") in place.network
    assert IPv4Address("203.0.113.8") not in place.network


def test_a_name_that_is_not_found_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="no user carol"):
        scope(users=("carol",))


def test_each_program_to_each_place_is_captured_and_nothing_else(mode: Mode) -> None:
    matches = captures(mode, scope(users=("alice", "bob"), ports=("80", "443")))
    assert {(match.uid, match.ports) for match in matches} == {
        (uid, (port, port)) for uid in (1000, 1001) for port in (80, 443)
    }
    assert all(match.begins_connection for match in matches)
    (everything,) = captures(mode, Scope())
    assert everything == Match(begins_connection=True)


def test_what_is_left_alone_returns_before_anything_is_captured(mode: Mode) -> None:
    limited = scope(not_users=("bob",), not_ports=("22",), users=("alice",))
    verdicts = [rule.verdict for rule in chain(rules(mode, limited), CAPTURE[mode]).rules]
    first = min(i for i, v in enumerate(verdicts) if v in (Verdict.REDIRECT, Verdict.MARK_CONNECTION))
    assert Verdict.RETURN not in verdicts[first:]
    left_alone = [replace(match, begins_connection=True) for match in returns(mode, limited)]
    assert Match(uid=1001, begins_connection=True) in left_alone
    assert Match(ports=(22, 22), begins_connection=True) in left_alone


def test_commands_alone_are_all_that_is_captured(mode: Mode) -> None:
    (match,) = captures(mode, scope(exec=True))
    assert match == Match(cgroup="commands", begins_connection=True)


def test_commands_are_captured_before_anybodys_programs_return_and_after_all_destinations_did(mode: Mode) -> None:
    limited = scope(exec=True, users=("alice",), not_users=("bob",), not_ports=("22",), ports=("80",))
    found = chain(rules(mode, limited), CAPTURE[mode]).rules
    matches = [replace(rule.match, begins_connection=True) for rule in found]
    commands = matches.index(Match(cgroup="commands", ports=(80, 80), begins_connection=True))
    not_ports = Match(ports=(22, 22), begins_connection=True)
    not_users = Match(uid=1001, begins_connection=True)
    assert matches.index(not_ports) < commands < matches.index(not_users)
    assert Match(uid=1000, ports=(80, 80), begins_connection=True) in matches[commands:]


def test_behind_a_gateway_the_same_destinations_are_exempt_and_programs_do_not_count() -> None:
    limited = scope(gateway=("docker0", "br-*"), users=("alice",), not_ports=("22",), ports=("80",))
    found = chain(rules(Mode.REDIRECT, limited), Hook.REDIRECT_PREROUTING)
    own = [match for match in returns(Mode.REDIRECT, limited) if match.mark is None and match.uid is None]
    assert [entry.in_device for entry in found.entries] == ["docker0", "br-*"]
    assert [rule.match for rule in found.rules if rule.verdict is Verdict.RETURN] == own
    (captured,) = [rule.match for rule in found.rules if rule.verdict is Verdict.REDIRECT]
    assert (captured.ports, captured.uid, captured.begins_connection) == ((80, 80), None, True)
    assert found.rules[0].match.destination_is_own


def test_without_a_gateway_nothing_that_comes_in_is_looked_at() -> None:
    assert Hook.REDIRECT_PREROUTING not in {chain.hook for chain in rules(Mode.REDIRECT, Scope()).chains}


def test_a_device_of_its_own_answers_instead_of_the_guard() -> None:
    on_device = rules(Mode.REDIRECT, Scope(), "tnat64d")
    assert Hook.GUARD_OUTPUT not in {chain.hook for chain in on_device.chains}
    assert (on_device.route.device, on_device.address.device) == ("tnat64d", "tnat64d")
    assert on_device.address.peer == IPv4Address("192.0.0.1")
    assert rules(Mode.REDIRECT, Scope()).address.peer is None


def test_a_place_holds_what_is_in_both_its_network_and_its_ports() -> None:
    place = Place(network=Network.of(IPv4Network("203.0.113.0/24")), ports=(80, 90))
    assert place.holds(IPv4Address("203.0.113.7"), 90)
    assert not place.holds(IPv4Address("203.0.113.7"), 91)
    assert not place.holds(IPv4Address("198.51.100.7"), 80)
    assert Place().holds(IPv4Address("198.51.100.7"), 0)


def test_connects_are_honest_nowhere_everywhere_or_in_places() -> None:
    assert honest_places(settings.Proxy()) is None
    assert honest_places(settings.Proxy(connect="honest")) == ()
    somewhere = settings.Proxy(connect="honest", honest_ports=("80",))
    assert honest_places(somewhere) == (Place(ports=(80, 80)),)
