"""What connections share: what is learned, the mark, keepalive, the idle timeout, and the end of all of them."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from tests.proxy.office import MARK, SOON_S, MakeOffice
from tests.proxy.peer import tcp_pair, until
from tests.proxy.ways import destination
from tnat64d.core.policy import ScopeState
from tnat64d.proxy import dialer as dialer_module
from tnat64d.proxy.dialer import keep_alive

pytestmark = pytest.mark.netns


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
    assert office.observer.lessons == [(None, ScopeState.NAT64_STICKY), (None, ScopeState.IPV4_FIRST)]
    _, fourth = office.call(destination("answers", "answers"))
    await office.accept("ipv4")
    assert (third.because, fourth.because) == ("NAT64 unreachable", "IPv4 first")


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
