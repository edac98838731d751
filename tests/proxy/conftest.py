"""Relays over real loopback TCP, dialers where every way is known, and the promise that no descriptor is left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.lab import PREFIX
from tests.proxy.observer import Recording
from tests.proxy.office import LONG_S, MARK, MakeOffice, Office
from tests.proxy.peer import Peer, descriptors, raw, tcp_pair, until
from tests.proxy.reactors import IS_COMPILED, CountedReactor, new_reactor
from tests.proxy.ways import Ways, inside
from tnat64d.core.config import parse
from tnat64d.core.policy import StickyMemory
from tnat64d.core.settings import StickyScope
from tnat64d.proxy.deadlines import Deadlines
from tnat64d.proxy.destination import Destinations
from tnat64d.proxy.dialer import Dialer, DialSettings
from tnat64d.proxy.loop import ReactorLoop
from tnat64d.proxy.pipes import Pipe, PipePool
from tnat64d.proxy.reactor import Reactor
from tnat64d.proxy.relay import FULL_READS, READS_AND_WRITES, End, Relay

both_sides = pytest.mark.parametrize("side", ["client", "server"])

COPY_ONLY = 1 << 30
SPLICE_ONLY = 0


@pytest.fixture(params=[COPY_ONLY, FULL_READS, SPLICE_ONLY], ids=["copying", "both", "splicing"])
def full_reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """When a direction begins to splice: never, as it does, at once."""
    monkeypatch.setattr("tnat64d.proxy.relay.FULL_READS", request.param)
    return int(request.param)


@pytest.fixture
async def reactor() -> AsyncIterator[CountedReactor]:
    """A reactor on the test's loop; no callback may have failed and no descriptor be left when it has stopped."""
    failures: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    before = descriptors()
    if isinstance(loop, ReactorLoop):
        reactor = loop.reactor
    else:
        reactor = new_reactor()
        reactor.nest(loop)
    yield cast(CountedReactor, reactor)
    reactor.unnest()
    assert descriptors() == before
    assert failures == []


def nothing_is_pending(dialer: Dialer) -> bool:
    """Whether no deadline waits for a connection of the past, and none is remembered."""
    every_kind = [kind for name in dir(dialer) if isinstance(kind := getattr(dialer, name), Deadlines)]
    return len(every_kind) == 5 and not any((dialer.own_connections, *(kind._pending for kind in every_kind)))


class CountingPool(PipePool):
    """Knows how often it was asked."""

    asked = 0

    def take(self) -> Pipe | None:
        self.asked += 1
        return super().take()


@pytest.fixture
def pool(reactor: Reactor) -> Iterator[CountingPool]:
    """The pipes of all wires of a test."""
    pool = cast(CountingPool, PipePool()) if IS_COMPILED else CountingPool()
    yield pool
    pool.close()


@dataclass(eq=False)
class Wire:
    """A client and a server with a relay between them."""

    client: Peer
    server: Peer
    relay: Relay
    ends: list[Relay]

    async def ended(self) -> Relay:
        """Wait until the relay has ended; it."""
        await until(lambda: self.ends)
        assert self.ends == [self.relay], "an end is told once"
        return self.relay

    def from_(self, side: str) -> tuple[Peer, Peer]:
        """The peer called `side`, and the other."""
        return (self.client, self.server) if side == "client" else (self.server, self.client)

    def end(self, side: str) -> End:
        """The relay's end at the peer called `side`."""
        return self.relay.client if side == "client" else self.relay.upstream


MakeWire = Callable[..., Wire]


@pytest.fixture
async def make_wire(reactor: Reactor, pool: CountingPool) -> AsyncIterator[MakeWire]:
    """Makes wires, started unless `start=False`; `sizes_bytes` limits the buffers of all four sockets."""
    wires: list[Wire] = []

    def make(*, sizes_bytes: int = 0, start: bool = True) -> Wire:
        client, client_side = tcp_pair(sizes_bytes=sizes_bytes)
        upstream_side, server = tcp_pair(sizes_bytes=sizes_bytes)
        upstream_side.setblocking(False)
        client_side.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # as the listener's clients
        ends: list[Relay] = []
        relay = Relay(reactor, pool, raw(client_side), raw(upstream_side), ends.append)
        reactor.watch(relay.upstream.fd, READS_AND_WRITES, relay.upstream)
        wire = Wire(Peer(client), Peer(server), relay, ends)
        wires.append(wire)
        if start:
            relay.start(None, 0)
        return wire

    yield make
    for wire in wires:
        wire.relay.abort()
        wire.client.close()
        wire.server.close()


@pytest.fixture
def wire(make_wire: MakeWire) -> Wire:
    """One wire."""
    return make_wire()


@pytest.fixture(scope="module")
def ways_namespace() -> Iterator[Path]:
    """Where every way ends as its address says."""
    with Ways() as ways:
        yield ways.namespaces["ways"].path


@pytest.fixture
def inside_ways(ways_namespace: Path) -> Iterator[None]:
    """The test runs where every way ends as its address says."""
    with inside(ways_namespace):
        yield


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
