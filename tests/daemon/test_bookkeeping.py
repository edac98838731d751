"""What is counted and logged of connections; the sentences of whole lines are tests/daemon/test_journal.py's."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import pytest

from tnat64d.core.config import Route, Way
from tnat64d.core.policy import StickyMemory
from tnat64d.core.settings import Log, Settings
from tnat64d.daemon.bookkeeping import Bookkeeping
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.counters import BLOCK_SIZE_BYTES, Counter, Counters, map_block
from tnat64d.proxy.destination import Target
from tnat64d.proxy.sources import SourceLimit

CLIENT = ("192.0.2.7", 40000)


@dataclass
class Connections:
    """A `bookkeeping.Plane` that has as many connections as the test says."""

    active: int = 0
    ended: int = 0
    rests: int = 0

    def connection_over(self) -> None:
        self.ended += 1

    def rest(self) -> None:
        self.rests += 1


@dataclass
class Books:
    kept: Bookkeeping
    counters: Counters
    plane: Connections
    sources: SourceLimit


def open_books(settings: Settings | None = None) -> Books:
    fd = os.memfd_create("counters")
    os.ftruncate(fd, BLOCK_SIZE_BYTES)
    counters = map_block(fd)
    os.close(fd)
    plane, sources = Connections(), SourceLimit(1, lambda address: False)
    kept = Bookkeeping(
        asyncio.get_running_loop(),
        counters,
        settings or Settings(),
        StickyMemory(16),
        sources,
        lambda message: None,
        plane,
    )
    return Books(kept, counters, plane, sources)


def connection() -> Connection:
    route = Route(Way.NAT64, None, None, None, "a test")
    return Connection(CLIENT, Target(("198.51.100.10", 80), route, ("2001:db8:64::1", 80), None), 0.0)


async def test_a_source_may_come_again_when_its_connection_was_refused() -> None:
    books = open_books()
    assert books.sources.admit(CLIENT[0])
    books.kept.accepted()
    refused = connection()
    refused.admitted = True
    books.kept.refused(refused)
    assert books.sources.admit(CLIENT[0])
    assert (books.counters[Counter.ACCEPTED], books.counters[Counter.REFUSED]) == (1, 1)
    assert books.plane.ended == 1


async def test_a_held_syn_that_is_refused_was_never_a_connection_of_its_source() -> None:
    books = open_books()
    assert books.sources.admit(CLIENT[0])
    books.kept.held()
    books.kept.refused(connection())
    assert not books.sources.admit(CLIENT[0]), "the other connection is still there"
    assert (books.counters[Counter.HELD], books.counters[Counter.ACCEPTED]) == (1, 0)


async def test_a_connection_whose_client_never_came_is_counted_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    books = open_books()
    assert books.sources.admit(CLIENT[0])
    unclaimed = connection()
    unclaimed.admitted = True
    with caplog.at_level("INFO"):
        books.kept.unclaimed(unclaimed)
    assert books.counters[Counter.UNCLAIMED] == 1
    assert "192.0.2.7:40000 -> 198.51.100.10:80 via IPv4: hung up, its client has not come" in caplog.text
    assert books.sources.admit(CLIENT[0]), "it may come again"


async def test_active_is_what_the_plane_has_when_one_ends() -> None:
    books = open_books()
    for _ in range(3):
        books.kept.accepted()
    assert books.counters[Counter.ACTIVE] == 3
    books.plane.active = 2
    books.kept.refused(connection())
    assert books.counters[Counter.ACTIVE] == 2


async def test_what_many_clients_meet_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    books = open_books()
    for _ in range(3):
        books.kept.over_limit(CLIENT)
        books.kept.exhausted()
        books.kept.not_held(2)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert books.plane.rests == 3
    counted = (Counter.OVER_LIMIT, Counter.ACCEPT_PAUSES, Counter.NOT_HELD)
    assert [books.counters[counter] for counter in counted] == [3, 3, 6]


@pytest.mark.parametrize(("connections", "lines"), [("all", 1), ("failed", 1), ("none", 0)])
async def test_a_refused_connection_has_a_line_where_it_is_asked_for(
    connections: str, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    books = open_books(Settings(log=Log(connections=connections)))  # type: ignore[arg-type]
    books.kept.refused(connection())
    assert len(caplog.records) == lines
