"""The loop that waits by the data plane's epoll: what asyncio expects of any, and who comes first."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from select import EPOLLIN

import pytest

from tests.proxy.peer import raw, tcp_pair
from tnat64d.proxy.loop import ReactorLoop, reactor_of
from tnat64d.proxy.reactor import Reactor

ENOUGH_S = 5.0
SHORT_S = 0.03


@pytest.fixture
def loop() -> Iterator[ReactorLoop]:
    loop = ReactorLoop(Reactor())
    yield loop
    loop.close()


class Ponger:
    """Answers each byte, a hundred times, and asks nothing of asyncio."""

    def __init__(self, sock: socket.socket, left: int = 100) -> None:
        self.sock = raw(sock)
        self.left = left

    def ready(self, mask: int) -> None:
        if self.left:
            self.left -= 1
            self.sock.send(self.sock.recv(1))

    def crashed(self) -> None:
        raise AssertionError


def test_a_wait_ends_when_its_time_is_over_and_not_before(loop: ReactorLoop) -> None:
    began = time.monotonic()
    loop.run_until_complete(asyncio.sleep(SHORT_S))
    assert SHORT_S <= time.monotonic() - began < ENOUGH_S


def test_the_clock_is_the_monotonic_one(loop: ReactorLoop) -> None:
    before = time.monotonic()
    assert before <= loop.time() <= time.monotonic()


def test_what_the_data_plane_asks_for_is_done_though_nothing_else_happens(loop: ReactorLoop) -> None:
    near, far = tcp_pair()

    class Asks:
        def ready(self, mask: int) -> None:
            loop.reactor.unwatch(near.fileno())
            loop.call_soon(done.append, "soon")
            loop.call_later(SHORT_S, loop.stop)

        def crashed(self) -> None:
            raise AssertionError

    done: list[str] = []
    with near, far:
        loop.reactor.watch(near.fileno(), EPOLLIN, Asks())
        threading.Timer(SHORT_S, far.send, [b"x"]).start()
        loop.run_forever()
    assert done == ["soon"]


def test_a_timer_is_not_starved_by_a_busy_data_plane(loop: ReactorLoop) -> None:
    near, far = tcp_pair()

    class Busy:
        def ready(self, mask: int) -> None:
            """Level-triggered and never read: there is always news."""

        def crashed(self) -> None:
            raise AssertionError

    with near, far:
        far.send(b"x")
        loop.reactor.watch(near.fileno(), EPOLLIN, Busy())
        loop.run_until_complete(asyncio.wait_for(asyncio.sleep(SHORT_S), ENOUGH_S))
        loop.reactor.unwatch(near.fileno())


def test_a_call_from_another_thread_wakes_it(loop: ReactorLoop) -> None:
    threading.Timer(SHORT_S, loop.call_soon_threadsafe, [loop.stop]).start()
    loop.run_forever()


def test_a_signal_wakes_it(loop: ReactorLoop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    threading.Timer(SHORT_S, os.kill, [os.getpid(), signal.SIGUSR1]).start()
    loop.run_forever()
    loop.remove_signal_handler(signal.SIGUSR1)


def test_streams_and_the_data_plane_share_one_epoll(loop: ReactorLoop) -> None:
    near, far = socket.socketpair()
    ponger = Ponger(near)

    async def talk() -> bytes:
        loop.reactor.watch(ponger.sock.fileno(), EPOLLIN, ponger)
        reader, writer = await asyncio.open_unix_connection(sock=far)
        heard = b""
        for number in range(100):
            writer.write(bytes((number,)))
            heard += await reader.readexactly(1)
        writer.close()
        await writer.wait_closed()
        return heard

    assert loop.run_until_complete(talk()) == bytes(range(100))
    loop.reactor.close(ponger.sock)


def test_a_reader_and_a_writer_of_one_descriptor_come_and_go(loop: ReactorLoop) -> None:
    near, far = socket.socketpair()
    told: list[str] = []

    def reads() -> None:
        told.append(near.recv(9).decode())
        loop.remove_reader(near)
        loop.call_soon(loop.stop)

    def writes() -> None:
        told.append("writable")
        loop.remove_writer(near)
        far.send(b"readable")

    with near, far:
        loop.add_reader(near, reads)
        loop.add_writer(near, writes)
        loop.run_forever()
    assert told == ["writable", "readable"]


def test_a_hang_up_is_news_for_reader_and_writer(loop: ReactorLoop) -> None:
    read_fd, write_fd = os.pipe()
    told: list[str] = []

    def gone(who: str, fd: int) -> None:
        told.append(who)
        loop.remove_reader(fd)
        loop.remove_writer(fd)
        loop.call_soon(loop.stop)

    loop.add_reader(read_fd, gone, "reader", read_fd)
    os.close(write_fd)
    loop.run_forever()
    os.close(read_fd)
    read_fd, write_fd = os.pipe()
    loop.add_writer(write_fd, gone, "writer", write_fd)
    os.close(read_fd)
    loop.run_forever()
    os.close(write_fd)
    assert told == ["reader", "writer"]


def test_its_selector_keeps_the_rules_of_selectors(loop: ReactorLoop) -> None:
    selector: selectors.BaseSelector = loop._selector  # type: ignore[attr-defined]
    with socket.socket() as sock:
        key = selector.register(sock, selectors.EVENT_READ, "data")
        assert selector.get_key(sock) == key
        assert selector.get_map()[sock.fileno()] == key
        with pytest.raises(KeyError):
            selector.register(sock, selectors.EVENT_READ)
        changed = selector.modify(sock, selectors.EVENT_WRITE, "other")
        assert (changed.events, changed.data) == (selectors.EVENT_WRITE, "other")
        assert selector.unregister(sock) == changed
        for unknown in (selector.unregister, selector.get_key):
            with pytest.raises(KeyError):
                unknown(sock)


def test_a_descriptor_that_is_closed_already_can_be_forgotten(loop: ReactorLoop) -> None:
    read_fd, write_fd = os.pipe()
    loop.add_reader(read_fd, loop.stop)
    os.close(read_fd)
    assert loop.remove_reader(read_fd)
    os.close(write_fd)


def test_a_descriptor_that_cannot_be_waited_for_is_refused_each_time(loop: ReactorLoop, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        for _ in range(2):
            with pytest.raises(PermissionError):
                loop.add_reader(file.fileno(), loop.stop)


def test_the_reactor_of_such_a_loop_is_its_own_and_that_of_another_is_nested(loop: ReactorLoop) -> None:
    assert reactor_of(loop) is loop.reactor
    other = asyncio.new_event_loop()
    reactor = reactor_of(other)
    reactor.unnest()
    other.close()


def test_the_end_of_nesting_leaves_a_loop_its_own_epoll(loop: ReactorLoop) -> None:
    loop.reactor.unnest()
    loop.run_until_complete(asyncio.sleep(0.001))
