"""Counting by source: whom the limit holds for, and that nothing is left of a source without connections."""

from __future__ import annotations

from tnat64d.proxy.sources import SourceLimit

OWN, ONE, OTHER = "172.17.0.1", "172.17.0.2", "172.17.0.3"


def limit(most: int, asked: list[str] | None = None) -> SourceLimit:
    def is_own(address: str) -> bool:
        if asked is not None:
            asked.append(address)
        return address == OWN

    return SourceLimit(most, is_own)


def test_a_source_at_its_limit_does_not_keep_another_out() -> None:
    sources = limit(2)
    assert [sources.admit(ONE) for _ in range(3)] == [True, True, False]
    assert sources.admit(OTHER)


def test_an_end_makes_room_for_one_more() -> None:
    sources = limit(1)
    assert sources.admit(ONE)
    assert not sources.admit(ONE)
    sources.leave(ONE)
    assert [sources.admit(ONE) for _ in range(2)] == [True, False]


def test_the_hosts_own_addresses_have_no_limit() -> None:
    sources = limit(1)
    assert all(sources.admit(OWN) for _ in range(10))


def test_a_source_without_connections_takes_no_memory_and_is_looked_at_anew() -> None:
    asked: list[str] = []
    sources = limit(5, asked)
    for _ in range(3):
        sources.admit(ONE)
    assert asked == [ONE]
    for _ in range(3):
        sources.leave(ONE)
    assert not sources._sources
    sources.admit(ONE)
    assert asked == [ONE, ONE]
