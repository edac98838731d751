"""Deadlines: each item once, in time, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.proxy.peer import until
from tnat64d.proxy.deadlines import CLOCK_ERROR_S, Deadlines

DELAY_S = 0.03
TOLERANCE_S = 0.1
"""For a machine that does other things, too."""


async def test_each_item_is_due_once_after_the_delay_and_in_the_order_of_the_starts() -> None:
    loop = asyncio.get_running_loop()
    due: list[tuple[str, float]] = []
    deadlines = Deadlines[str](loop, DELAY_S, lambda item: due.append((item, loop.time())))
    started = {}
    for item in "abc":
        started[item] = loop.time()
        deadlines.start(item)
        await asyncio.sleep(DELAY_S / 5)
    await until(lambda: len(due) == 3)
    assert [item for item, _ in due] == ["a", "b", "c"]
    assert all(when >= started[item] + DELAY_S - CLOCK_ERROR_S for item, when in due)
    await asyncio.sleep(2 * DELAY_S)
    assert len(due) == 3


class CountingLoop:
    """Counts the timers that were set on a loop, each of which is a wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.timers = 0

    def time(self) -> float:
        return self._loop.time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self.call_at(self._loop.time() + delay_s, callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.timers += 1
        return self._loop.call_at(when, callback)


async def test_a_burst_is_a_few_wake_ups_and_none_of_it_is_late_by_more_than_a_sixteenth() -> None:
    loop = asyncio.get_running_loop()
    counting = CountingLoop(loop)
    delay_s = 0.4
    started: dict[int, float] = {}
    late_s: list[float] = []
    deadlines = Deadlines[int](
        cast(asyncio.AbstractEventLoop, counting), delay_s, lambda item: late_s.append(loop.time() - started[item])
    )
    for item in range(100):
        started[item] = loop.time()
        deadlines.start(item)
        await asyncio.sleep(0.002)
    await until(lambda: len(late_s) == 100)
    assert min(late_s) >= delay_s - CLOCK_ERROR_S
    assert max(late_s) < delay_s + delay_s / 16 + TOLERANCE_S
    burst_s = started[99] - started[0]
    assert counting.timers <= 2 + burst_s / (delay_s / 16)


@pytest.mark.alone
async def test_one_alone_is_due_in_time() -> None:
    loop = asyncio.get_running_loop()
    due: list[float] = []
    deadlines = Deadlines[str](loop, 1.6, lambda item: due.append(loop.time()))
    started = loop.time()
    deadlines.start("a")
    await until(lambda: due)
    assert started + 1.6 - CLOCK_ERROR_S <= due[0] < started + 1.7


async def test_a_stopped_item_is_never_due() -> None:
    due: list[str] = []
    deadlines = Deadlines[str](asyncio.get_running_loop(), DELAY_S, due.append)
    deadlines.start("a")
    deadlines.start("b")
    deadlines.stop("a")
    deadlines.stop("never started")
    await until(lambda: due)
    assert due == ["b"]


async def test_an_item_stopped_by_another_that_is_due_with_it_is_not_due() -> None:
    due: list[str] = []

    def stops_the_other(item: str) -> None:
        due.append(item)
        deadlines.stop("b")

    deadlines = Deadlines[str](asyncio.get_running_loop(), DELAY_S, stops_the_other)
    deadlines.start("a")
    deadlines.start("b")
    await asyncio.sleep(2 * DELAY_S)
    assert due == ["a"]


async def test_a_delay_of_zero_means_never() -> None:
    due: list[str] = []
    deadlines = Deadlines[str](asyncio.get_running_loop(), 0, due.append)
    deadlines.start("a")
    await asyncio.sleep(DELAY_S)
    deadlines.stop("a")
    assert due == []


async def test_cancel_ends_them_all() -> None:
    due: list[str] = []
    deadlines = Deadlines[str](asyncio.get_running_loop(), DELAY_S, due.append)
    deadlines.start("a")
    deadlines.cancel()
    await asyncio.sleep(2 * DELAY_S)
    assert due == []
    deadlines.start("b")
    await until(lambda: due)
    assert due == ["b"]


async def test_an_item_that_starts_again_when_it_is_due_does_not_make_others_late() -> None:
    loop = asyncio.get_running_loop()
    delay_s = 0.2
    due: list[tuple[str, float]] = []

    def again(item: str) -> None:
        due.append((item, loop.time()))
        if item == "again":
            deadlines.start(item)

    deadlines = Deadlines[str](loop, delay_s, again)
    started = loop.time()
    deadlines.start("again")
    await asyncio.sleep(delay_s / 2)
    deadlines.start("other")
    await until(lambda: len(due) >= 2)
    deadlines.cancel()
    assert due[1][0] == "other"
    assert due[1][1] < started + 2 * delay_s


async def test_an_item_whose_handling_fails_does_not_keep_others_waiting() -> None:
    loop = asyncio.get_running_loop()
    due: list[str] = []
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))

    def fails_for_a(item: str) -> None:
        if item == "a":
            raise ZeroDivisionError
        due.append(item)

    deadlines = Deadlines[str](loop, DELAY_S, fails_for_a)
    for item in "abc":
        deadlines.start(item)
    await until(lambda: len(due) == 2)
    assert due == ["b", "c"]
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]


async def test_a_shorter_delay_holds_for_what_is_pending_and_keeps_the_order() -> None:
    due: list[str] = []
    deadlines = Deadlines[str](asyncio.get_running_loop(), 3600, due.append)
    deadlines.start("a")
    deadlines.start("b")
    deadlines.change(DELAY_S)
    deadlines.start("c")
    await until(lambda: len(due) == 3)
    assert due == ["a", "b", "c"]


async def test_a_longer_delay_holds_for_what_starts_after_it() -> None:
    due: list[str] = []
    deadlines = Deadlines[str](asyncio.get_running_loop(), DELAY_S, due.append)
    deadlines.start("a")
    deadlines.change(3600)
    deadlines.start("b")
    await until(lambda: due)
    assert due == ["a"]
    deadlines.cancel()


async def test_after_a_change_to_zero_nothing_is_due() -> None:
    due: list[str] = []
    deadlines = Deadlines[str](asyncio.get_running_loop(), DELAY_S, due.append)
    deadlines.start("a")
    deadlines.change(0)
    await asyncio.sleep(2 * DELAY_S)
    assert due == []
