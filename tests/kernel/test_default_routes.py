"""What counts as a change of the default routes and what does not, announced by a real kernel on both loops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop

from tests.kernel.bare_host import ip, ruleset
from tests.lab import Lab, Namespace
from tests.proxy.peer import descriptors_left
from tnat64d.core.settings import Mode
from tnat64d.kernel import routes
from tnat64d.kernel.default_routes import DefaultRouteMonitor, default_routes

pytestmark = pytest.mark.netns()

TIMEOUT_S = 5
V4 = "route add default via 203.0.113.1"
V6 = "route add ::/0 via 2001:db8:1::1"
A_CHANGE = "route add default dev lo table 4711"

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

CHANGES = {
    "an IPv4 route appears": ([], [V4]),
    "an IPv6 route appears": ([], [V6]),
    "an IPv4 route goes": ([V4], ["route del default"]),
    "an IPv6 route goes": ([V6], ["route del ::/0"]),
    "another gateway": ([V4], ["route replace default via 203.0.113.5"]),
    "another IPv6 gateway": ([V6], ["route replace ::/0 via 2001:db8:1::5"]),
    "a second route": ([V4], [f"{V4} metric 7"]),
    "another table": ([V4], [f"{V4} table 77"]),
    "a route of type unreachable": ([V4], ["route add unreachable default metric 1"]),
    "one of several gateways": (
        ["route add default nexthop via 203.0.113.1 nexthop via 192.0.2.1"],
        ["route replace default nexthop via 203.0.113.5 nexthop via 192.0.2.1"],
    ),
    "an IPv6 gateway of an IPv4 route": (
        ["route add 0.0.0.0/0 via inet6 fe80::1 dev eth0"],
        ["route replace 0.0.0.0/0 via inet6 fe80::5 dev eth0"],
    ),
    "a next hop object": (
        ["nexthop add id 1 via 203.0.113.1 dev eth0", "route add default nhid 1"],
        ["nexthop replace id 1 via 203.0.113.5 dev eth0"],
    ),
    "its link goes down": ([V4], ["link set eth0 down"]),
    "the link of an IPv6 route goes down": ([V6], ["link set eth0 down"]),
    "its last address goes": ([V4], ["addr del 203.0.113.2/24 dev eth0"]),
    "all addresses go": ([V4], ["addr flush dev eth0"]),
    "its device is deleted": ([V4], ["link del eth0"]),
    "the device of an IPv6 route is deleted": ([V6], ["link del eth0"]),
}
NOISE = {
    "other routes": [
        "route add 198.51.100.0/24 via 203.0.113.1",
        "route del 198.51.100.0/24",
        "route add 2001:db8:9::/64 via 2001:db8:1::1",
        "route del 2001:db8:9::/64",
    ],
    "a router advertisement as before, with a new lifetime": [
        "route change ::/0 via 2001:db8:1::1 dev eth0 expires 900",
        "route change ::/0 via 2001:db8:1::1 dev eth0 expires 1800",
    ],
    "the same route again": ["route replace default via 203.0.113.1"],
    "an interface that changes": [
        "link set eth0 mtu 1400",
        "link set eth0 promisc on",
        "link set eth0 promisc off",
    ],
    "an interface without default routes": ["link set eth1 down", "link set eth1 up", "link del eth1"],
    "addresses that are not the last": [
        "addr add 203.0.113.3/24 dev eth0",
        "addr del 203.0.113.3/24 dev eth0",
        "addr add 2001:db8:1::3/64 dev eth0",
        "addr del 2001:db8:1::3/64 dev eth0",
    ],
    "a default route of ours": [
        "route add default dev lo table 6464 proto 64",
        "route del default dev lo table 6464 proto 64",
    ],
    "policy rules and neighbours": [
        "rule add pref 99 lookup 77",
        "rule del pref 99",
        "neigh add 203.0.113.9 lladdr 02:00:00:00:00:01 dev eth0",
    ],
}


class Uplinks(Lab):
    """A host with two links up, the first with addresses of both families."""

    roles = ("host",)

    def build(self) -> None:
        """Each link ends on the host itself."""
        self.ip(
            "host",
            "link add eth0 type veth peer name eth0p",
            "link add eth1 type veth peer name eth1p",
            *(f"link set {device} up" for device in ("eth0p", "eth1p", "eth0", "eth1")),
            "addr add 203.0.113.2/24 dev eth0",
            "addr add 2001:db8:1::2/64 dev eth0",
            "addr add 192.0.2.2/24 dev eth1",
        )


@pytest.fixture
def host() -> Iterator[Namespace]:
    """See `Uplinks`; instead of the bare host of other tests."""
    with Uplinks() as lab:
        yield lab.namespaces["host"]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    """Each loop that the daemon can be set to."""
    factory: LoopFactory = request.param
    return factory


class Watch:
    """A monitor on `host`, and how often it called."""

    def __init__(self, host: Namespace) -> None:
        self.host = host
        self.changes = 0
        self._changed = asyncio.Event()
        self.monitor = DefaultRouteMonitor(asyncio.get_running_loop(), self._count)

    def _count(self) -> None:
        self.changes += 1
        self._changed.set()

    async def ip(self, *commands: str) -> None:
        """Run ip(8) commands; what they announced has been looked at when this returns."""
        await asyncio.to_thread(ip, self.host, *commands)
        await self.turn_loop()

    async def turn_loop(self) -> None:
        """The kernel queues announcements before a command ends: let the loop find them."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def change(self) -> None:
        """Wait for the next call."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._changed.wait()
        self._changed.clear()


def run(host: Namespace, loop_factory: LoopFactory, scenario: Callable[[Watch], Awaitable[None]]) -> None:
    """Run `scenario` on a loop whose thread is on `host`, as the monitor makes sockets whenever it looks."""

    async def main() -> None:
        watch = Watch(host)
        try:
            await scenario(watch)
        finally:
            watch.monitor.close()

    def in_host() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())

    host.call(in_host)


@pytest.mark.parametrize(("before", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_told(
    host: Namespace, loop_factory: LoopFactory, before: list[str], change: list[str]
) -> None:
    async def scenario(watch: Watch) -> None:
        await watch.ip(*change)
        await watch.change()

    ip(host, *before)
    run(host, loop_factory, scenario)


def test_a_link_that_goes_down_is_told_where_there_is_no_ipv6(host: Namespace, loop_factory: LoopFactory) -> None:
    async def scenario(watch: Watch) -> None:
        await watch.ip("link set eth0 down")  # announces no address that goes, as IPv6 would
        await watch.change()

    host.write_sysctl("net.ipv6.conf.eth0.disable_ipv6", 1)
    ip(host, V4)
    run(host, loop_factory, scenario)


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_what_is_no_change_is_not_told(host: Namespace, loop_factory: LoopFactory, noise: list[str]) -> None:
    async def scenario(watch: Watch) -> None:
        for command in noise:
            await watch.ip(command)
        assert watch.changes == 0
        await watch.ip(A_CHANGE)  # and it has been listening
        await watch.change()
        assert watch.changes == 1

    ip(host, V4, f"{V6} dev eth0 expires 600")
    run(host, loop_factory, scenario)


@pytest.mark.parametrize("mode", Mode)
def test_our_own_setup_and_teardown_are_not_told(host: Namespace, loop_factory: LoopFactory, mode: Mode) -> None:
    async def scenario(watch: Watch) -> None:
        for call in (lambda: routes.install(ruleset(mode)), routes.remove):
            await asyncio.to_thread(host.call, call)
            await watch.turn_loop()
        assert watch.changes == 0
        await watch.ip(A_CHANGE)
        await watch.change()

    run(host, loop_factory, scenario)


def test_every_change_is_told_one_after_the_other(host: Namespace, loop_factory: LoopFactory) -> None:
    async def scenario(watch: Watch) -> None:
        for command in (V4, V6, "route del default", "route del ::/0", V4):
            await watch.ip(command)
            await watch.change()
        assert watch.changes == 5

    run(host, loop_factory, scenario)


def test_a_change_whose_announcement_was_lost_is_told_all_the_same(
    host: Namespace, loop_factory: LoopFactory
) -> None:
    flood = [f"route add 198.18.{number // 256}.{number % 256} dev eth0" for number in range(4096)]

    async def scenario(watch: Watch) -> None:
        ip(host, *flood, V4)  # the loop cannot read: its socket's queue overflows
        await watch.change()
        assert watch.changes == 1

    run(host, loop_factory, scenario)


def test_after_close_nothing_is_told(host: Namespace, loop_factory: LoopFactory) -> None:
    async def scenario(watch: Watch) -> None:
        closed = Watch(host)
        closed.monitor.close()
        await watch.ip(V4)
        await watch.change()
        assert closed.changes == 0

    run(host, loop_factory, scenario)


def test_the_routes_of_both_families_and_every_table_are_found_but_not_ours(host: Namespace) -> None:
    assert host.call(default_routes) == frozenset()
    ip(host, V4, V6, A_CHANGE, "route add default dev lo table 6464 proto 64")
    found = host.call(default_routes)
    assert sorted(family for family, _, _ in found) == [socket.AF_INET, socket.AF_INET, socket.AF_INET6]


def test_routes_that_cannot_be_read_are_taken_to_have_changed(
    host: Namespace, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(watch: Watch) -> None:
        with descriptors_left(0):
            watch.monitor._look()
        await watch.change()

    run(host, loop_factory, scenario)
    assert "cannot read the default routes: Too many open files: they are taken to have changed" in caplog.text
