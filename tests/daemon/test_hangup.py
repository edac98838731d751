"""When both files are read again: on every hangup, whatever came of the one before."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.peer import until
from tnat64d.daemon.hangup import reload_when
from tnat64d.errors import Tnat64Error


async def test_a_reload_that_fails_is_told_and_the_next_is_made(caplog: pytest.LogCaptureFixture) -> None:
    hangup = asyncio.Event()
    made: list[str] = []

    async def reload() -> None:
        if not caplog.messages:
            raise Tnat64Error("table 6464 is taken")
        made.append("the second")

    async with asyncio.TaskGroup() as tasks:
        reloading = tasks.create_task(reload_when(hangup, reload))
        hangup.set()
        await until(lambda: caplog.messages)
        hangup.set()
        await until(lambda: made)
        reloading.cancel()
    assert caplog.messages == ["not reloaded, everything stays as it was:\ntable 6464 is taken"]


async def test_what_is_asked_for_during_a_reload_is_done_after_it() -> None:
    hangup = asyncio.Event()
    steps: list[str] = []

    async def reload() -> None:
        steps.append("begun")
        if len(steps) == 1:
            hangup.set()
            await asyncio.sleep(0)
        steps.append("done")

    async with asyncio.TaskGroup() as tasks:
        reloading = tasks.create_task(reload_when(hangup, reload))
        hangup.set()
        await until(lambda: len(steps) == 4)
        reloading.cancel()
    assert steps == ["begun", "done"] * 2
