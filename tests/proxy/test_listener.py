"""The listener: who is let in, how many, and what happens when descriptors run out.

Needs no privileges: all destinations go to ::1, as if it were their NAT64, and IPv4 is never dialled.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.proxy.conftest import nothing_is_pending
from tests.proxy.observer import Recording
from tests.proxy.peer import Peer, descriptors, descriptors_left, noise, until
from tests.proxy.reactors import CountedReactor
from tnat64d.core.config import Config, Route, Way
from tnat64d.core.policy import StickyMemory
from tnat64d.core.settings import Mode, StickyScope
from tnat64d.daemon import listening as daemon_listening
from tnat64d.kernel import original_dst
from tnat64d.kernel.original_dst import Destination, DestinationOf
from tnat64d.proxy import listener as listener_module
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.destination import Destinations, Target
from tnat64d.proxy.dial import AcceptedDial, Attempt
from tnat64d.proxy.dialer import Dialer, DialSettings
from tnat64d.proxy.listener import FEWEST_ACCEPTS, NEWS_PER_ACCEPT, Listener
from tnat64d.proxy.reactor import NEWS_PER_SHARE
from tnat64d.proxy.relay import End, Relay
from tnat64d.proxy.sources import SourceLimit

pytestmark = pytest.mark.interpreted

NEVER_S = 0.05
PLENTY = 1_000_000


class EverythingAt(Destinations):
    """Resolves whatever was captured to one address."""

    def __init__(self, nat64: Destination) -> None:
        super().__init__(Config(), StickyScope.GLOBAL, ("127.0.0.1", 1), lambda target: None)
        route = Route(Way.NAT64, None, None, None, "a test")
        self._target = Target(("192.0.2.1", nat64[1]), route, nat64, None)

    def resolve(self, destination: bytes | Destination) -> Target | None:
        return self._target


@dataclass(eq=False)
class Plane:
    """A listener and all behind it, and the server that everything leads to."""

    reactor: CountedReactor
    listening: socket.socket
    server: socket.socket
    observer: Recording
    dialer: Dialer
    listener: Listener
    peers: list[Peer] = field(default_factory=list)

    def client_socket(self) -> socket.socket:
        """Not connected yet: making one may be impossible later."""
        sock = socket.socket()
        self.peers.append(Peer(sock))
        return sock

    def connect(self, sock: socket.socket | None = None) -> Peer:
        """A client that has connected, or will have as soon as the loop runs."""
        sock = sock or self.client_socket()
        assert sock.connect_ex(self.listening.getsockname()) in (0, errno.EINPROGRESS)
        return Peer(sock)

    async def accept(self) -> Peer:
        """The server's end of the next connection that came through."""
        async with asyncio.timeout(5):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.server)
        self.peers.append(Peer(sock))
        return self.peers[-1]

    async def established(self) -> tuple[Peer, Peer]:
        """A new connection through the proxy, proven by a byte."""
        client = self.connect()
        server = await self.accept()
        await client.send(b"?")
        assert await server.receive(1) == b"?"
        return client, server


MakePlane = Callable[..., Plane]


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A listening socket as the daemon makes it, on any port."""
    (sock,) = daemon_listening.listen(daemon_listening.LOOPBACK, 0, 1, Mode.REDIRECT, keepalive_s=60)
    with sock:
        yield sock


@pytest.fixture
async def make_plane(reactor: CountedReactor, listening: socket.socket) -> AsyncIterator[MakePlane]:
    """Makes a plane; `destination_of` says of every connection that it was captured unless given."""
    loop = asyncio.get_running_loop()
    planes: list[Plane] = []

    def make(
        *,
        max_connections: int = PLENTY,
        sources: SourceLimit | None = None,
        destination_of: DestinationOf = lambda sock: ("192.0.2.1", 80),
        destinations: Destinations | None = None,
    ) -> Plane:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=4096)
        server.setblocking(False)
        observer = Recording()
        settings = DialSettings(0, fallback_delay_s=1, connect_timeout_s=5, idle_timeout_s=0, keepalive_s=60)
        dialer = Dialer(loop, reactor, settings, StickyMemory(1, sticky=[None]), observer)
        destinations = destinations or EverythingAt(("::1", server.getsockname()[1]))
        parts = (listening, destination_of, destinations, dialer, observer)
        listener = Listener(loop, reactor, *parts, max_connections, sources)
        observer.listener = listener
        planes.append(Plane(reactor, listening, server, observer, dialer, listener))
        listener.start()
        return planes[-1]

    yield make
    for plane in planes:
        plane.listener.stop()
        plane.dialer.abort_all()
        assert nothing_is_pending(plane.dialer)
        plane.dialer.close()
        plane.server.close()
        for peer in plane.peers:
            peer.close()


@pytest.fixture
def plane(make_plane: MakePlane) -> Plane:
    """A plane that takes everybody."""
    return make_plane()


async def test_a_captured_connection_reaches_its_destination(plane: Plane) -> None:
    client, server = await plane.established()
    server.half_close()
    assert await client.receive_all() == b""
    client.half_close()
    connection, relay = await plane.observer.closing()
    assert plane.observer.accepted_count == 1
    assert connection.client == client.sock.getsockname()
    assert connection.by_nat64
    assert connection.because == "NAT64 sticky"
    assert (relay.client.passed_bytes, relay.upstream.passed_bytes) == (1, 0)


async def test_a_connection_that_nobody_captured_is_reset_and_told(make_plane: MakePlane) -> None:
    listener = ("127.0.0.1", 0)
    plane = make_plane(
        destination_of=original_dst.redirected,
        destinations=Destinations(Config(), StickyScope.GLOBAL, listener, lambda target: None),
    )
    client = plane.connect()
    assert await client.reset_error() == errno.ECONNRESET
    assert plane.observer.not_captured_clients == [client.sock.getsockname()]
    assert plane.observer.accepted_count == 0


async def test_clients_have_the_options_that_the_listening_socket_was_given(plane: Plane) -> None:
    await plane.established()
    ((relay, _),) = plane.dialer._relays.items()
    for level, option in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.SOL_SOCKET, socket.SO_OOBINLINE),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    ):
        assert relay.client.sock.getsockopt(level, option), option


async def test_an_urgent_byte_that_a_client_sends_first_arrives(plane: Plane) -> None:
    client = plane.connect()
    client.sock.send(b"!", socket.MSG_OOB)  # before the loop has run: it is there when the relay begins
    server = await plane.accept()
    assert await server.receive(1) == b"!"


async def test_one_connection_too_many_of_a_source_is_reset_and_told(make_plane: MakePlane) -> None:
    sources = SourceLimit(1, is_own=lambda address: False)
    plane = make_plane(sources=sources)
    await plane.established()
    client = plane.connect()
    assert await client.reset_error() == errno.ECONNRESET
    assert plane.observer.over_limit_clients == [client.sock.getsockname()]
    assert plane.observer.accepted_count == 1
    sources.leave("127.0.0.1")
    await plane.established()


async def test_a_connection_that_nobody_captured_is_not_counted_for_its_source(make_plane: MakePlane) -> None:
    sources = SourceLimit(1, is_own=lambda address: False)
    plane = make_plane(sources=sources, destination_of=lambda sock: None)
    for _ in range(2):
        assert await plane.connect().reset_error() == errno.ECONNRESET
    assert len(plane.observer.not_captured_clients) == 2
    assert plane.observer.over_limit_clients == []


async def test_beyond_the_limit_connections_wait_until_one_has_ended(make_plane: MakePlane) -> None:
    plane = make_plane(max_connections=2)
    (first, first_server), second = await plane.established(), await plane.established()
    waiting = [plane.connect() for _ in range(3)]
    for client in waiting:
        await client.send(b"!")
    turns = plane.reactor.turns
    await asyncio.sleep(NEVER_S)
    assert plane.observer.accepted_count == 2
    assert plane.reactor.turns == turns, "those who wait cost nothing"
    first.close()
    first_server.close()
    assert await (await plane.accept()).receive(1) == b"!"
    await asyncio.sleep(NEVER_S)
    assert plane.observer.accepted_count == 3
    second[0].reset()
    assert await (await plane.accept()).receive(1) == b"!"


async def test_a_crowd_larger_than_a_turn_is_let_in(plane: Plane) -> None:
    for _ in range(2 * FEWEST_ACCEPTS + 1):
        plane.connect()
    for _ in range(2 * FEWEST_ACCEPTS + 1):
        await plane.accept()


async def test_a_crowd_makes_others_wait_for_two_of_it_at_a_time(plane: Plane) -> None:
    client, server = await plane.established()
    accepted_before = plane.observer.accepted_count
    for _ in range(50):
        plane.connect()
    client.sock.send(b"!")
    plane.reactor.turn(0.0)
    assert server.sock.recv(1) == b"!"
    assert plane.observer.accepted_count == accepted_before + 2


async def test_beside_much_else_a_crowd_is_let_in_in_proportion(plane: Plane) -> None:
    class Other:
        def go_on(self) -> None:
            plane.reactor.queue(self)

        def crashed(self) -> None:
            raise AssertionError

    clients = [(await plane.established())[0] for _ in range(4 * NEWS_PER_ACCEPT)]
    accepted_before = plane.observer.accepted_count
    for _ in range(100):
        plane.connect()
    for client in clients:
        client.sock.send(b"!")
    plane.reactor.turn(0.0)
    assert plane.observer.accepted_count == accepted_before + 4
    plane.reactor.queue(Other())
    accepted_before = plane.observer.accepted_count
    plane.reactor.turn(0.0)
    assert plane.observer.accepted_count >= accepted_before + NEWS_PER_SHARE // NEWS_PER_ACCEPT


async def test_stopping_takes_everybody_who_has_connected_and_then_nobody(plane: Plane) -> None:
    for _ in range(2 * FEWEST_ACCEPTS + 1):
        plane.connect()
    plane.listener.stop()
    assert plane.observer.accepted_count == 2 * FEWEST_ACCEPTS + 1
    for _ in range(2 * FEWEST_ACCEPTS + 1):
        await plane.accept()
    late = plane.connect()
    plane.listener.connection_ended()
    plane.listener.pause()
    await asyncio.sleep(NEVER_S)
    assert plane.observer.accepted_count == 2 * FEWEST_ACCEPTS + 1
    late.close()


async def test_without_a_descriptor_to_accept_with_it_pauses_serves_what_it_has_and_resumes(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "PAUSE_S", 0.1)
    client, server = await plane.established()
    late = plane.client_socket()
    with descriptors_left(0) as release:
        plane.connect(late)
        await until(lambda: plane.observer.exhaustions)
        turns = plane.reactor.turns
        await asyncio.sleep(NEVER_S)
        assert plane.reactor.turns == turns, "it does not spin"
        await client.send(noise(1000))
        assert await server.receive(1000) == noise(1000)
        await until(lambda: plane.observer.exhaustions == 2)
        assert plane.observer.accepted_count == 1
        release()
        late_server = await plane.accept()
        await late_server.send(b"welcome")
        assert await Peer(late).receive(7) == b"welcome"
    assert plane.observer.refusals == []


async def test_without_a_descriptor_to_dial_with_the_client_is_reset_and_the_others_wait(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "PAUSE_S", 0.1)
    clients = [plane.client_socket() for _ in range(5)]
    with descriptors_left(1) as release:
        for client in clients:
            plane.connect(client)
        connection = await plane.observer.refusal()
        assert connection.nat64_error == errno.EMFILE
        assert await Peer(clients[0]).reset_error() == errno.ECONNRESET
        turns = plane.reactor.turns
        await asyncio.sleep(NEVER_S)
        assert (plane.observer.exhaustions, plane.observer.accepted_count) == (1, 1)
        assert plane.reactor.turns == turns
        release()
        for _ in clients[1:]:
            await (await plane.accept()).send(b"welcome")
        for client in clients[1:]:
            assert await Peer(client).receive(7) == b"welcome"


async def test_a_bug_in_finding_the_destination_ends_its_own_connection_only(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(destinations: Destinations, destination: bytes | Destination) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(EverythingAt, "resolve", bug)
        assert await plane.connect().reset_error() == errno.ECONNRESET
    assert "ZeroDivisionError" in caplog.text
    await plane.established()


async def test_a_bug_in_dialling_ends_its_own_connection_only(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(dialer: Dialer, is_nat64: bool) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(Dialer, "socket", bug)
        client = plane.connect()
        assert await client.reset_error() == errno.ECONNRESET
    assert plane.dialer.active == 0
    assert len(plane.observer.refusals) == 1
    assert "ZeroDivisionError" in caplog.text
    await plane.established()


async def test_a_bug_at_the_start_of_a_relay_ends_its_own_connection_only(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*arguments: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr("tnat64d.proxy.relay.End.pump", bug)
        client = plane.connect()
        server = await plane.accept()
        assert await client.reset_error() == errno.ECONNRESET
        assert await server.reset_error() == errno.ECONNRESET
    assert plane.dialer.active == 0
    assert len(plane.observer.closings) == 1
    assert "ZeroDivisionError" in caplog.text
    await plane.established()


async def test_what_has_ended_is_freed_without_the_garbage_collector(plane: Plane) -> None:
    def alive() -> int:
        return sum(type(thing) in (AcceptedDial, Attempt, Relay, End, Connection) for thing in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        for _ in range(3):
            client, server = await plane.established()
            client.close()
            server.close()
        plane.server.close()
        assert await plane.connect().reset_error() == errno.ECONNRESET
        await until(lambda: plane.dialer.active == 0)
        assert len(plane.observer.closings) + len(plane.observer.refusals) == 4
        plane.observer.closings.clear()
        plane.observer.refusals.clear()
        assert alive() == before
    finally:
        gc.enable()


@pytest.mark.timeout(60)
async def test_ten_thousand_short_connections_leave_nothing_behind(plane: Plane) -> None:
    loop = asyncio.get_running_loop()
    address = plane.listening.getsockname()

    async def ask() -> None:
        for _ in range(10_000 // 20):
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                await loop.sock_sendall(sock, b"question")
                assert await loop.sock_recv(sock, 100) == b"answer"
                assert await loop.sock_recv(sock, 100) == b""

    async def answer() -> None:
        while True:
            sock, _ = await loop.sock_accept(plane.server)
            with sock:
                assert await loop.sock_recv(sock, 100) == b"question"
                await loop.sock_sendall(sock, b"answer")

    await plane.established()
    before = descriptors()
    async with asyncio.TaskGroup() as servers:
        serving = [servers.create_task(answer()) for _ in range(20)]
        async with asyncio.TaskGroup() as clients:
            for _ in range(20):
                clients.create_task(ask())
        for task in serving:
            task.cancel()
    await until(lambda: plane.dialer.active == 1)
    assert plane.observer.accepted_count == 10_001
    assert len(plane.observer.closings) == 10_000
    assert not any(relay.closed_by_reset for _, relay in plane.observer.closings)
    assert descriptors() == before
