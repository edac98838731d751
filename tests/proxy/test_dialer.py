"""The dialer: which way a connection goes, with every outcome of both ways made by real routes."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab import PREFIX
from tests.proxy.conftest import nothing_is_pending
from tests.proxy.observer import Recording
from tests.proxy.peer import Peer, descriptors, descriptors_left, raw, tcp_pair, until
from tests.proxy.reactors import CountedReactor
from tests.proxy.ways import Ways, destination, inside
from tnat64d.core.config import parse
from tnat64d.core.policy import ScopeState, StickyMemory
from tnat64d.core.settings import StickyScope
from tnat64d.proxy import dialer as dialer_module
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.destination import Destinations
from tnat64d.proxy.dialer import Dialer, DialSettings, keep_alive

pytestmark = pytest.mark.netns

PORT = 7000
MARK = 0x6464
SOON_S = 0.05
LONG_S = 30.0
STICKY, IPV4_FIRST = ScopeState.NAT64_STICKY, ScopeState.IPV4_FIRST


@pytest.fixture(scope="module")
def namespace() -> Iterator[Path]:
    """Where every way ends as its address says."""
    with Ways() as ways:
        yield ways.namespaces["ways"].path


@pytest.fixture
def inside_ways(namespace: Path) -> Iterator[None]:
    """The test runs there."""
    with inside(namespace):
        yield


@dataclass(eq=False)
class Office:
    """A dialer, and the servers at the ends of both ways."""

    dialer: Dialer
    memory: StickyMemory
    observer: Recording
    destinations: Destinations
    servers: dict[str, socket.socket] = field(default_factory=dict)
    peers: list[Peer] = field(default_factory=list)

    def serve(self, *ways: str, backlog: int = 16) -> None:
        """Listen at the end of these ways; the others refuse."""
        for way in ways:
            family, address = (socket.AF_INET, "") if way == "ipv4" else (socket.AF_INET6, "")
            server = socket.create_server((address, PORT), family=family, backlog=backlog)
            server.setblocking(False)
            self.servers[way] = server

    def call(self, address: str, descriptors: int | None = None) -> tuple[Peer, Connection]:
        """A client whose connection to `address` was captured; only so many `descriptors` are left then."""
        client, captured = tcp_pair()
        self.peers.append(Peer(client))
        target = self.destinations.resolve((address, PORT))
        assert target is not None
        connection = Connection(client.getsockname(), target, asyncio.get_running_loop().time())
        with nullcontext() if descriptors is None else descriptors_left(descriptors):
            self.dialer.begin(raw(captured), connection)
        return self.peers[-1], connection

    async def accept(self, way: str) -> Peer:
        """The server's end of a connection that came by `way`."""
        async with asyncio.timeout(5):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.servers[way])
        self.peers.append(Peer(sock))
        return self.peers[-1]

    def nobody_came(self, way: str) -> bool:
        """Whether no connection waits at the server at the end of `way`."""
        try:
            sock, _ = self.servers[way].accept()
        except BlockingIOError:
            return True
        sock.close()
        return False


MakeOffice = Callable[..., Office]


@pytest.fixture
async def make_office(inside_ways: None, reactor: CountedReactor) -> AsyncIterator[MakeOffice]:
    """Makes an office; times are long unless given."""
    made: list[Office] = []

    def make(
        *,
        sticky: bool = False,
        fallback_delay_s: float = LONG_S,
        connect_timeout_s: float = LONG_S,
        idle_timeout_s: float = LONG_S,
        keepalive_s: int = 60,
        config: str = f"nat64_prefix = {PREFIX}",
    ) -> Office:
        settings = DialSettings(MARK, fallback_delay_s, connect_timeout_s, idle_timeout_s, keepalive_s)
        memory, observer = StickyMemory(16, sticky=[None] if sticky else ()), Recording()
        dialer = Dialer(asyncio.get_running_loop(), reactor, settings, memory, observer)
        destinations = Destinations(
            parse(config, "test"), StickyScope.GLOBAL, ("127.0.0.1", 6464), lambda target: None
        )
        made.append(Office(dialer, memory, observer, destinations))
        return made[-1]

    yield make
    for office in made:
        office.dialer.abort_all()
        assert nothing_is_pending(office.dialer)
        office.dialer.close()
        for sock in (*office.servers.values(), *(peer.sock for peer in office.peers)):
            sock.close()


@dataclass(frozen=True)
class Way:
    """A destination's outcomes, and what must come of it. `servers`: the ways at whose end somebody listens."""

    ipv4: str
    nat64: str
    relayed: str = ""
    because: str = "IPv4 first"
    sticky: bool = False
    lessons: tuple[ScopeState, ...] = ()
    errors: tuple[int, int] = (0, 0)
    servers: tuple[str, ...] = ("ipv4", "nat64")

    def __str__(self) -> str:
        start = "sticky, " if self.sticky else ""
        return f"{start}IPv4 {self.ipv4}, NAT64 {self.nat64}, listening {' '.join(self.servers) or 'nobody'}"


REFUSED, NET, HOST, TIMED_OUT = errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT
SILENT, UNREACHABLE, GONE, AS_BEFORE = "IPv4 silent", "IPv4 unreachable", "NAT64 unreachable", "NAT64 sticky"
LEARNED, FORGOTTEN = (STICKY,), (IPV4_FIRST,)

WAYS = [
    # IPv4 first
    Way("answers", "answers", "ipv4"),
    Way("answers", "answers", errors=(REFUSED, 0), servers=("nat64",)),
    Way("unreachable", "answers", "nat64", UNREACHABLE, lessons=LEARNED, errors=(HOST, 0)),
    Way("no route", "answers", "nat64", UNREACHABLE, lessons=LEARNED, errors=(NET, 0)),
    Way("late", "answers", "nat64", UNREACHABLE, lessons=LEARNED, errors=(HOST, 0)),
    Way("no route", "answers", "", UNREACHABLE, lessons=LEARNED, errors=(NET, REFUSED), servers=("ipv4",)),
    Way("no route", "unreachable", "", UNREACHABLE, errors=(NET, HOST)),
    Way("late", "late", "", UNREACHABLE, errors=(HOST, HOST)),
    Way("no route", "silent", "", UNREACHABLE, errors=(NET, TIMED_OUT)),
    # IPv4 silent for the fallback delay
    Way("silent", "answers", "nat64", SILENT, lessons=LEARNED),
    Way("silent", "answers", "", SILENT, lessons=LEARNED, errors=(0, REFUSED), servers=()),
    Way("silent", "unreachable", "", GONE, errors=(TIMED_OUT, HOST)),
    Way("silent", "late", "", GONE, errors=(TIMED_OUT, HOST)),
    Way("silent", "silent", "", SILENT, errors=(TIMED_OUT, TIMED_OUT)),
    # NAT64 sticky
    Way("answers", "answers", "nat64", AS_BEFORE, sticky=True),
    Way("answers", "answers", "", AS_BEFORE, sticky=True, errors=(0, REFUSED), servers=("ipv4",)),
    Way("answers", "unreachable", "ipv4", GONE, sticky=True, lessons=FORGOTTEN, errors=(0, HOST)),
    Way("answers", "no route", "ipv4", GONE, sticky=True, lessons=FORGOTTEN, errors=(0, NET)),
    Way("answers", "late", "ipv4", GONE, sticky=True, lessons=FORGOTTEN, errors=(0, HOST)),
    Way("no route", "unreachable", "", GONE, sticky=True, lessons=FORGOTTEN, errors=(NET, HOST)),
    Way("answers", "silent", "", AS_BEFORE, sticky=True, errors=(0, TIMED_OUT)),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_a_connection_goes_the_way_that_policy_says(make_office: MakeOffice, way: Way) -> None:
    office = make_office(sticky=way.sticky, fallback_delay_s=SOON_S, connect_timeout_s=4 * SOON_S)
    office.serve(*way.servers)
    client, connection = office.call(destination(way.ipv4, way.nat64))
    if way.relayed:
        await client.send(b"question")
        server = await office.accept(way.relayed)
        assert await server.receive(8) == b"question"
        await server.send(b"answer")
        server.half_close()
        assert await client.receive_all() == b"answer"
        client.half_close()
        assert (await office.observer.closing())[0] is connection
        assert connection.by_nat64 == (way.relayed == "nat64")
    else:
        with pytest.raises(ConnectionResetError):  # an end of stream would look like an empty answer
            await client.receive(1)
        assert await office.observer.refusal() is connection
    assert connection.because == way.because
    assert (connection.ipv4_error, connection.nat64_error) == way.errors
    assert office.observer.lessons == [(None, state) for state in way.lessons]
    before = STICKY if way.sticky else IPV4_FIRST
    assert office.memory.state(None) == (way.lessons[-1] if way.lessons else before)
    assert office.dialer.active == 0
    assert all(office.nobody_came(other) for other in office.servers)
    assert len(office.observer.refusals) + len(office.observer.closings) == 1


async def test_what_one_connection_learned_holds_for_the_next(make_office: MakeOffice) -> None:
    office = make_office()
    office.serve("ipv4", "nat64")
    office.call(destination("no route", "answers"))
    await office.accept("nat64")
    await until(lambda: office.observer.lessons)
    _, second = office.call(destination("answers", "answers"))
    await office.accept("nat64")
    assert second.because == "NAT64 sticky"
    _, third = office.call(destination("answers", "unreachable"))
    await office.accept("ipv4")
    assert office.observer.lessons == [(None, STICKY), (None, IPV4_FIRST)]
    _, fourth = office.call(destination("answers", "answers"))
    await office.accept("ipv4")
    assert (third.because, fourth.because) == ("NAT64 unreachable", "IPv4 first")


async def test_a_server_that_has_said_all_before_anybody_looked_is_heard(make_office: MakeOffice) -> None:
    office = make_office()
    office.serve("ipv4")
    client, _ = office.call(destination("answers", "answers"))
    server, _ = office.servers["ipv4"].accept()  # without a turn of the loop in between
    office.peers.append(Peer(server))
    server.send(b"goodbye")
    server.shutdown(socket.SHUT_WR)
    assert await client.receive_all() == b"goodbye"


async def test_a_local_destination_is_dialled_by_ipv4_whatever_comes_of_it(make_office: MakeOffice) -> None:
    office = make_office(config=f"nat64_prefix = {PREFIX}\nlocal = 203.0.113.0/24", sticky=True)
    office.serve("ipv4", "nat64")
    client, connection = office.call(destination("no route", "answers"))
    assert await client.reset_error() == errno.ECONNRESET
    assert (connection.ipv4_error, connection.nat64_error) == (NET, 0)
    assert office.nobody_came("nat64")
    assert office.observer.lessons == []


async def test_the_race_may_be_won_by_ipv4(make_office: MakeOffice) -> None:
    office = make_office(fallback_delay_s=SOON_S)
    office.serve("ipv4", backlog=0)
    # A full backlog is silent; the SYN that comes again one second later (RFC 6298, 2.1) finds room.
    with socket.create_connection(("192.0.2.1", PORT)):
        address = destination("answers", "silent")
        client, connection = office.call(address)
        await until(lambda: connection.because == "IPv4 silent")
        (await office.accept("ipv4")).close()
        before = descriptors()
        server = await office.accept("ipv4")
        await client.send(b"by IPv4")
        assert await server.receive(7) == b"by IPv4"
        # One more is the server's end of this connection, one less the NAT64 attempt.
        assert len(descriptors()) == len(before)
    assert not connection.by_nat64
    assert office.observer.lessons == []


async def test_ipv4_may_still_answer_when_nat64_cannot_be_dialled_for_want_of_descriptors(
    make_office: MakeOffice,
) -> None:
    office = make_office(fallback_delay_s=SOON_S)
    office.serve("ipv4", backlog=0)
    with socket.create_connection(("192.0.2.1", PORT)):  # the backlog is full, see above
        client, connection = office.call(destination("answers", "silent"))
        with descriptors_left(0):
            await until(lambda: connection.nat64_error)
        assert connection.nat64_error == errno.EMFILE
        (await office.accept("ipv4")).close()
        server = await office.accept("ipv4")
        await client.send(b"by IPv4")
        assert await server.receive(7) == b"by IPv4"
    assert not connection.by_nat64
    assert office.observer.lessons == []


async def test_the_loser_of_the_race_is_closed(make_office: MakeOffice) -> None:
    office = make_office(fallback_delay_s=SOON_S)
    office.serve("nat64")
    client, connection = office.call(destination("silent", "answers"))
    server = await office.accept("nat64")
    await client.send(b"?")
    await server.receive(1)
    sockets = sum(descriptor.endswith(" socket") for descriptor in descriptors())
    client.reset()
    await office.observer.closing()
    server.close()
    assert connection.by_nat64
    left = sum(descriptor.endswith(" socket") for descriptor in descriptors())
    assert sockets - left == 4, "the client, its captured end, the upstream and the server's end; no loser"


@pytest.mark.parametrize("sticky", [False, True])
async def test_without_a_descriptor_to_dial_with_the_client_is_reset_and_it_is_told(
    make_office: MakeOffice, sticky: bool
) -> None:
    office = make_office(sticky=sticky)
    office.serve("ipv4", "nat64")
    client, connection = office.call(destination("answers", "answers"), descriptors=0)
    assert await client.reset_error() == errno.ECONNRESET
    assert (connection.ipv4_error, connection.nat64_error) == ((0, errno.EMFILE) if sticky else (errno.EMFILE, 0))
    assert office.observer.exhaustions == 1
    assert office.observer.lessons == [], "it says nothing about NAT64"


async def test_only_ipv4_attempts_carry_the_mark(make_office: MakeOffice) -> None:
    office = make_office()
    office.serve("ipv4", "nat64")
    marks = {}
    for way, address in (
        ("ipv4", destination("answers", "answers")),
        ("nat64", destination("no route", "answers")),
    ):
        client, _ = office.call(address)
        server = await office.accept(way)
        await client.send(b"?")
        await server.receive(1)
        ((relay, _),) = office.dialer._relays.items()
        marks[way] = relay.upstream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        client.reset()
        await until(lambda: office.dialer.active == 0)
    assert marks == {"ipv4": MARK, "nat64": 0}


async def test_a_client_that_resets_during_a_long_dial_ends_it(
    make_office: MakeOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer_module, "SETTLE_S", SOON_S)
    office = make_office(fallback_delay_s=SOON_S)
    before = descriptors()
    early, _ = office.call(destination("silent", "silent"))
    early.reset()  # before anybody looks
    late, connection = office.call(destination("silent", "silent"))
    await until(lambda: connection.because == "IPv4 silent" and len(office.observer.refusals) == 1)
    late.reset()
    await until(lambda: len(office.observer.refusals) == 2)
    assert [refusal.client_gone for refusal in office.observer.refusals] == [True, True]
    assert office.dialer.active == 0
    assert descriptors() == before


@pytest.mark.parametrize("settled", [True, False], ids=["watched", "not watched yet"])
async def test_a_client_that_half_closes_during_a_long_dial_is_served(
    make_office: MakeOffice, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    monkeypatch.setattr(dialer_module, "SETTLE_S", SOON_S if settled else LONG_S)
    office = make_office(fallback_delay_s=3 * SOON_S)
    office.serve("nat64")
    client, _ = office.call(destination("silent", "answers"))
    await client.send(b"question")
    client.half_close()
    server = await office.accept("nat64")
    assert await server.receive_all() == b"question"
    await server.send(b"answer")
    server.close()
    assert await client.receive_all() == b"answer"
    _, relay = await office.observer.closing()
    assert not relay.closed_by_reset


async def test_what_a_client_sends_during_a_long_dial_arrives(
    make_office: MakeOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer_module, "SETTLE_S", SOON_S / 5)
    office = make_office(fallback_delay_s=SOON_S)
    office.serve("nat64")
    client, connection = office.call(destination("silent", "answers"))
    await client.send(b"some ")
    await until(lambda: connection.because == "IPv4 silent")
    server = await office.accept("nat64")
    await client.send(b"more")
    assert await server.receive(9) == b"some more"


async def test_keepalive_is_set_when_a_connection_has_lived_for_a_while(
    make_office: MakeOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer_module, "SETTLE_S", SOON_S)
    office = make_office(keepalive_s=50)
    office.serve("ipv4")
    client, _ = office.call(destination("answers", "answers"))
    server = await office.accept("ipv4")
    await client.send(b"?")
    await server.receive(1)
    ((relay, _),) = office.dialer._relays.items()
    upstream = relay.upstream.sock
    assert not upstream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), "a short life does not pay for it"
    await until(lambda: upstream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    assert upstream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 50
    assert upstream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10


async def test_an_idle_connection_is_reset_after_the_timeout_and_not_before(make_office: MakeOffice) -> None:
    idle_timeout_s = 0.4
    loop = asyncio.get_running_loop()
    office = make_office(idle_timeout_s=idle_timeout_s)
    office.serve("ipv4")
    client, connection = office.call(destination("answers", "answers"))
    server = await office.accept("ipv4")
    for _ in range(8):
        await asyncio.sleep(idle_timeout_s / 4)
        await server.send(b".")
        last = loop.time()
        assert await client.receive(1) == b"."
    _, relay = await office.observer.closing()
    assert loop.time() - last >= idle_timeout_s
    assert (connection.idle, relay.closed_by_reset) == (True, True)
    assert await client.reset_error() == errno.ECONNRESET
    assert await server.reset_error() == errno.ECONNRESET


async def test_a_connection_without_a_byte_lives_as_long_as_the_idle_timeout(make_office: MakeOffice) -> None:
    loop = asyncio.get_running_loop()
    office = make_office(idle_timeout_s=0.2)
    office.serve("ipv4")
    start = loop.time()
    office.call(destination("answers", "answers"))
    await office.observer.closing()
    assert loop.time() - start >= 0.2


@pytest.mark.usefixtures("inside_ways")
def test_a_listener_on_every_address_knows_the_hosts_own_ones() -> None:
    destinations = Destinations(
        parse(f"nat64_prefix = {PREFIX}", "test"), StickyScope.GLOBAL, ("0.0.0.0", PORT), lambda target: None
    )
    assert destinations.resolve(("192.0.2.1", PORT)) is None
    assert destinations.resolve(("192.0.2.1", PORT + 1)) is not None
    assert destinations.resolve(("198.51.100.1", PORT)) is not None


async def test_abort_all_resets_dials_and_relays(make_office: MakeOffice) -> None:
    office = make_office()
    office.serve("ipv4")
    relayed, _ = office.call(destination("answers", "answers"))
    server = await office.accept("ipv4")
    await relayed.send(b"?")
    await server.receive(1)
    dialled, _ = office.call(destination("silent", "silent"))
    assert office.dialer.active == 2
    office.dialer.abort_all()
    assert office.dialer.active == 0
    for peer in (relayed, server, dialled):
        assert await peer.reset_error() == errno.ECONNRESET


@pytest.mark.parametrize("gone", [True, False], ids=["ended", "open"])
def test_keep_alive_does_not_mind_a_connection_that_has_ended(gone: bool) -> None:
    client, captured = tcp_pair()
    if gone:
        captured.close()
    keep_alive(captured, 5)
    keep_alive(captured, 0)
    captured.close()
    client.close()
