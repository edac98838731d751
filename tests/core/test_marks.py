"""Marks that are never taken for one another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnat64d.core.marks import Mark, captured_mark, own_mark, refusal_mark, worker_mark
from tnat64d.core.settings import Rules

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
    ("mask", "bits"), [(0xFFFF, 0xF0000000), (0xF0000000, 0x0F000000), (0xFFFFFFF0, 0xF), (0xFFFFFFFF, 0)]
)
def test_a_worker_has_a_number_in_bits_of_the_mark_that_are_free(mask: int, bits: int) -> None:
    rules = Rules(mark=mask & -mask, mark_mask=mask)
    marks = [worker_mark(rules, worker) for worker in range(8)]
    assert {mark.mask for mark in marks} == {bits}
    assert [mark.value for mark in marks] == [(worker + 1) * (bits & -bits) for worker in range(8)]
    assert not any(mark.value & ~bits for mark in marks)


def test_the_daemons_own_mark_is_the_one_of_the_settings() -> None:
    assert own_mark(Rules(mark=0x64, mark_mask=0xFF)) == Mark(0x64, 0xFF)


def test_a_mark_is_shown_as_iptables_and_ip_take_it() -> None:
    assert str(Mark(0x64, 0xFF)) == "0x64/0xff"
