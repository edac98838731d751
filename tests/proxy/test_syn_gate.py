"""The gate: real SYNs, held in real queues by real rules, on a host where every way ends as told."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab import PREFIX
from tests.proxy.conftest import nothing_is_pending
from tests.proxy.observer import Recording
from tests.proxy.peer import Peer, descriptors, until
from tests.proxy.reactors import CountedReactor
from tests.proxy.ways import Ways, destination, inside
from tnat64d.core.config import parse
from tnat64d.core.description import describe
from tnat64d.core.policy import StickyMemory
from tnat64d.core.ruleset import QUEUES
from tnat64d.core.scope import Scope
from tnat64d.core.settings import Mode, Rules, StickyScope
from tnat64d.daemon.listening import listen
from tnat64d.kernel import original_dst
from tnat64d.kernel.installation import Installation
from tnat64d.kernel.nfqueue import Syn, SynQueue
from tnat64d.kernel.nftables import Nftables
from tnat64d.kernel.refusals import Refuser
from tnat64d.kernel.sock_diag import SocketTable
from tnat64d.proxy import dialer as dialer_module
from tnat64d.proxy import syn_gate as syn_gate_module
from tnat64d.proxy.destination import Destinations
from tnat64d.proxy.dialer import Dialer, DialSettings
from tnat64d.proxy.listener import Listener
from tnat64d.proxy.syn_gate import SynGate

pytestmark = pytest.mark.netns("iptables-nft")

PORT = 7000
LISTENER = ("127.0.0.1", 6464)
SOON_S = 0.05
LONG_S = 30.0
CONFIG = parse(f"nat64_prefix = {PREFIX}\nlocal = 203.0.113.63/32", "test")
RULESET = describe(CONFIG, Rules(), Scope(), LISTENER[1], honest=())
ANSWERS, SILENT = destination("no route", "answers"), destination("no route", "silent")


@pytest.fixture(scope="module")
def namespace() -> Iterator[Path]:
    """Its programs' connects to 203.0.113.0/24, which has no IPv4 route, are held."""
    with Ways() as ways:
        host = ways.namespaces["ways"]
        host.write_sysctl("net.ipv4.tcp_fastopen", 0x5)  # client; data without a cookie
        host.call(Installation(Nftables()).install, RULESET)
        yield host.path


@dataclass(eq=False)
class Plane:
    """A gate with all behind it, and the server at the end of NAT64."""

    gate: SynGate
    listener: Listener
    dialer: Dialer
    observer: Recording
    server: socket.socket | None
    peers: list[Peer] = field(default_factory=list)

    def connect(self, address: str, port: int = 0, options: tuple[int, ...] = ()) -> Peer:
        """A program in connect(), from `port` if that is given; with SOL_TCP `options` turned on."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option in options:
            sock.setsockopt(socket.IPPROTO_TCP, option, 1)
        if port:
            sock.bind(("192.0.0.2", port))
        assert sock.connect_ex((address, PORT)) in (0, errno.EINPROGRESS)
        self.peers.append(Peer(sock))
        return self.peers[-1]

    async def outcome(self, client: Peer) -> int:
        """The errno that its connect() ends with, 0 for connected."""
        loop, writable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(client.sock, writable.set)
        try:
            async with asyncio.timeout(5):
                await writable.wait()
        finally:
            loop.remove_writer(client.sock)
        return client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    async def accept(self) -> Peer:
        """The server's end of the next connection."""
        assert self.server is not None
        async with asyncio.timeout(5):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.server)
        self.peers.append(Peer(sock))
        return self.peers[-1]

    def nobody_else_came(self) -> bool:
        """Whether no further connection waits at the server."""
        assert self.server is not None
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return True
        return False


MakePlane = Callable[..., Plane]


@pytest.fixture
async def make_plane(namespace: Path, reactor: CountedReactor) -> AsyncIterator[MakePlane]:
    """Makes one plane; the server listens unless `serve=False`."""
    loop = asyncio.get_running_loop()
    planes: list[Plane] = []
    listening_sockets: list[socket.socket] = []

    def make(
        *,
        serve: bool = True,
        max_held: int = 100,
        max_connections: int = 1000,
        connect_timeout_s: float = LONG_S,
        sticky: bool = True,
    ) -> Plane:
        server = None
        if serve:
            server = socket.create_server(("", PORT), family=socket.AF_INET6)
            server.setblocking(False)
        (listening,) = listen(*LISTENER, 1, Mode.REDIRECT, keepalive_s=0)
        observer = Recording()
        settings = DialSettings(Rules().mark, LONG_S, connect_timeout_s, idle_timeout_s=0, keepalive_s=0)
        memory = StickyMemory(16, sticky=[None] if sticky else ())
        dialer = Dialer(loop, reactor, settings, memory, observer)
        destinations = Destinations(CONFIG, StickyScope.GLOBAL, LISTENER, lambda target: None)
        queue = SynQueue(range(6464, 6464 + QUEUES), 100)
        parts = (queue, Refuser(Rules().mark), SocketTable(), destinations, dialer, observer)
        gate = SynGate(loop, reactor, *parts, max_held, max_connections)
        listener = Listener(
            loop, reactor, listening, original_dst.redirected, destinations, dialer, observer, 1000, gate=gate
        )
        listener.start()
        gate.start()
        listening_sockets.append(listening)
        planes.append(Plane(gate, listener, dialer, observer, server))
        return planes[-1]

    with inside(namespace):
        yield make
    for plane, listening in zip(planes, listening_sockets, strict=True):
        plane.listener.stop()
        plane.gate.stop()
        plane.dialer.abort_all()
        assert nothing_is_pending(plane.dialer)
        plane.dialer.close()
        listening.close()
        if plane.server is not None:
            plane.server.close()
        for peer in plane.peers:
            peer.close()


async def test_the_accepted_connection_is_given_the_upstream_that_was_dialled_for_it(
    make_plane: MakePlane,
) -> None:
    plane = make_plane()
    client = plane.connect(ANSWERS)
    assert await plane.outcome(client) == 0
    server = await plane.accept()
    await client.send(b"question")
    assert await server.receive(8) == b"question"
    await server.send(b"answer")
    server.half_close()
    assert await client.receive_all() == b"answer"
    client.half_close()
    connection, _ = await plane.observer.closing()
    assert connection.by_nat64
    assert connection.client == client.sock.getsockname()
    assert plane.nobody_else_came()
    assert (plane.observer.held_count, plane.observer.answered_count, plane.observer.accepted_count) == (1, 1, 1)


async def test_what_a_server_says_first_is_not_lost_while_its_client_is_accepted(make_plane: MakePlane) -> None:
    plane = make_plane()
    clients = [plane.connect(ANSWERS) for _ in range(20)]
    for _ in clients:
        server = await plane.accept()
        await server.send(b"220 ready")
        server.half_close()
    for client in clients:
        assert await client.receive_all() == b"220 ready"


@pytest.mark.parametrize(
    ("nat64", "code"),
    [
        ("answers", errno.ECONNREFUSED),  # for nobody listens
        ("unreachable", errno.EHOSTUNREACH),
        ("no route", errno.ENETUNREACH),
        ("late", errno.EHOSTUNREACH),
    ],
)
@pytest.mark.parametrize("sticky", [False, True])
async def test_connect_fails_as_the_dial_failed(
    make_plane: MakePlane, nat64: str, code: int, sticky: bool
) -> None:
    plane = make_plane(serve=False, sticky=sticky)
    client = plane.connect(destination("no route", nat64))
    assert await plane.outcome(client) == code
    assert not (await plane.observer.refusal()).client_gone
    assert (plane.dialer.active, plane.observer.accepted_count) == (0, 0)


async def test_a_silent_destination_stays_silent_and_the_next_syn_is_dialled_anew(make_plane: MakePlane) -> None:
    plane = make_plane(connect_timeout_s=SOON_S)
    client = plane.connect(SILENT)
    await until(lambda: len(plane.observer.refusals) == 2)  # the second SYN comes after 1 s
    assert [refusal.nat64_error for refusal in plane.observer.refusals] == [errno.ETIMEDOUT] * 2
    assert client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert plane.observer.held_count == 2


@contextmanager
def one_source_port() -> Iterator[None]:
    """Meanwhile this namespace has no other for those who ask for none."""
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    before = ports.read_text()
    ports.write_text("7500 7500")
    try:
        yield
    finally:
        ports.write_text(before)


async def test_a_connect_for_which_no_source_port_is_left_waits_until_there_is_one(make_plane: MakePlane) -> None:
    plane = make_plane()
    with one_source_port():
        assert await plane.outcome(plane.connect(ANSWERS, port=50010)) == 0
        second = plane.connect(ANSWERS, port=50011)
        await until(lambda: plane.observer.refusals)
        assert plane.observer.refusals[0].nat64_error == errno.EADDRNOTAVAIL
    assert await plane.outcome(second) == 0  # after 1 s


async def test_a_program_that_gives_up_ends_the_dial_and_frees_everything(
    make_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer_module, "SETTLE_S", SOON_S)
    plane = make_plane()
    before = descriptors()
    client = plane.connect(SILENT)
    await until(lambda: plane.dialer.active == 1)
    await asyncio.to_thread(lambda: None)  # several looks later it is still wanted
    await until(lambda: plane.gate._loop.time() - next(iter(plane.gate._held.values())).seen_at > 4 * SOON_S)
    assert plane.observer.refusals == []
    client.close()
    assert (await plane.observer.refusal()).client_gone
    await until(lambda: descriptors() == before)
    assert (plane.dialer.active, plane.gate._held) == (0, {})
    assert nothing_is_pending(plane.dialer)


async def test_an_upstream_whose_client_never_comes_is_closed(
    make_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syn_gate_module, "HANDSHAKE_S", SOON_S)
    plane = make_plane()
    before = descriptors()
    plane.connect(ANSWERS).close()  # before anybody looks
    server = await plane.accept()
    assert await server.receive(1) == b""
    server.close()
    await until(lambda: descriptors() == before)
    assert plane.gate._waiting == {}
    assert (plane.observer.answered_count, plane.observer.accepted_count) == (1, 0)
    assert [connection.client_gone for connection in plane.observer.unclaimed_connections] == [False]


async def test_an_ipv4_upstream_whose_client_never_comes_is_forgotten_too(
    make_plane: MakePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connects to the host's own addresses are never held, so this SYN is made up."""
    monkeypatch.setattr(syn_gate_module, "HANDSHAKE_S", SOON_S)
    plane = make_plane(sticky=False)
    address = destination("answers", "silent")
    with socket.create_server((address, PORT)):
        syn = Syn(6464, 1, ("192.0.0.2", 50000), (address, PORT), 1, b"", 0, 1, 0, True)
        plane.gate._receive(syn)
        await until(lambda: plane.observer.unclaimed_connections)
    assert plane.observer.unclaimed_connections[0].ipv4_error == 0
    assert plane.dialer.own_connections == set()


async def test_rules_that_change_empty_the_queues_and_the_next_syn_is_held_instead(make_plane: MakePlane) -> None:
    plane = make_plane()
    client = plane.connect(SILENT)
    await until(lambda: plane.observer.held_count == 1)
    (dial,) = plane.gate._held.values()
    first = dial.syn.packet
    Nftables().install(RULESET)
    await until(lambda: dial.syn.packet != first)  # after 1 s
    assert (plane.observer.held_count, plane.dialer.active) == (1, 1)
    plane.gate.stop()
    assert await plane.outcome(client) == errno.ECONNREFUSED


@contextmanager
def handshakes_fail() -> Iterator[Callable[[], int]]:
    """The listener's SYN-ACKs are lost meanwhile; tells how many SYNs have left the gate.

    They are lost at the client's end: of a loss in OUTPUT their sender would hear (EPERM) and forget the request
    (reqsk_timer_handler), and connection tracking would not know the next one's numbers.
    """
    lose = ("INPUT", "-p", "tcp", "--sport", str(PORT), "--tcp-flags", "SYN,ACK", "SYN,ACK", "-j", "DROP")
    count = ("OUTPUT", "-p", "tcp", "--dport", str(LISTENER[1]), "--syn")

    def syns() -> int:
        shown = subprocess.run(["iptables-nft", "-nvxL", "OUTPUT"], capture_output=True, text=True, check=True)
        (line,) = (line for line in shown.stdout.splitlines() if f"dpt:{LISTENER[1]}" in line)
        return int(line.split()[0])

    for rule in (lose, count):
        subprocess.run(["iptables-nft", "-A", *rule], check=True)
    try:
        yield syns
    finally:
        for rule in (lose, count):
            subprocess.run(["iptables-nft", "-D", *rule], check=True)


async def test_a_syn_that_comes_again_when_its_upstream_waits_goes_on_and_is_not_dialled_again(
    make_plane: MakePlane,
) -> None:
    plane = make_plane()
    with handshakes_fail() as syns:
        client = plane.connect(ANSWERS)
        await until(lambda: syns() >= 2)  # after 1 s
        assert plane.observer.accepted_count == 0
    assert await plane.outcome(client) == 0
    server = await plane.accept()
    await client.send(b"late")
    assert await server.receive(4) == b"late"
    assert plane.nobody_else_came()
    assert (plane.observer.held_count, plane.observer.accepted_count) == (1, 1)


async def test_a_syn_that_came_again_before_its_connection_is_accepted_is_not_dialled_again(
    make_plane: MakePlane,
) -> None:
    plane = make_plane()
    client = plane.connect(ANSWERS)
    with handshakes_fail():
        await until(lambda: plane.observer.answered_count == 1)
        # Nobody reads the queue meanwhile.
        assert select.select([plane.gate._queue], [], [], 5)[0]  # after 1 s
    assert select.select([plane.listener._listening], [], [], 5)[0]  # as soon as the next SYN-ACK comes
    plane.listener.ready(select.EPOLLIN)
    assert await plane.outcome(client) == 0
    await plane.accept()
    await client.send(b"late")
    assert plane.nobody_else_came()
    assert (plane.observer.held_count, plane.observer.accepted_count) == (1, 1)


async def test_another_connection_from_the_same_port_hangs_up_the_upstream_of_the_first(
    make_plane: MakePlane,
) -> None:
    """Its SYN then meets the half-open connection of the first in the listener, and the kernel may refuse it."""
    plane = make_plane()
    with handshakes_fail():
        plane.connect(ANSWERS, port=50002)
        first = await plane.accept()
        plane.peers[0].close()
        plane.connect(ANSWERS, port=50002)
        await plane.accept()
        assert await first.receive(1) == b""
    assert (plane.observer.held_count, len(plane.observer.unclaimed_connections)) == (2, 1)


async def test_another_connection_from_the_same_port_ends_the_dial_for_the_first(make_plane: MakePlane) -> None:
    plane = make_plane()
    plane.connect(SILENT, port=50000)
    await until(lambda: plane.observer.held_count == 1)
    plane.peers.pop().close()
    plane.connect(SILENT, port=50000)
    await until(lambda: plane.observer.held_count == 2)
    assert [refusal.client_gone for refusal in plane.observer.refusals] == [True]
    assert plane.dialer.active == 1


async def test_more_than_so_many_are_plain(make_plane: MakePlane) -> None:
    plane = make_plane(max_held=2)
    for _ in range(2):
        plane.connect(SILENT)
    await until(lambda: plane.observer.held_count == 2)
    late = plane.connect(SILENT)
    assert await plane.outcome(late) == 0, "it succeeds at once, as every plain connect"
    assert plane.observer.not_held_count == 1
    await until(lambda: plane.observer.accepted_count == 1)


async def test_established_connections_do_not_count_as_held_but_as_connections(make_plane: MakePlane) -> None:
    plane = make_plane(max_held=1, max_connections=3)
    for count in (1, 2, 3):
        assert await plane.outcome(plane.connect(ANSWERS)) == 0
        await plane.accept()
        assert (plane.observer.held_count, plane.observer.not_held_count) == (count, 0)
    await until(lambda: plane.dialer.active == 3)
    plane.connect(ANSWERS)
    await until(lambda: plane.observer.not_held_count == 1)


async def test_two_connections_from_one_port_to_two_servers_keep_their_upstreams(make_plane: MakePlane) -> None:
    """The kernel must give the second another source port: that one leads to the listener already."""
    plane = make_plane()
    clients = [plane.connect(f"203.0.113.{last}", port=50001) for last in (1, 2)]
    assert [await plane.outcome(client) for client in clients] == [0, 0]
    servers = [await plane.accept() for _ in clients]
    assert plane.nobody_else_came()
    for client, said in zip(clients, (b"first", b"other"), strict=True):
        await client.send(said)
    said_to = {server.sock.getsockname()[0].rpartition(":")[2]: await server.receive(5) for server in servers}
    assert said_to == {"7101": b"first", "7102": b"other"}


async def test_local_networks_are_not_held(make_plane: MakePlane) -> None:
    plane = make_plane()
    client = plane.connect("203.0.113.63")
    assert await plane.outcome(client) == errno.ECONNREFUSED  # by the guard: it has no route
    assert plane.observer.held_count == 0


async def test_a_syn_with_data_is_plain(make_plane: MakePlane) -> None:
    plane = make_plane()
    tcp_fastopen_connect = 30
    client = plane.connect(ANSWERS, options=(tcp_fastopen_connect,))
    await client.send(b"early")
    server = await plane.accept()
    assert await server.receive(5) == b"early"
    assert (plane.observer.held_count, plane.observer.accepted_count) == (0, 1)


async def test_stopping_refuses_those_who_wait(make_plane: MakePlane) -> None:
    plane = make_plane()
    client = plane.connect(SILENT)
    await until(lambda: plane.observer.held_count == 1)
    plane.gate.stop()
    assert await plane.outcome(client) == errno.ECONNREFUSED
    assert plane.dialer.active == 0
    plane.gate.stop()


async def test_who_comes_when_all_are_turned_away_is_refused(make_plane: MakePlane) -> None:
    plane = make_plane()
    waiting = plane.connect(SILENT)
    await until(lambda: plane.observer.held_count == 1)
    plane.gate.turn_away()
    assert await plane.outcome(waiting) == errno.ECONNREFUSED
    assert await plane.outcome(plane.connect(ANSWERS)) == errno.ECONNREFUSED
    assert (plane.observer.held_count, plane.observer.accepted_count, plane.dialer.active) == (1, 0, 0)
    assert plane.nobody_else_came()


async def test_the_listener_hands_others_to_the_dialer(make_plane: MakePlane) -> None:
    plane = make_plane()
    plane.gate.stop()  # the queues have no reader: plain
    client = plane.connect(ANSWERS)
    assert await plane.outcome(client) == 0
    await plane.accept()
    assert (plane.observer.held_count, plane.observer.accepted_count) == (0, 1)
