"""Big flows: copied, spliced and both; slow readers, fairness, and what happens where pipes are missing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import socket
from collections.abc import Callable

import pytest

from tests.proxy.conftest import COPY_ONLY, CountingPool, MakeWire, Wire, both_sides
from tests.proxy.peer import Peer, descriptors, descriptors_left, noise, until
from tnat64d.proxy.pipes import PIPE_SIZE_BYTES
from tnat64d.proxy.reactor import Reactor
from tnat64d.proxy.relay import READ_SIZE_BYTES, SHARE_BYTES, End

MIB = 1 << 20


async def pass_through(sender: Peer, receiver: Peer, data: bytes) -> None:
    """Send `data` and see it arrive."""
    async with asyncio.TaskGroup() as group:
        group.create_task(sender.send(data))
        received = group.create_task(receiver.receive(len(data)))
    assert hashlib.sha256(received.result()).digest() == hashlib.sha256(data).digest()


async def send_in_pieces(peer: Peer, data: bytes, chance: random.Random) -> None:
    rest = memoryview(data)
    while rest:
        size_bytes = chance.choice((1, 100, 5_000, READ_SIZE_BYTES, 500_000))
        await peer.send(bytes(rest[:size_bytes]))
        rest = rest[size_bytes:]
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    peer.half_close()


async def receive_in_pieces(peer: Peer, chance: random.Random) -> bytes:
    received = bytearray()
    while piece := await peer.receive(chance.choice((1, 1_000, READ_SIZE_BYTES, 1 << 20))):
        received += piece
        if chance.random() < 0.2:
            await asyncio.sleep(0)
    return bytes(received)


@pytest.mark.usefixtures("full_reads")
@pytest.mark.parametrize("seed", range(4))
async def test_pieces_of_any_size_arrive_unchanged_both_ways(make_wire: MakeWire, seed: int) -> None:
    chance = random.Random(seed)
    wire = make_wire(sizes_bytes=chance.choice((0, 1 << 12, 1 << 18)))
    up, down = noise(3_000_000, seed), noise(2_500_000, seed + 100)
    async with asyncio.TaskGroup() as group:
        group.create_task(send_in_pieces(wire.client, up, random.Random(seed + 1)))
        group.create_task(send_in_pieces(wire.server, down, random.Random(seed + 2)))
        at_server = group.create_task(receive_in_pieces(wire.server, random.Random(seed + 3)))
        at_client = group.create_task(receive_in_pieces(wire.client, random.Random(seed + 4)))
    assert hashlib.sha256(at_server.result()).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(at_client.result()).digest() == hashlib.sha256(down).digest()
    relay = await wire.ended()
    assert not relay.closed_by_reset
    assert (relay.client.passed_bytes, relay.upstream.passed_bytes) == (len(up), len(down))


@both_sides
@pytest.mark.interpreted
async def test_a_flow_splices_while_it_is_big_and_copies_again_when_it_is_small(
    wire: Wire, side: str, pool: CountingPool
) -> None:
    sender, receiver = wire.from_(side)
    for round_ in range(2):
        await pass_through(sender, receiver, b"small")
        asked = pool.asked
        for _ in range(5):
            await pass_through(sender, receiver, b"small")
        assert pool.asked == asked
        await pass_through(sender, receiver, noise(8 * MIB, round_))
        assert pool.asked > asked


@pytest.mark.usefixtures("full_reads")
@both_sides
@pytest.mark.parametrize("then_fin", [True, False], ids=["fin", "open"])
async def test_an_urgent_byte_in_a_flow_that_waits_for_its_reader_arrives_in_line(
    make_wire: MakeWire, side: str, then_fin: bool
) -> None:
    wire = make_wire(sizes_bytes=1 << 17)
    sender, receiver = wire.from_(side)
    sent_bytes = await sender.fill()
    async with asyncio.TaskGroup() as group:
        received = group.create_task(receiver.receive(sent_bytes + 6))
        await sender.send_urgent(b"!")
        await sender.send(b"after")
        if then_fin:
            sender.half_close()
    assert received.result() == bytes(sent_bytes) + b"!after"
    if then_fin:
        assert await receiver.receive_all() == b""


@pytest.mark.usefixtures("full_reads")
@both_sides
async def test_an_urgent_byte_that_no_event_has_told_of_yet_arrives_in_line(
    make_wire: MakeWire, side: str
) -> None:
    wire = make_wire(sizes_bytes=1 << 17)
    sender, receiver = wire.from_(side)
    sent_bytes = await sender.fill()
    assert end_without_a_turn(wire, side) == bytes(sent_bytes) + b"!after"
    assert await receiver.receive_all() == b""


@both_sides
async def test_an_urgent_byte_behind_small_ones_that_wait_for_their_reader_arrives_in_line(
    make_wire: MakeWire, side: str
) -> None:
    wire = make_wire(sizes_bytes=1 << 14)
    sender, receiver = wire.from_(side)
    end = wire.end(side)
    sent_bytes = 0

    def nothing_under_way() -> bool:
        return end.unsent is not None or end.passed_bytes == sent_bytes

    while end.unsent is None:
        sent_bytes += sender.sock.send(bytes(1000))
        await until(nothing_under_way)
    assert end_without_a_turn(wire, side) == bytes(sent_bytes) + b"!after"
    assert await receiver.receive_all() == b""


def end_without_a_turn(wire: Wire, side: str) -> bytes:
    """An urgent byte, "after" and FIN follow what was sent so far; all that is received. No turn of the loop tells
    the relay of any of it: all it does is due to the reader.
    """
    sender, receiver = wire.from_(side)
    rest = [(b"!", socket.MSG_OOB), (b"after", 0)]
    received = b""
    while not received.endswith(b"after"):
        with contextlib.suppress(BlockingIOError):
            while rest:
                sender.sock.send(*rest[0])
                del rest[0]
            sender.half_close()
        with contextlib.suppress(BlockingIOError):
            received += receiver.sock.recv(MIB)
        wire.end(side).go_on()
    return received


@both_sides
async def test_a_slow_reader_stops_the_sender_and_loses_nothing(
    make_wire: MakeWire, side: str, full_reads: int
) -> None:
    buffers_bytes = 1 << 17
    wire = make_wire(sizes_bytes=buffers_bytes)
    sender, receiver = wire.from_(side)
    end = wire.end(side)
    sent_bytes = await sender.fill()
    held_bytes = len(end.unsent or b"") + (end.pipe.held_bytes if end.pipe else 0)
    assert 0 < held_bytes <= (READ_SIZE_BYTES if full_reads == COPY_ONLY else PIPE_SIZE_BYTES)
    # Four socket buffers, each of which the kernel doubles (socket(7)), and what the relay holds.
    assert sent_bytes <= 4 * 2 * buffers_bytes + held_bytes
    await pass_through(receiver, sender, b"the other way is free")
    sender.half_close()
    assert len(await receiver.receive_all()) == sent_bytes
    receiver.half_close()
    assert await sender.receive_all() == b""
    assert not (await wire.ended()).closed_by_reset


@pytest.mark.usefixtures("full_reads")
@pytest.mark.interpreted
async def test_what_a_flow_may_pass_on_in_one_turn_is_bounded(
    make_wire: MakeWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tnat64d.proxy.relay.SHARE_BYTES", 3 * READ_SIZE_BYTES)
    monkeypatch.setattr("tnat64d.proxy.relay.PIPE_SIZE_BYTES", READ_SIZE_BYTES)
    wire = make_wire(sizes_bytes=2 * MIB, start=False)
    await wire.client.send(noise(2 * MIB))
    most_bytes = 4 * READ_SIZE_BYTES  # a share, and what the pipe holds beyond it
    wire.relay.start(None, 0)
    assert wire.relay.client.passed_bytes <= most_bytes
    passed_bytes = [wire.relay.client.passed_bytes]

    def measure(method: Callable[[End], None]) -> Callable[[End], None]:
        def measured(end: End) -> None:
            method(end)
            passed_bytes.append(end.passed_bytes)

        return measured

    monkeypatch.setattr(End, "pump", measure(End.pump))
    monkeypatch.setattr(End, "go_on", measure(End.go_on))
    assert await wire.server.receive(2 * MIB) == noise(2 * MIB)
    steps = [after - before for before, after in itertools.pairwise(passed_bytes)]
    assert 0 < max(steps) <= most_bytes


async def test_a_small_piece_waits_for_a_share_of_one_big_flow_however_many_there_are(
    make_wire: MakeWire, reactor: Reactor
) -> None:
    big, small = [make_wire(sizes_bytes=2 * MIB) for _ in range(8)], make_wire()
    for wire in big:
        await wire.client.fill()
    for wire in big:
        with contextlib.suppress(BlockingIOError):
            while True:  # now there is room again
                wire.server.sock.recv(MIB)
    small.client.sock.send(b"x")
    before_bytes = [wire.relay.client.passed_bytes for wire in big]

    def gone_on() -> int:
        return sum(b != wire.relay.client.passed_bytes for b, wire in zip(before_bytes, big, strict=True))

    reactor.turn(0.0)
    assert small.relay.client.passed_bytes == 1
    assert gone_on() <= 1
    for _ in big:
        reactor.turn(0.0)
    assert gone_on() == len(big)


@pytest.mark.usefixtures("full_reads")
@both_sides
async def test_a_big_answer_before_a_reset_arrives_before_the_reset(make_wire: MakeWire, side: str) -> None:
    wire = make_wire(sizes_bytes=4 * MIB)
    sender, receiver = wire.from_(side)
    await receiver.send(b"never read")
    await until(lambda: wire.relay.client.passed_bytes or wire.relay.upstream.passed_bytes)
    data = noise(2 * SHARE_BYTES)
    sent_bytes = sender.sock.send(data)
    assert sent_bytes > SHARE_BYTES
    sender.close()
    assert await receiver.receive(sent_bytes) == data[:sent_bytes]
    with pytest.raises(ConnectionResetError):
        await receiver.receive(1)
    assert (await wire.ended()).closed_by_reset


@both_sides
async def test_an_answer_before_a_reset_arrives_also_if_the_other_way_meets_the_reset_first(
    wire: Wire, side: str
) -> None:
    sender, receiver = wire.from_(side)
    await receiver.send(b"never read")
    await until(lambda: wire.relay.client.passed_bytes or wire.relay.upstream.passed_bytes)
    receiver.sock.send(b"more")
    sender.sock.send(b"too large")
    sender.close()
    wire.end("server" if side == "client" else "client").pump()
    assert await receiver.receive(9) == b"too large"
    with pytest.raises(ConnectionResetError):
        await receiver.receive(1)
    assert (await wire.ended()).closed_by_reset


@both_sides
async def test_a_flow_with_urgent_data_passes_on_one_share_a_turn(make_wire: MakeWire, side: str) -> None:
    wire = make_wire(sizes_bytes=4 * MIB)
    sender, receiver = wire.from_(side)
    await sender.send_urgent(b"!")
    assert await receiver.receive(1) == b"!"
    end = wire.end(side)
    assert end.urgent
    assert sender.sock.send(bytes(2 * MIB)) > SHARE_BYTES + 1
    end.pump()
    end.pump()
    assert end.passed_bytes == 1 + SHARE_BYTES
    end.go_on()
    assert end.passed_bytes > 1 + SHARE_BYTES


async def test_a_flow_that_never_rests_leaves_turns_to_others(make_wire: MakeWire) -> None:
    busy, quiet = make_wire(), make_wire()
    pings = 0
    async with asyncio.TaskGroup() as group:
        bulk = group.create_task(pour(busy, 300))
        while not bulk.done():
            await pass_through(quiet.client, quiet.server, b"ping")
            pings += 1
    assert bulk.result()
    assert pings > 300 // 20


async def test_four_gibibytes_arrive_unchanged(wire: Wire) -> None:
    assert await pour(wire, 4096)  # more than 32 bits can count
    wire.server.half_close()
    assert (await wire.ended()).client.passed_bytes == 4096 * MIB


async def pour(wire: Wire, size_mib: int) -> bool:
    """Send so much up `wire` as fast as it goes, and FIN; whether it arrives unchanged."""
    block = noise(MIB)
    wire.client.sock.setblocking(True)
    wire.server.sock.setblocking(True)

    def send() -> bytes:
        sent = hashlib.sha256()
        for _ in range(size_mib):
            wire.client.sock.sendall(block)
            sent.update(block)
        wire.client.half_close()
        return sent.digest()

    def receive() -> bytes:
        received = hashlib.sha256()
        room = memoryview(bytearray(MIB))
        while size_bytes := wire.server.sock.recv_into(room):
            received.update(room[:size_bytes])
        return received.digest()

    async with asyncio.TaskGroup() as group:
        sent = group.create_task(asyncio.to_thread(send))
        received = group.create_task(asyncio.to_thread(receive))
    return sent.result() == received.result()


async def test_an_idle_connection_holds_no_pipe(make_wire: MakeWire) -> None:
    wires = [make_wire() for _ in range(20)]
    before = descriptors()
    for wire in wires:
        await pass_through(wire.client, wire.server, noise(4 * MIB))
    await until(lambda: all(wire.relay.client.pipe is None for wire in wires))
    left = [descriptor.split()[1] for descriptor in descriptors() - before]
    assert left == ["pipe"] * len(left)
    assert len(left) <= 4, "one after the other they shared a pipe or two, which the pool keeps"


@pytest.mark.interpreted
async def test_without_descriptors_for_a_pipe_a_big_flow_is_copied(wire: Wire, pool: CountingPool) -> None:
    with descriptors_left(0):
        await pass_through(wire.client, wire.server, noise(8 * MIB))
        assert pool.asked > 0
    await pass_through(wire.server, wire.client, noise(8 * MIB))


async def test_with_one_descriptor_left_half_a_pipe_is_not_kept(wire: Wire) -> None:
    with descriptors_left(1):
        before = descriptors()
        await pass_through(wire.client, wire.server, noise(8 * MIB))
        assert descriptors() == before


@pytest.mark.interpreted
async def test_a_pipe_that_may_not_grow_still_serves(
    wire: Wire, pool: CountingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than 2 GiB: fcntl(F_SETPIPE_SZ) refuses it to everybody (fs/pipe.c, round_pipe_size).
    monkeypatch.setattr("tnat64d.proxy.pipes.PIPE_SIZE_BYTES", (1 << 31) + 1)
    await pass_through(wire.client, wire.server, noise(8 * MIB))
    assert pool.asked > 0
