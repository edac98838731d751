"""Deadlines: each item once, in time, in order."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.proxy.peer import until
from tnat64d.proxy.deadlines import Deadlines

DELAY_S = 0.03


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
    assert all(when >= started[item] + DELAY_S for item, when in due)
    await asyncio.sleep(2 * DELAY_S)
    assert len(due) == 3


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
