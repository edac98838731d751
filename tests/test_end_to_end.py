"""An IPv4-only program on an IPv6-only host, `tnat64d up`, and a server behind a real NAT64.

What depends on how the kernel hands a connection over runs in every variant; what does not, in the usual one.
"""

from __future__ import annotations

import errno
import hashlib
import random
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab import PREFIX, SERVER_V4, IdealNat64Lab, Nat64Lab, Port
from tests.lab.clients import NAMES, Clients
from tests.lab.daemon import (
    CONF,
    Daemon,
    Service,
    Tables,
    dial,
    echo,
    expect_reset,
    run_cli,
    seconds_of,
    snapshot,
)
from tests.lab.servers import BANNER, INDEX_PAGE

pytestmark = pytest.mark.netns("tayga", "iptables-nft", "iptables-legacy", "nft")

IPTABLES_NFT = {"backend": "iptables", "iptables": "iptables-nft"}
IPTABLES_LEGACY = {"backend": "iptables", "iptables": "iptables-legacy"}
NFTABLES = {"backend": "nftables"}

USUAL = "owned"
TPROXY = "tproxy-nftables"
_WAYS: dict[str, Tables] = {
    USUAL: {},
    "asyncio": {"proxy": {"loop": "asyncio"}},
    "static-nftables": {"rules": NFTABLES},
    "static-iptables-nft": {"rules": IPTABLES_NFT},
    "static-iptables-legacy": {"rules": IPTABLES_LEGACY},
    TPROXY: {"rules": NFTABLES | {"mode": "tproxy"}},
    "tproxy-iptables-nft": {"rules": IPTABLES_NFT | {"mode": "tproxy"}},
    "tproxy-iptables-legacy": {"rules": IPTABLES_LEGACY | {"mode": "tproxy"}},
}
VARIANTS: dict[str, Tables] = {
    f"{name}{suffix}": {**tables, "proxy": {"workers": "auto", **proxy, **tables.get("proxy", {})}}
    for suffix, proxy in (("", {}), (", honest", {"connect": "honest"}))
    for name, tables in _WAYS.items()
}
"""Static ones by `setup` and `serve`, the others by `up`."""
MIB = 1 << 20
ASK_FOR_IPV4 = (
    "import socket; print(socket.getaddrinfo('localhost', 80, socket.AF_INET, flags=socket.AI_ADDRCONFIG))"
)


@dataclass(frozen=True)
class World:
    """A lab in which a daemon runs. Its stop compares the kernel's state with the one before."""

    lab: Nat64Lab
    daemon: Daemon
    is_honest: bool

    def dial(self, port: int) -> socket.socket:
        return dial(self.lab.client, port)


def make_world(variant: str) -> Iterator[World]:
    with Nat64Lab() as lab:
        lab.start_servers()
        static = variant.startswith("static")
        with Service(lab.client, lab.directory, settings=VARIANTS[variant], is_static=static) as service:
            yield World(lab, service.daemon, "honest" in variant)


@pytest.fixture(scope="module", params=[USUAL, f"{USUAL}, honest"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The usual variant."""
    yield from make_world(request.param)


@pytest.fixture(scope="module", params=VARIANTS)
def each_world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Every variant."""
    yield from make_world(request.param)


def test_curl_gets_a_page(each_world: World) -> None:
    page = each_world.lab.client.run(["curl", "-sS", "--max-time", "10", f"http://{SERVER_V4}/"])
    assert page.stdout == INDEX_PAGE.decode()


def test_an_established_connection_carries_both_ways(each_world: World) -> None:
    with each_world.dial(Port.ECHO) as sock:
        for size_bytes in (1, 1000, 100_000):
            echo(sock, random.Random(size_bytes).randbytes(size_bytes))


def test_the_application_sees_the_ipv4_destination_as_its_peer(each_world: World) -> None:
    with each_world.dial(Port.ECHO) as sock:
        assert sock.getpeername() == (SERVER_V4, Port.ECHO)


def test_a_half_closed_connection_still_gets_its_answer(each_world: World) -> None:
    with each_world.dial(Port.HALF_CLOSE) as sock:
        sock.sendall(b"the whole question")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"the whole question"


def test_a_refused_port_resets_the_application_or_is_told_by_connect(each_world: World) -> None:
    if each_world.is_honest:
        with pytest.raises(ConnectionRefusedError):
            each_world.dial(Port.REFUSED)
    else:
        expect_reset(each_world.lab.client, Port.REFUSED)


def test_a_reset_by_the_server_reaches_the_application(each_world: World) -> None:
    with each_world.dial(Port.RESET) as sock:
        sock.sendall(b"10\n")
        assert len(read_exactly(sock, 10)) == 10
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_reset_by_the_application_ends_the_connection(each_world: World) -> None:
    with each_world.dial(Port.ECHO) as sock:
        echo(sock)
        port = sock.getsockname()[1]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    each_world.daemon.wait_for_log(rf":{port} -> \S+ via NAT64 .*, reset$")


def test_a_connection_to_the_listener_itself_is_refused_and_does_not_loop(each_world: World) -> None:
    before = each_world.daemon.status()["total"]
    started = time.monotonic()
    expect_reset(each_world.lab.client, 6464, "127.0.0.1")
    assert seconds_of(started) < 1
    each_world.daemon.wait_for_total("not_captured", before["not_captured"] + 1)
    assert each_world.daemon.total("accepted") == before["accepted"]


def test_udp_and_icmp_fail_at_once(each_world: World) -> None:
    started = time.monotonic()
    for kind, protocol in ((socket.SOCK_DGRAM, 0), (socket.SOCK_RAW, socket.IPPROTO_ICMP)):
        with each_world.lab.client.socket(type=kind, proto=protocol) as sock:
            with pytest.raises(OSError) as caught:  # noqa: PT011 (the number says it)
                sock.sendto(b"\x08\x00\xf7\xff\0\0\0\0", (SERVER_V4, 53))
            assert caught.value.errno == errno.ENETUNREACH
    assert seconds_of(started) < 1


def test_an_address_that_is_local_by_rule_is_not_captured(each_world: World) -> None:
    before = each_world.daemon.total("accepted")
    for address in ("169.254.1.1", "0.1.2.3", "127.0.0.9"):
        with pytest.raises(OSError, match=r"unreachable|refused|timed out"):
            dial(each_world.lab.client, Port.HTTP, address)
    assert each_world.daemon.total("accepted") == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("banner", [False, True], ids=["request", "banner"])
def test_programs_that_nothing_can_be_preloaded_into(
    world: World, clients: Clients, name: str, banner: bool
) -> None:
    port = Port.BANNER if banner else Port.HTTP
    done = world.lab.client.run(clients.command(name, SERVER_V4, port, banner=banner), timeout_s=10)
    assert done.stdout.endswith("ESMTP\n" if banner else INDEX_PAGE.decode())
    assert f"peer {SERVER_V4}:{port}" in done.stderr


@pytest.mark.netns("wget")
def test_wget_gets_a_page(world: World) -> None:
    page = world.lab.client.run(["wget", "-q", "-T", "10", "-t", "1", "-O", "-", f"http://{SERVER_V4}/"])
    assert page.stdout == INDEX_PAGE.decode()


def test_a_server_that_speaks_first_is_heard(world: World) -> None:
    with world.dial(Port.BANNER) as sock:
        assert read_exactly(sock, len(BANNER)) == BANNER
        echo(sock)


def test_getaddrinfo_offers_ipv4_addresses_to_programs_that_ask_what_the_host_has(world: World) -> None:
    client = world.lab.client
    assert "127.0.0.1" in client.run([sys.executable, "-c", ASK_FOR_IPV4]).stdout
    with IdealNat64Lab() as bare:  # shows that this test can fail
        assert bare.client.run([sys.executable, "-c", ASK_FOR_IPV4], check=False).returncode != 0


def test_the_log_has_destination_way_reason_bytes_and_duration(world: World) -> None:
    with world.dial(Port.ECHO) as sock:
        echo(sock, b"x" * 1234)
        address, port = sock.getsockname()
        time.sleep(0.05)  # so that there is a duration
    line = world.daemon.wait_for_log(rf"{address}:{port} -> .*")[0]
    shown = re.fullmatch(
        rf"{address}:{port} -> {SERVER_V4}:7 via NAT64 \[{world.lab.server_nat64}\] \((?P<why>.+)\): "
        r"1234 bytes up, 1234 bytes down, (?P<duration>\d+\.\d{3}) s",
        line,
    )
    assert shown is not None, line
    assert shown["why"] in ("IPv4 unreachable", "NAT64 sticky")
    assert 0.05 <= float(shown["duration"]) < 5


def test_many_connections_at_once(world: World) -> None:
    socks = [world.dial(Port.ECHO) for _ in range(200)]
    for number, sock in enumerate(socks):
        sock.sendall(b"%d." % number)
    for number, sock in enumerate(socks):
        message = b"%d." % number
        assert read_exactly(sock, len(message)) == message
        sock.close()


def test_a_gibibyte_each_way_arrives_through_the_real_nat64_as_it_was_sent(nat64_lab: Nat64Lab) -> None:
    with Daemon(nat64_lab.client, nat64_lab.directory):
        assert upload(dial(nat64_lab.client, Port.SINK, timeout_s=60), 1024 * MIB)
        assert download(dial(nat64_lab.client, Port.SOURCE, timeout_s=60), 1024 * MIB)


@pytest.mark.parametrize("variant", [TPROXY, "asyncio"])
def test_bulk_arrives_as_it_was_sent(variant: str) -> None:
    with IdealNat64Lab() as lab:
        lab.start_servers()
        with Daemon(lab.client, lab.directory, settings=VARIANTS[variant]):
            size_bytes = 128 * MIB
            assert upload(dial(lab.client, Port.SINK, timeout_s=30), size_bytes)
            assert download(dial(lab.client, Port.SOURCE, timeout_s=30), size_bytes)


def test_megabytes_arrive_as_they_were_sent_through_the_real_nat64(each_world: World) -> None:
    assert upload(each_world.dial(Port.SINK), 16 * MIB)
    assert download(each_world.dial(Port.SOURCE), 16 * MIB)


@pytest.mark.netns("tnat64", "curl")
def test_a_page_is_the_same_as_through_the_preloaded_library(nat64_lab: Nat64Lab) -> None:
    conf = nat64_lab.directory / "original.conf"
    conf.write_text(CONF)
    curl = ["curl", "-sS", "-4", "--max-time", "10", f"http://{SERVER_V4}/"]
    preloaded = nat64_lab.client.run(["tnat64", *curl], env={"TNAT64_CONF_FILE": str(conf)}).stdout
    assert nat64_lab.client.run(curl, check=False).returncode != 0
    with Daemon(nat64_lab.client, nat64_lab.directory):
        assert nat64_lab.client.run(curl).stdout == preloaded == INDEX_PAGE.decode()


@pytest.mark.parametrize(
    "prefix",
    ["3fff:64::/32", "2001:db8:6400::/40", "2001:db8:64::/48", "2001:db8:64:5600::/56", "2001:db8:64::/64"],
)
def test_prefixes_of_every_length_of_rfc_6052(prefix: str) -> None:
    with IdealNat64Lab(prefix) as lab:
        lab.start_servers()
        with Daemon(lab.client, lab.directory, conf=f"nat64_prefix = {prefix}\n") as daemon:
            with dial(lab.client, Port.ECHO) as sock:
                echo(sock)
            daemon.wait_for_log(re.escape(f"via NAT64 [{lab.server_nat64}]"))


def test_paths_and_local_networks_decide(nat64_lab: Nat64Lab) -> None:
    conf = f"""
        local = 198.51.100.20
        nat64_prefix = 2001:db8:dead::
        path {{
            subnet = {SERVER_V4}:{Port.ECHO}/255.255.255.255
            nat64_prefix = {PREFIX}
        }}
    """.replace("198.51.100.20", "198.51.100.20/32")
    with Daemon(nat64_lab.client, nat64_lab.directory, conf=conf) as daemon:
        with dial(nat64_lab.client, Port.ECHO) as sock:
            echo(sock)
        daemon.wait_for_log(re.escape(f":7 via NAT64 [{nat64_lab.server_nat64}]"))
        expect_reset(nat64_lab.client, Port.HTTP)
        with pytest.raises(OSError, match=r"refused|unreachable"):
            dial(nat64_lab.client, Port.ECHO, "198.51.100.20")


def test_setup_and_serve_apart_do_what_up_does(nat64_lab: Nat64Lab) -> None:
    before = snapshot(nat64_lab.client)
    daemon = Daemon(nat64_lab.client, nat64_lab.directory, command="serve")
    files = ("-f", str(daemon.conf), "-c", str(daemon.settings))
    assert run_cli(nat64_lab.client, "setup", *files).returncode == 0
    with pytest.raises(ConnectionRefusedError):  # nobody serves yet
        dial(nat64_lab.client, Port.ECHO)
    with daemon, dial(nat64_lab.client, Port.ECHO) as sock:
        echo(sock)
    assert run_cli(nat64_lab.client, "teardown", *files[2:]).returncode == 0
    assert snapshot(nat64_lab.client) == before


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def read_exactly(sock: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        chunk = sock.recv(size_bytes - len(data))
        assert chunk, f"the connection ended after {len(data)} bytes"
        data += chunk
    return data


def upload(sock: socket.socket, size_bytes: int) -> bool:
    """Whether the SINK server at the other end got what was sent to it."""
    block = random.Random(size_bytes).randbytes(MIB + 11)
    digest = hashlib.sha256()
    left_bytes = size_bytes
    with sock:
        while left_bytes:
            chunk = memoryview(block)[:left_bytes]
            digest.update(chunk)
            sock.sendall(chunk)
            left_bytes -= len(chunk)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock).decode() == f"{size_bytes} {digest.hexdigest()}\n"


def download(sock: socket.socket, size_bytes: int) -> bool:
    """Whether what the SOURCE server sent is what arrived."""
    digest = hashlib.sha256()
    left_bytes = size_bytes
    buffer = memoryview(bytearray(MIB))
    with sock:
        sock.sendall(b"%d\n" % size_bytes)
        while left_bytes:
            received_bytes = sock.recv_into(buffer[:left_bytes])
            assert received_bytes, f"the connection ended {left_bytes} bytes early"
            digest.update(buffer[:received_bytes])
            left_bytes -= received_bytes
        return read_all(sock).decode() == digest.hexdigest()
