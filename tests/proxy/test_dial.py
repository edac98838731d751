"""The attempts for one connection: which way it goes, with every outcome of both ways made by real routes."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

import pytest

from tests.lab import PREFIX
from tests.proxy.office import LONG_S, PORT, SOON_S, MakeOffice
from tests.proxy.peer import Peer, descriptors, descriptors_left, until
from tests.proxy.ways import destination
from tnat64d.core.policy import ScopeState
from tnat64d.proxy import dialer as dialer_module
from tnat64d.proxy.dial import AcceptedDial

pytestmark = pytest.mark.netns

STICKY, IPV4_FIRST = ScopeState.NAT64_STICKY, ScopeState.IPV4_FIRST


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


async def test_a_client_whose_dial_is_long_meets_a_reset_should_the_process_be_killed(
    make_office: MakeOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer_module, "SETTLE_S", SOON_S)
    office = make_office(fallback_delay_s=LONG_S)
    client, _ = office.call(destination("silent", "silent"))
    (dial,) = office.dialer._dials
    assert isinstance(dial, AcceptedDial)
    await until(lambda: dial.client_mask is not None)
    os.close(dial.client.detach())  # as the kernel would
    assert await client.reset_error() == errno.ECONNRESET


async def test_a_long_dial_that_connects_ends_with_fins_again(
    make_office: MakeOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer_module, "SETTLE_S", SOON_S / 5)
    office = make_office(fallback_delay_s=SOON_S)
    office.serve("nat64")
    office.call(destination("silent", "answers"))
    await office.accept("nat64")
    (relay,) = office.dialer._relays
    assert not any(relay.client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
