"""From a captured destination to everything that dialling it takes."""

from __future__ import annotations

import socket
import struct

import pytest

from tnat64d.core.config import Way, parse
from tnat64d.core.settings import StickyScope
from tnat64d.kernel.original_dst import Destination
from tnat64d.proxy import destination as destination_module
from tnat64d.proxy.destination import Destinations, Target

CONFIG = parse(
    """
    local = 10.0.0.0/8
    nat64_prefix = 2001:db8:64::
    path {
        subnet = 203.0.113.0:443/24
        nat64_prefix = 2001:db8:65::
    }
    """,
    "test",
)
LISTENER = ("192.0.2.200", 6464)


class World:
    """Destinations by one scope, and which of them no prefix carries."""

    def __init__(self, scope: StickyScope = StickyScope.GLOBAL) -> None:
        self.unmapped: list[Destination] = []
        self.destinations = Destinations(
            CONFIG, scope, LISTENER, lambda target: self.unmapped.append(target.destination)
        )

    def target(self, address: str, port: int = 80) -> Target:
        target = self.destinations.resolve((address, port))
        assert target is not None
        return target


@pytest.fixture
def world() -> World:
    """With the global scope."""
    return World()


def sockaddr_in(address: str, port: int) -> bytes:
    """As the kernel returns it (ip(7))."""
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(address))


@pytest.mark.parametrize("captured", [sockaddr_in("198.51.100.10", 8080), ("198.51.100.10", 8080)])
def test_both_forms_of_a_captured_destination_give_its_two_addresses(
    world: World, captured: bytes | Destination
) -> None:
    target = world.destinations.resolve(captured)
    assert target is not None
    assert target.destination == ("198.51.100.10", 8080)
    assert target.nat64 == ("2001:db8:64::c633:640a", 8080)
    assert target.way is Way.NAT64


def test_the_port_decides_too(world: World) -> None:
    assert world.target("203.0.113.1", 443).nat64 == ("2001:db8:65::cb00:7101", 443)
    assert world.target("203.0.113.1", 80).nat64 == ("2001:db8:64::cb00:7101", 80)


def test_a_local_destination_has_no_second_address(world: World) -> None:
    target = world.target("10.1.2.3")
    assert (target.way, target.nat64) == (Way.LOCAL, None)


@pytest.mark.parametrize("captured", [LISTENER, sockaddr_in(*LISTENER), ("127.0.0.1", 80), ("127.9.9.9", 1)])
def test_what_leads_back_to_the_listener_is_nobodys_destination(
    world: World, captured: bytes | Destination
) -> None:
    assert world.destinations.resolve(captured) is None
    assert world.destinations.resolve(captured) is None, "nor when asked again"


def test_another_port_of_the_listeners_address_is_a_destination(world: World) -> None:
    assert world.target(LISTENER[0], 80).destination == (LISTENER[0], 80)


def test_under_the_global_scope_all_destinations_share_one_state() -> None:
    world = World(StickyScope.GLOBAL)
    assert len({world.target(*where).scope for where in SOME}) == 1


def test_under_the_prefix_scope_those_of_a_prefix_share_one_state() -> None:
    world = World(StickyScope.PREFIX)
    scopes = [world.target(*where).scope for where in SOME]
    assert scopes[0] == scopes[1] == scopes[2]
    assert scopes[3] != scopes[0]


def test_under_the_destination_scope_the_ports_of_an_address_share_one_state() -> None:
    world = World(StickyScope.DESTINATION)
    scopes = [world.target(*where).scope for where in SOME]
    assert scopes[0] == scopes[1]
    assert scopes[2] == scopes[3]
    assert scopes[0] != scopes[2]


SOME = [("198.51.100.1", 80), ("198.51.100.1", 443), ("203.0.113.1", 80), ("203.0.113.1", 443)]


def test_an_answer_is_worked_out_once(world: World) -> None:
    assert world.target("198.51.100.1") is world.target("198.51.100.1")


def test_no_more_answers_are_remembered_than_promised(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination_module, "REMEMBERED", 10)
    for port in range(1, 100):
        world.target("198.51.100.1", port)
        assert len(world.destinations._targets) <= 10


def test_a_destination_that_no_prefix_carries_is_told_once_for_each_configuration() -> None:
    world = World()
    world.destinations.use(parse("local = 10.0.0.0/8", "test"), StickyScope.GLOBAL)
    for _ in range(3):
        assert world.target("198.51.100.1").way is Way.NONE
        world.target("10.0.0.1")
    assert world.unmapped == [("198.51.100.1", 80)]
    world.destinations.use(CONFIG, StickyScope.GLOBAL)
    assert world.target("198.51.100.1").way is Way.NAT64
    world.destinations.use(parse("", "test"), StickyScope.GLOBAL)
    world.target("198.51.100.1")
    assert world.unmapped == [("198.51.100.1", 80)] * 2


@pytest.mark.netns
@pytest.mark.usefixtures("inside_ways")
def test_a_listener_on_every_address_knows_the_hosts_own_ones() -> None:
    destinations = Destinations(CONFIG, StickyScope.GLOBAL, ("0.0.0.0", 6464), lambda target: None)
    assert destinations.resolve(("192.0.2.1", 6464)) is None
    assert destinations.resolve(("192.0.2.1", 6465)) is not None
    assert destinations.resolve(("198.51.100.1", 6464)) is not None
