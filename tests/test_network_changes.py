"""IPv4 and NAT64 come and go under one running daemon: which way each connection goes then.

The lab's client has working IPv4 at first; the fallback delay and the connect timeout are short. Connects are
plain, and then honest: they go the same ways, and what fails is told by connect() itself.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.lab import ROUTER_V4, ROUTER_V6, SERVER_V4, Nat64Failure, Nat64Lab, Port, wait_until
from tests.lab.daemon import Daemon, Tables, dial, echo, expect_reset, seconds_of

pytestmark = pytest.mark.netns("tayga", "iptables")

FALLBACK_DELAY_S = 0.3
CONNECT_TIMEOUT_S = 1.0
ROUTES_HAVE_CHANGED = "default routes have changed"
STICKY: list[None] = [None]
NOT_STICKY: list[None] = []
UNREACHABLE, GIVEN_UP = {errno.ENETUNREACH, errno.EHOSTUNREACH}, errno.EAGAIN
SETTINGS: dict[str, Tables] = {
    connect: {
        "proxy": {
            "connect": connect,
            "fallback_delay_s": FALLBACK_DELAY_S,
            "connect_timeout_s": CONNECT_TIMEOUT_S,
            "workers": 1,
        }
    }
    for connect in ("plain", "honest")
}
EXTRA_ROUTE = f"route {{}} ::/0 via {ROUTER_V6} metric 77"


@dataclass(frozen=True)
class Network:
    """A lab and the daemon in it."""

    lab: Nat64Lab
    daemon: Daemon
    is_honest: bool = False

    def way(self) -> tuple[str, str, float]:
        """Make a connection that works: "IPv4" or "NAT64", why, and after how many seconds it answered."""
        started = time.monotonic()
        with dial(self.lab.client, Port.ECHO) as sock:
            echo(sock)
            took_s = seconds_of(started)
            address, port = sock.getsockname()
        line = self.daemon.wait_for_log(rf"{address}:{port} -> {SERVER_V4}:7 via (IPv4|NAT64)\b.* \((.*)\): ")
        return line[1], line[2], took_s

    def refusal(self) -> float:
        """Make a connection that fails: after how many seconds it did, or was given up while connect() waited."""
        started = time.monotonic()
        if self.is_honest:
            assert self.error_of_connect(Port.ECHO) in UNREACHABLE | {GIVEN_UP}
        else:
            expect_reset(self.lab.client, Port.ECHO)
        return seconds_of(started)

    def error_of_connect(self, port: int) -> int:
        """Its errno, GIVEN_UP before the second SYN would be given up by the daemon."""
        with self.lab.client.socket() as sock:
            sock.settimeout(1.5 * CONNECT_TIMEOUT_S)
            return sock.connect_ex((SERVER_V4, port))

    def expect_refused(self) -> None:
        """Require that the server is seen to refuse."""
        if self.is_honest:
            assert self.error_of_connect(Port.REFUSED) == errno.ECONNREFUSED
        else:
            expect_reset(self.lab.client, Port.REFUSED)

    def expect(self, sticky: list[None]) -> None:
        """Require STICKY or NOT_STICKY, in the only scope there is."""
        wait_until(lambda: self.daemon.status()["sticky"] == sticky, f"sticky scopes are {sticky}", timeout_s=5.0)

    def change_routes(self, *commands: str) -> None:
        """Run ip(8) commands in the client, and wait until the daemon has noticed."""
        with self.noticed():
            self.lab.ip("client", *commands)

    def noticed(self) -> Noticed:
        """Around a change of the client's default routes: returns when the daemon has noticed."""
        return Noticed(self.daemon)


class Noticed:
    """See `Network.noticed`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._before = 0

    def __enter__(self) -> None:
        self._before = self._count()

    def __exit__(self, *error: object) -> None:
        wait_until(lambda: self._count() > self._before, "the daemon notices the change", timeout_s=5.0)
        # The worker was told before this connection came, and will have listened when the next one comes.
        expect_reset(self._daemon.namespace, 6464, "127.0.0.1")

    def _count(self) -> int:
        return len(re.findall(ROUTES_HAVE_CHANGED, self._daemon.log))


@pytest.fixture(scope="module", params=SETTINGS)
def running(request: pytest.FixtureRequest) -> Iterator[Network]:
    """One daemon for all tests of this module."""
    with Nat64Lab(ipv4=True) as lab:
        lab.start_servers()
        with Daemon(lab.client, lab.directory, settings=SETTINGS[request.param]) as daemon:
            yield Network(lab, daemon, request.param == "honest")


@pytest.fixture
def network(running: Network) -> Iterator[Network]:
    """IPv4 and NAT64 both work, and nothing is known of either."""
    yield running
    running.lab.start_nat64()
    running.lab.add_ipv4_to_client()
    running.change_routes(EXTRA_ROUTE.format("add"))
    running.change_routes(EXTRA_ROUTE.format("del"))


def test_ipv4_is_used_while_it_works_and_nat64_when_its_route_is_gone(network: Network) -> None:
    assert network.way()[:2] == ("IPv4", "IPv4 first")
    assert network.way()[0] == "IPv4"
    network.expect(NOT_STICKY)
    with network.noticed():
        network.lab.remove_ipv4_route()
    assert network.way()[:2] == ("NAT64", "IPv4 unreachable")
    network.expect(STICKY)
    assert network.way()[:2] == ("NAT64", "NAT64 sticky")
    with network.noticed():
        network.lab.add_ipv4_to_client()
    network.expect(NOT_STICKY)
    assert network.way()[0] == "IPv4"


def test_a_rejecting_router_sends_connections_through_nat64(network: Network) -> None:
    network.lab.reject_ipv4()
    assert network.way()[:2] == ("NAT64", "IPv4 unreachable")
    network.lab.add_ipv4_to_client()
    assert network.way()[:2] == ("NAT64", "NAT64 sticky")  # nothing has told the daemon that IPv4 is back


def test_unreachable_nat64_gives_way_to_ipv4_for_the_same_connection(network: Network) -> None:
    network.lab.reject_ipv4()
    assert network.way()[0] == "NAT64"
    network.lab.add_ipv4_to_client()
    network.lab.stop_nat64(Nat64Failure.UNREACHABLE)
    assert network.way()[:2] == ("IPv4", "NAT64 unreachable")
    network.expect(NOT_STICKY)
    network.lab.start_nat64()
    assert network.way()[:2] == ("IPv4", "IPv4 first")


def test_nat64_without_a_route_gives_way_to_ipv4(network: Network) -> None:
    network.lab.reject_ipv4()
    assert network.way()[0] == "NAT64"
    network.lab.add_ipv4_to_client()
    with network.noticed():
        network.lab.stop_nat64(Nat64Failure.NO_ROUTE)
    assert network.way()[0] == "IPv4"
    with network.noticed():
        network.lab.start_nat64()
    assert network.way()[0] == "IPv4"


def test_blackholed_ipv4_gives_way_to_nat64_after_the_fallback_delay_and_then_at_once(network: Network) -> None:
    network.lab.blackhole_ipv4()
    way, why, took_s = network.way()
    assert (way, why) == ("NAT64", "IPv4 silent")
    assert FALLBACK_DELAY_S <= took_s < CONNECT_TIMEOUT_S
    way, why, took_s = network.way()
    assert (way, why) == ("NAT64", "NAT64 sticky")
    assert took_s < FALLBACK_DELAY_S


def test_silent_nat64_does_not_end_stickiness(network: Network) -> None:
    network.lab.reject_ipv4()
    assert network.way()[0] == "NAT64"
    network.lab.add_ipv4_to_client()
    network.lab.stop_nat64(Nat64Failure.SILENT)
    assert CONNECT_TIMEOUT_S <= network.refusal() < 2 * CONNECT_TIMEOUT_S
    network.expect(STICKY)
    network.lab.start_nat64()
    assert network.way()[:2] == ("NAT64", "NAT64 sticky")


def test_silent_nat64_does_not_make_stickiness(network: Network) -> None:
    network.lab.reject_ipv4()
    network.lab.stop_nat64(Nat64Failure.SILENT)
    assert network.refusal() >= CONNECT_TIMEOUT_S
    network.expect(NOT_STICKY)
    network.lab.add_ipv4_to_client()
    assert network.way()[:2] == ("IPv4", "IPv4 first")


@pytest.mark.parametrize("ipv4", [Nat64Lab.remove_ipv4_route, Nat64Lab.reject_ipv4, Nat64Lab.blackhole_ipv4])
@pytest.mark.parametrize("nat64", Nat64Failure, ids=[failure.name for failure in Nat64Failure])
def test_the_client_is_refused_when_both_ways_are_gone(
    network: Network, ipv4: Callable[[Nat64Lab], None], nat64: Nat64Failure
) -> None:
    ipv4(network.lab)
    network.lab.stop_nat64(nat64)
    network.refusal()
    network.daemon.wait_for_log(rf"-> {SERVER_V4}:7 refused: IPv4: \S.*, NAT64: \S")
    network.expect(NOT_STICKY)


def test_refused_through_nat64_is_an_answer_and_makes_sticky(network: Network) -> None:
    network.lab.reject_ipv4()
    network.expect_refused()
    network.expect(STICKY)


def test_refused_over_ipv4_is_the_answer(network: Network) -> None:
    network.expect_refused()
    network.daemon.wait_for_log(rf"-> {SERVER_V4}:{Port.REFUSED} refused: IPv4: Connection refused \(")
    network.expect(NOT_STICKY)


@pytest.mark.parametrize("route", [f"default via {ROUTER_V4}", f"::/0 via {ROUTER_V6}"], ids=["IPv4", "IPv6"])
def test_a_change_of_a_default_route_makes_every_state_new(network: Network, route: str) -> None:
    network.lab.reject_ipv4()
    for verb in ("add", "del"):
        assert network.way()[0] == "NAT64"
        network.expect(STICKY)
        network.change_routes(f"route {verb} {route} metric 99")
        network.expect(NOT_STICKY)


def test_a_device_that_goes_down_takes_its_default_routes_and_every_state_along(nat64_lab: Nat64Lab) -> None:
    with Daemon(nat64_lab.client, nat64_lab.directory, leaves_kernel_as_found=False) as daemon:
        network = Network(nat64_lab, daemon)
        assert network.way()[0] == "NAT64"
        network.change_routes("link set eth0 down")
        network.expect(NOT_STICKY)


def test_a_change_of_another_route_changes_nothing(network: Network) -> None:
    network.lab.reject_ipv4()
    assert network.way()[0] == "NAT64"
    log_before = network.daemon.log
    network.lab.ip("client", f"route add 192.0.2.0/24 via {ROUTER_V4}", "route del 192.0.2.0/24")
    network.lab.ip("client", "link add other type veth peer name o", "link set other up", "link del other")
    assert network.way()[:2] == ("NAT64", "NAT64 sticky")
    assert ROUTES_HAVE_CHANGED not in network.daemon.log.removeprefix(log_before)


def test_an_established_connection_outlives_changes_that_do_not_touch_its_way(network: Network) -> None:
    with dial(network.lab.client, Port.ECHO) as sock:
        echo(sock)
        network.lab.stop_nat64(Nat64Failure.UNREACHABLE)
        echo(sock)
    network.lab.start_nat64()
    network.lab.reject_ipv4()
    with dial(network.lab.client, Port.ECHO) as sock:
        echo(sock)
        with network.noticed():
            network.lab.remove_ipv4_route()
        echo(sock)
