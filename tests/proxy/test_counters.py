"""The block of counters that a worker and its supervisor share."""

from __future__ import annotations

import mmap
import os

import pytest

from tnat64d.proxy.counters import BLOCK_SIZE_BYTES, Counter, private_block


def test_every_counter_has_a_place_of_its_own_and_begins_at_zero() -> None:
    block = private_block()
    assert [block[counter] for counter in Counter] == [0] * len(Counter)
    for counter in Counter:
        block[counter] += 1 + counter
    assert list(block) == [1 + counter for counter in Counter]


def test_a_counter_holds_what_no_connection_will_ever_pass() -> None:
    block = private_block()
    block[Counter.UP_BYTES] = 2**64 - 1
    assert block[Counter.UP_BYTES] == 2**64 - 1
    with pytest.raises(ValueError, match="invalid value"):
        block[Counter.UP_BYTES] += 1


def test_what_one_mapping_counts_another_sees() -> None:
    fd = os.memfd_create("counters")
    os.ftruncate(fd, BLOCK_SIZE_BYTES)
    mine, theirs = (memoryview(mmap.mmap(fd, BLOCK_SIZE_BYTES)).cast("Q") for _ in range(2))
    os.close(fd)
    mine[Counter.DOWN_BYTES] += 1 << 40
    assert theirs[Counter.DOWN_BYTES] == 1 << 40
    assert sum(theirs) == 1 << 40
