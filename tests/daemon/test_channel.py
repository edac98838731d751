"""Supervisor and worker over a socket pair."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from tnat64d.core import config
from tnat64d.core.failures import Failure
from tnat64d.core.policy import ScopeState
from tnat64d.core.settings import Settings
from tnat64d.daemon.channel import (
    Channel,
    Drain,
    Drained,
    Failures,
    Learned,
    Message,
    Ping,
    Pong,
    Ready,
    Reload,
    RoutesChanged,
    Start,
    Unmapped,
)

CONFIG = config.parse("local = 10.0.0.0/8\nnat64_prefix = 2001:db8:64::\n", "t.conf")
MESSAGES: tuple[Message, ...] = (
    Start(CONFIG, Settings(), (None, "192.0.2.1"), epoch=3, max_connections=7, max_per_source=2, verbose=True),
    Ready(),
    Reload(CONFIG, Settings(), 7),
    Learned(None, ScopeState.NAT64_STICKY, 0),
    Unmapped("192.0.2.1:80", "no prefix for this destination"),
    Failures((Failure("192.0.2.1", 80, 1.5, 101, 111, "IPv4 unreachable"),)),
    RoutesChanged(),
    Drain(1.5),
    Drained(3),
    Ping(),
    Pong(),
)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Channel, Channel]]:
    """Both ends of a channel."""
    ours, theirs = socket.socketpair()
    one, other = await Channel.over(ours), await Channel.over(theirs)
    yield one, other
    one.close()
    other.close()


async def test_every_message_arrives_as_it_was_sent_and_in_order(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    for message in MESSAGES:
        one.send(message)
    assert [await other.receive() for _ in MESSAGES] == list(MESSAGES)


async def test_a_configuration_of_a_megabyte_arrives(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    text = "".join(f"local = 10.{n >> 8 & 255}.{n & 255}.0/24\n" for n in range(20_000))
    message = Reload(config.parse(text, "t.conf"), Settings(), 7)
    one.send(message)
    assert await other.receive() == message


async def test_the_end_of_the_other_process_is_the_end_of_the_messages(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    one.send(Ready())
    one.close()
    assert await other.receive() == Ready()
    assert await other.receive() is None


async def test_half_a_message_is_none() -> None:
    ours, theirs = socket.socketpair()
    channel = await Channel.over(ours)
    theirs.sendall(struct.pack("!I", 100) + b"half")
    theirs.close()
    assert await channel.receive() is None
    channel.close()


async def test_nobody_is_told_when_the_other_process_is_gone(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    other.close()
    assert await one.receive() is None
    for _ in range(10):
        one.send(Ping())
        await asyncio.sleep(0)
    await one.flush()
