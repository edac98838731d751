"""Every FIN and RST comes out as it went in, and no byte is lost. Big flows: test_relay_bulk.py."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest

from tests.proxy.conftest import MakeWire, Wire, both_sides
from tests.proxy.peer import Peer, noise, until
from tnat64d.proxy.pipes import PipePool
from tnat64d.proxy.relay import READ_SIZE_BYTES

# One exchange; a letter is a message of the client (c, C) or of the server (s, S), a capital one is bulk.
SCRIPT = "csCSsc"


def message(number: int) -> bytes:
    return noise(600_000 if SCRIPT[number].isupper() else 10, number)


async def play(wire: Wire, numbers: range, skip: str = "") -> None:
    """Send and receive these messages of the script, but none of the side that `skip` names."""
    for number in numbers:
        side = "client" if SCRIPT[number] in "cC" else "server"
        if side != skip:
            sender, receiver = wire.from_(side)
            async with asyncio.TaskGroup() as group:
                group.create_task(sender.send(message(number)))
                received = group.create_task(receiver.receive(len(message(number))))
            assert received.result() == message(number)


@both_sides
@pytest.mark.parametrize("point", range(len(SCRIPT) + 1))
async def test_either_side_may_half_close_at_any_point_and_still_hears_the_rest(
    wire: Wire, side: str, point: int
) -> None:
    closing, other = wire.from_(side)
    await play(wire, range(point))
    closing.half_close()
    assert await other.receive_all() == b"", "the FIN arrives"
    await play(wire, range(point, len(SCRIPT)), skip=side)
    assert not wire.ends, "one direction is open"
    other.half_close()
    assert await closing.receive_all() == b""
    assert not (await wire.ended()).closed_by_reset


@pytest.mark.usefixtures("full_reads")
@both_sides
@pytest.mark.parametrize("size_bytes", [1, READ_SIZE_BYTES, 3 * READ_SIZE_BYTES, 2_000_000])
async def test_what_was_sent_right_before_a_fin_arrives(wire: Wire, side: str, size_bytes: int) -> None:
    sender, receiver = wire.from_(side)
    async with asyncio.TaskGroup() as group:
        received = group.create_task(receiver.receive_all())
        await sender.send(noise(size_bytes))
        sender.half_close()
    assert received.result() == noise(size_bytes)
    await receiver.send(b"after the other's FIN")
    receiver.close()
    assert await sender.receive_all() == b"after the other's FIN"
    assert not (await wire.ended()).closed_by_reset


@both_sides
async def test_a_connection_without_a_byte_ends_in_peace(wire: Wire, side: str) -> None:
    first, second = wire.from_(side)
    first.half_close()
    assert await second.receive_all() == b""
    second.half_close()
    assert await first.receive_all() == b""
    relay = await wire.ended()
    assert (relay.client.passed_bytes, relay.upstream.passed_bytes) == (0, 0)
    assert not relay.closed_by_reset


async def test_both_may_send_fin_at_the_same_time(wire: Wire) -> None:
    for peer in (wire.client, wire.server):
        peer.sock.send(b"bye")
        peer.half_close()
    assert await wire.server.receive_all() == b"bye"
    assert await wire.client.receive_all() == b"bye"
    assert not (await wire.ended()).closed_by_reset


@both_sides
async def test_what_happened_before_the_relay_began_is_made_up_for(make_wire: MakeWire, side: str) -> None:
    wire = make_wire(start=False)
    sender, receiver = wire.from_(side)
    await sender.send(b"early")
    sender.half_close()
    wire.relay.start(None, 0)
    assert await receiver.receive_all() == b"early"
    receiver.half_close()
    assert await sender.receive_all() == b""
    assert not (await wire.ended()).closed_by_reset


async def nothing_sent(sender: Peer, receiver: Peer) -> None:
    pass


async def middle_of_a_stream(sender: Peer, receiver: Peer) -> None:
    await sender.send(b"hello")
    assert await receiver.receive(5) == b"hello"


async def bulk_under_way(sender: Peer, receiver: Peer) -> None:
    await sender.fill()


async def other_way_full(sender: Peer, receiver: Peer) -> None:
    await receiver.fill()


async def after_own_fin(sender: Peer, receiver: Peer) -> None:
    sender.half_close()
    assert await receiver.receive_all() == b""


async def with_own_fin(sender: Peer, receiver: Peer) -> None:
    sender.half_close()


async def after_others_fin(sender: Peer, receiver: Peer) -> None:
    receiver.half_close()
    assert await sender.receive_all() == b""


@both_sides
@pytest.mark.parametrize(
    "before",
    [
        *(nothing_sent, middle_of_a_stream, bulk_under_way, other_way_full),
        *(after_own_fin, with_own_fin, after_others_fin),
    ],
)
async def test_a_reset_at_any_point_comes_out_as_a_reset(
    wire: Wire, side: str, before: Callable[[Peer, Peer], Awaitable[None]]
) -> None:
    sender, receiver = wire.from_(side)
    await before(sender, receiver)
    sender.reset()
    assert await receiver.reset_error() in (errno.ECONNRESET, errno.EPIPE)
    assert (await wire.ended()).closed_by_reset


@both_sides
async def test_a_reset_before_the_relay_began_is_passed_on(make_wire: MakeWire, side: str) -> None:
    wire = make_wire(start=False)
    sender, receiver = wire.from_(side)
    sender.reset()
    wire.relay.start(None, 0)
    assert await receiver.reset_error() == errno.ECONNRESET
    assert (await wire.ended()).closed_by_reset


@both_sides
async def test_an_answer_before_a_reset_arrives_before_the_reset(wire: Wire, side: str) -> None:
    """A server that answers and closes with a part of the request unread resets: 413 Content Too Large."""
    sender, receiver = wire.from_(side)
    await receiver.send(b"never read")
    await until(lambda: wire.relay.client.passed_bytes or wire.relay.upstream.passed_bytes)
    sender.sock.send(b"too large")
    sender.close()
    assert await receiver.receive(9) == b"too large"
    with pytest.raises(ConnectionResetError):
        await receiver.receive(1)
    assert (await wire.ended()).closed_by_reset


@both_sides
async def test_an_urgent_byte_alone_arrives(wire: Wire, side: str) -> None:
    sender, receiver = wire.from_(side)
    await sender.send_urgent(b"!")
    assert await receiver.receive(1) == b"!"
    await sender.send_urgent(b"?")
    assert await receiver.receive(1) == b"?"


@both_sides
async def test_an_urgent_byte_before_the_relay_began_arrives(make_wire: MakeWire, side: str) -> None:
    wire = make_wire(start=False)
    sender, receiver = wire.from_(side)
    await sender.send_urgent(b"!")
    wire.relay.start(None, 0)
    assert await receiver.receive(1) == b"!"


@both_sides
@pytest.mark.parametrize("before", [1, READ_SIZE_BYTES, 2 * READ_SIZE_BYTES + 1])
async def test_an_urgent_byte_between_others_arrives_in_line(wire: Wire, side: str, before: int) -> None:
    sender, receiver = wire.from_(side)
    for number in range(3):
        await sender.send(noise(before, number))
        await sender.send_urgent(b"!")
        await sender.send(b"after")
        assert await receiver.receive(before + 6) == noise(before, number) + b"!after"
    sender.half_close()
    assert await receiver.receive_all() == b""


async def test_a_slow_writer_is_not_kept_waiting_for_more(wire: Wire) -> None:
    for byte in noise(300):
        await wire.client.send(bytes([byte]))
        assert await wire.server.receive(1) == bytes([byte])


async def test_who_has_more_than_one_thing_to_say_is_not_held_back(make_wire: MakeWire) -> None:
    wire = make_wire(start=False)
    upstream = wire.relay.upstream.sock
    for number, message in enumerate((b"first", b"second")):
        assert not upstream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "one message needs no option"
        await wire.client.send(message)
        if number == 0:
            wire.relay.start(None, 0)
        assert await wire.server.receive(len(message)) == message
    assert upstream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_who_begins_with_a_lot_to_say_is_not_held_back(make_wire: MakeWire) -> None:
    wire = make_wire(start=False, sizes_bytes=1 << 20)
    await wire.client.send(noise(READ_SIZE_BYTES + 1))
    wire.relay.start(None, 0)
    assert wire.relay.upstream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_who_says_nothing_but_farewell_pays_for_no_option(wire: Wire) -> None:
    await wire.client.send(b"all")
    assert await wire.server.receive(3) == b"all"
    wire.client.half_close()
    assert await wire.server.receive_all() == b""
    assert not wire.relay.upstream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


FIN_WAIT2 = 5  # include/net/tcp_states.h


def segments_received(sock: socket.socket) -> int:
    """tcpi_segs_in (linux/tcp.h, struct tcp_info)."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)[140:], sys.byteorder)


@both_sides
@pytest.mark.parametrize("first_to_end", [True, False])
async def test_the_last_bytes_and_the_fin_are_one_segment(wire: Wire, side: str, first_to_end: bool) -> None:
    sender, receiver = wire.from_(side)
    await sender.send(b"hello")
    assert await receiver.receive(5) == b"hello"
    if not first_to_end:
        receiver.half_close()
        assert await sender.receive_all() == b""
        # The ACK of the FIN may come late and alone, and would count.
        await until(lambda: receiver.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == FIN_WAIT2)
    before = segments_received(receiver.sock)
    sender.sock.send(b"bye")
    sender.half_close()
    assert await receiver.receive_all() == b"bye"
    assert segments_received(receiver.sock) - before == 1


class BrokenPool(PipePool):
    """A bug."""

    def take(self) -> None:
        raise ZeroDivisionError("a bug")


@pytest.mark.interpreted
async def test_a_bug_ends_its_own_connection_only(make_wire: MakeWire, caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = make_wire(), make_wire()
    broken.relay.pipes = BrokenPool()
    for wire in (broken, sound):
        wire.client.sock.send(noise(200_000))
    assert len(await sound.server.receive(200_000)) == 200_000
    assert await broken.client.reset_error() == errno.ECONNRESET
    assert await broken.server.reset_error() == errno.ECONNRESET
    assert (await broken.ended()).closed_by_reset
    assert "a connection was given up because of a bug" in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text
    await sound.server.send(b"still here")
    assert await sound.client.receive(10) == b"still here"
