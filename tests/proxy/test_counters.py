"""The block of counters that a worker and its supervisor share."""

from __future__ import annotations

import os

import pytest

from tnat64d.proxy.counters import BLOCK_SIZE_BYTES, Counter, Counters, map_block


def blocks(count: int) -> list[Counters]:
    """So many views of one block."""
    fd = os.memfd_create("counters")
    try:
        os.ftruncate(fd, BLOCK_SIZE_BYTES)
        return [map_block(fd) for _ in range(count)]
    finally:
        os.close(fd)


def test_every_counter_has_a_place_of_its_own_and_begins_at_zero() -> None:
    (block,) = blocks(1)
    assert [block[counter] for counter in Counter] == [0] * len(Counter)
    for counter in Counter:
        block[counter] += 1 + counter
    assert list(block) == [1 + counter for counter in Counter]


def test_a_counter_holds_what_no_connection_will_ever_pass() -> None:
    (block,) = blocks(1)
    block[Counter.UP_BYTES] = 2**64 - 1
    assert block[Counter.UP_BYTES] == 2**64 - 1
    with pytest.raises(ValueError, match="invalid value"):
        block[Counter.UP_BYTES] += 1


def test_what_one_mapping_counts_another_sees() -> None:
    mine, theirs = blocks(2)
    mine[Counter.DOWN_BYTES] += 1 << 40
    assert theirs[Counter.DOWN_BYTES] == 1 << 40
    assert sum(theirs) == 1 << 40
