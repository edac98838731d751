"""Others behind an interface of this host get out by it, with the exceptions of its scope, in a real kernel."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Namespace, Port
from tests.lab.daemon import Daemon, Service, Tables, dial, echo, expect_refused
from tests.test_scopes import AT_ONCE_S, WAYS

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")

CONTAINER = "172.17.0.2"
BRIDGE = "172.17.0.1"


class GatewayLab(IdealNat64Lab):
    """An IPv6-only host with a bridge, behind which an IPv4-only container is. The host forwards nothing."""

    roles: tuple[str, ...] = ("client", "server", "container")

    def build(self) -> None:
        """Wire the container to br-test."""
        super().build()
        self.link("client", "veth0", "container", "eth0")
        self.ip(
            "client",
            "link add br-test type bridge",
            "link set veth0 master br-test up",
            f"addr add {BRIDGE}/24 dev br-test",
            "link set br-test up",
        )
        self.ip(
            "container", f"addr add {CONTAINER}/24 dev eth0", "link set eth0 up", f"route add default via {BRIDGE}"
        )
        self.client.write_sysctl("net.ipv4.ip_forward", 0)

    def route_what_bridges_deliver(self) -> None:
        """Not as bridges do where br_netfilter is loaded: rules see packets there first, and TPROXY is in vain."""
        if Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
            self.client.write_sysctl("net.bridge.bridge-nf-call-iptables", 0)

    @property
    def container(self) -> Namespace:
        """What is behind the bridge."""
        return self.namespaces["container"]


@pytest.fixture
def gateway_lab() -> Iterator[GatewayLab]:
    """See GatewayLab."""
    with GatewayLab() as made:
        made.start_servers()
        yield made


GATEWAY_WAYS: dict[str, Tables] = {
    **WAYS,
    **{
        name.replace("static", "tproxy"): {"rules": {**tables["rules"], "mode": "tproxy"}}
        for name, tables in WAYS.items()
        if name != "owned"
    },
}


@pytest.fixture(params=GATEWAY_WAYS)
def gateway_way(request: pytest.FixtureRequest, gateway_lab: GatewayLab) -> str:
    """As `way`, and by TPROXY."""
    chosen: str = request.param
    if chosen.startswith("tproxy"):
        gateway_lab.route_what_bridges_deliver()
    return chosen


def service(lab: GatewayLab, way: str, scope: dict[str, list[str]]) -> Service:
    settings: Tables = {**GATEWAY_WAYS[way], "scope": scope, "proxy": {"workers": 2}}
    return Service(lab.client, lab.directory, settings=settings, is_static=way != "owned")


def expect_left_alone(daemon: Daemon, who: Namespace, port: Port) -> None:
    """Nobody answers: a host that does not forward drops what it does not capture, as it did before."""
    accepted = daemon.total("accepted")
    with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
        dial(who, port, timeout_s=1.2)
    assert daemon.total("accepted") == accepted


@pytest.mark.parametrize("device", ["br-test", "br-*"])
def test_a_container_gets_out_through_the_gateway(gateway_lab: GatewayLab, gateway_way: str, device: str) -> None:
    with service(gateway_lab, gateway_way, {"gateway": [device]}) as running:
        for _ in range(3):
            with dial(gateway_lab.container, Port.ECHO) as sock:
                echo(sock, b"x" * 100_000)
                assert sock.getpeername() == (SERVER_V4, Port.ECHO)
        running.daemon.wait_for_log(rf"{CONTAINER}:\d+ -> {SERVER_V4}:7 via NAT64")
        with dial(gateway_lab.client, Port.ECHO) as sock:  # the host's own programs as well
            echo(sock)


@pytest.mark.parametrize("way", [name for name in GATEWAY_WAYS if name.startswith("tproxy")])
def test_tproxy_needs_nothing_more_where_the_interface_is_no_bridge(gateway_lab: GatewayLab, way: str) -> None:
    gateway_lab.ip(
        "client", f"addr del {BRIDGE}/24 dev br-test", "link set veth0 nomaster", f"addr add {BRIDGE}/24 dev veth0"
    )
    with service(gateway_lab, way, {"gateway": ["veth*"]}), dial(gateway_lab.container, Port.ECHO) as sock:
        echo(sock, b"x" * 100_000)


def test_the_listener_refuses_a_container_that_connects_to_it_directly(
    gateway_lab: GatewayLab, gateway_way: str
) -> None:
    with service(gateway_lab, gateway_way, {"gateway": ["br-test"]}) as running:
        before = running.daemon.total("not_captured")
        expect_refused(gateway_lab.container, 6464, BRIDGE)
        expect_refused(gateway_lab.client, 6464, BRIDGE)
        expect_refused(gateway_lab.client, 6464, "127.0.0.1")
        come = 1 if "tproxy" in gateway_way else 3  # TPROXY's listener is on 127.0.0.1
        running.daemon.wait_for_total("not_captured", before + come)
        with dial(gateway_lab.container, Port.ECHO) as sock:
            echo(sock)


def test_the_hosts_own_addresses_are_never_captured(gateway_lab: GatewayLab, gateway_way: str) -> None:
    with service(gateway_lab, gateway_way, {"gateway": ["br-test"]}), gateway_lab.client.socket() as own:
        own.bind((BRIDGE, 7777))
        own.listen()
        own.settimeout(5)
        for host in (gateway_lab.container, gateway_lab.client):
            with dial(host, 7777, BRIDGE) as client, own.accept()[0] as server:
                server.sendall(b"here")
                assert client.recv(4) == b"here"


def test_a_container_behind_another_interface_is_left_alone(gateway_lab: GatewayLab, gateway_way: str) -> None:
    with service(gateway_lab, gateway_way, {"gateway": ["docker0"]}) as running:
        expect_left_alone(running.daemon, gateway_lab.container, Port.ECHO)


def test_local_networks_and_excluded_ports_hold_behind_the_gateway_too(
    gateway_lab: GatewayLab, gateway_way: str
) -> None:
    with service(
        gateway_lab, gateway_way, {"gateway": ["br-test"], "not_ports": [str(int(Port.BANNER))]}
    ) as running:
        with dial(gateway_lab.container, Port.ECHO) as sock:
            echo(sock)
        with gateway_lab.client.socket() as own:  # whoever listens here is not meant
            own.bind(("0.0.0.0", Port.BANNER))
            own.listen()
            expect_left_alone(running.daemon, gateway_lab.container, Port.BANNER)


def test_where_the_host_forwards_what_is_excluded_is_told_at_once_that_there_is_no_way(
    gateway_lab: GatewayLab, gateway_way: str
) -> None:
    gateway_lab.client.write_sysctl("net.ipv4.ip_forward", 1)
    scope = {"gateway": ["br-test"], "not_ports": [str(int(Port.BANNER))]}
    with service(gateway_lab, gateway_way, scope):
        with dial(gateway_lab.container, Port.ECHO) as sock:
            echo(sock)
        started = time.monotonic()
        with pytest.raises(OSError, match="unreachable"):
            dial(gateway_lab.container, Port.BANNER)
        assert time.monotonic() - started < AT_ONCE_S


def test_a_strict_reverse_path_filter_lets_a_container_out(gateway_lab: GatewayLab, gateway_way: str) -> None:
    for device in ("all", "br-test"):
        gateway_lab.client.write_sysctl(f"net.ipv4.conf.{device}.rp_filter", 1)
    with service(gateway_lab, gateway_way, {"gateway": ["br-test"]}):
        with dial(gateway_lab.container, Port.ECHO) as sock:
            echo(sock)


def test_a_real_ipv4_route_is_not_taken_instead(gateway_lab: GatewayLab, gateway_way: str) -> None:
    gateway_lab.client.write_sysctl("net.ipv4.ip_forward", 1)
    gateway_lab.ip("client", "addr add 203.0.113.2/24 dev eth0", "route add default via 203.0.113.1 dev eth0")
    with service(gateway_lab, gateway_way, {"gateway": ["br-test"]}) as running:
        with dial(gateway_lab.container, Port.ECHO) as sock:
            echo(sock)
            running.daemon.wait_for_total("accepted", 1)


@pytest.mark.parametrize("who", ["container", "client"])
@pytest.mark.parametrize("way", ["owned", "tproxy nftables", "tproxy iptables-nft"])
def test_a_connection_keeps_its_way_when_its_destination_is_left_alone_from_now_on(
    gateway_lab: GatewayLab, way: str, who: str
) -> None:
    gateway_lab.route_what_bridges_deliver()
    if who == "client":  # its packets leave by that route unless they are marked
        gateway_lab.ip("client", "addr add 203.0.113.2/24 dev eth0", "route add default via 203.0.113.1 dev eth0")
    settings: Tables = {**GATEWAY_WAYS[way], "scope": {"gateway": ["br-test"]}}
    with (
        Daemon(gateway_lab.client, gateway_lab.directory, settings=settings) as daemon,
        dial(gateway_lab.namespaces[who], Port.ECHO) as sock,
    ):
        echo(sock)
        daemon.settings.write_text(f"{daemon.settings.read_text()}not_ports = ['{int(Port.ECHO)}']\n")
        assert daemon.run("reload").returncode == 0
        echo(sock, b"x" * 100_000)
        expect_left_alone(daemon, gateway_lab.namespaces[who], Port.ECHO)


@pytest.mark.parametrize("way", ["owned", "static iptables-nft", "tproxy nftables"])
def test_other_peoples_destination_nat_wins_behind_the_gateway(gateway_lab: GatewayLab, way: str) -> None:
    if way.startswith("tproxy"):
        gateway_lab.route_what_bridges_deliver()
    rule = f"-t nat -A PREROUTING -i br-test -d 203.0.113.99 -p tcp -j DNAT --to-destination {BRIDGE}:7777"
    gateway_lab.client.run(["iptables-nft", *rule.split()])
    with service(gateway_lab, way, {"gateway": ["br-test"]}), gateway_lab.client.socket() as own:
        own.bind((BRIDGE, 7777))
        own.listen()
        own.settimeout(5)
        with dial(gateway_lab.container, 80, "203.0.113.99") as client, own.accept()[0] as server:
            server.sendall(b"here")
            assert client.recv(4) == b"here"


def test_a_source_behind_the_gateway_at_its_limit_does_not_keep_others_out(gateway_lab: GatewayLab) -> None:
    other = "172.17.0.3"
    gateway_lab.ip("container", f"addr add {other}/24 dev eth0")
    settings: Tables = {
        "proxy": {"workers": 1, "max_connections_per_source": 2},
        "scope": {"gateway": ["br-test"]},
    }
    with (
        Daemon(gateway_lab.client, gateway_lab.directory, settings=settings) as daemon,
        contextlib.ExitStack() as stack,
    ):

        def connect(source: str) -> socket.socket:
            sock = stack.enter_context(gateway_lab.container.socket())
            sock.settimeout(5)
            sock.bind((source, 0))
            sock.connect((SERVER_V4, Port.ECHO))
            return sock

        first, second = connect(CONTAINER), connect(CONTAINER)
        echo(first)
        echo(second)
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                connect(CONTAINER).recv(1)
        daemon.wait_for_total("over_limit", 2)
        assert daemon.log.count(f"{CONTAINER} has as many connections as one source may have") == 1
        echo(connect(other))
        for _ in range(4):  # the host's own programs have no limit
            echo(stack.enter_context(dial(gateway_lab.client, Port.ECHO)))
        first.close()
        daemon.wait_for_total("active", 6)
        echo(connect(CONTAINER))


def test_bridges_by_which_tproxy_gets_nothing_are_told_at_once(gateway_lab: GatewayLab) -> None:
    gateway_lab.client.write_sysctl("net.bridge.bridge-nf-call-iptables", 1)
    settings: Tables = {**GATEWAY_WAYS["tproxy nftables"], "scope": {"gateway": ["br-test"]}}
    with Daemon(gateway_lab.client, gateway_lab.directory, settings=settings) as daemon:
        assert "WARNING: connections that come in by br-test will hang" in daemon.log
        gateway_lab.route_what_bridges_deliver()
        daemon.run("reload")
        assert daemon.log.count("will hang") == 1
