"""Marks that are never taken for one another."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnat64d.core.marks import Mark, captured_mark, own_mark, refusal_mark, worker_marks
from tnat64d.core.settings import MAX_HONEST_WORKERS, Rules

masks = st.integers(1, 0xFFFFFFFF).filter(lambda mask: mask.bit_count() >= 2)


@given(masks, st.data())
def test_the_captured_mark_is_neither_nothing_nor_the_daemons_own(mask: int, data: st.DataObject) -> None:
    mark = data.draw(st.integers(1, mask).map(lambda value: value & mask).filter(bool))
    captured = captured_mark(Rules(mark=mark, mark_mask=mask))
    assert captured.value not in (0, mark)
    assert captured.value & ~mask == 0
    assert captured.mask == mask


@given(masks, st.data())
def test_refusals_have_a_mark_of_their_own(mask: int, data: st.DataObject) -> None:
    mark = data.draw(st.integers(1, mask).map(lambda value: value & mask).filter(bool))
    rules = Rules(mark=mark, mark_mask=mask)
    refusal = refusal_mark(rules)
    assert refusal.value not in (0, mark, captured_mark(rules).value)
    assert refusal.value & ~mask == 0
    assert refusal.mask == mask


@pytest.mark.parametrize(
    ("mask", "bits"),
    [
        (0xFFFF, 0xFF000000),
        (0xF0000000, 0x0FF00000),
        (0x0FF00000, 0x000FF000),
        (0xFFFFFF00, 0xFF),
        (0x1, 0xFF000000),
    ],
)
def test_each_worker_has_a_mark_in_the_highest_eight_bits_that_are_free(mask: int, bits: int) -> None:
    marks = worker_marks(Rules(mark=mask & -mask, mark_mask=mask))
    assert {mark.mask for mark in marks} == {bits}
    assert not any(mark.value & ~bits for mark in marks)
    assert len({mark.value for mark in marks}) == len(marks) == MAX_HONEST_WORKERS


@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0xFFFFFF80, 0x01010101])
def test_without_eight_free_bits_in_a_row_workers_have_no_marks(mask: int) -> None:
    assert worker_marks(Rules(mark=mask & -mask, mark_mask=mask)) == ()


def test_who_sets_or_clears_bits_of_a_workers_mark_makes_no_other_workers_of_it() -> None:
    values = {mark.value for mark in worker_marks(Rules())}
    for value, bits in itertools.product(values, range(256)):
        assert {value | bits << 24, value & ~(bits << 24)} & values <= {value}


def test_single_bits_and_whole_masks_are_no_workers_mark() -> None:
    customary = {0, *(1 << bit for bit in range(32)), 0xFF000000, 0xF0000000, 0x0F000000}
    assert not customary & {mark.value for mark in worker_marks(Rules())}


def test_the_daemons_own_mark_is_the_one_of_the_settings() -> None:
    assert own_mark(Rules(mark=0x64, mark_mask=0xFF)) == Mark(0x64, 0xFF)


def test_a_mark_is_shown_as_iptables_and_ip_take_it() -> None:
    assert str(Mark(0x64, 0xFF)) == "0x64/0xff"
