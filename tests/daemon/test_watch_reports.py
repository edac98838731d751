"""What the watcher tells of the rules, and for how long it is believed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.lab import wait_until
from tnat64d.daemon import control
from tnat64d.daemon.control import Answer, ControlServer, Question
from tnat64d.daemon.watch_reports import Reporter, Watched
from tnat64d.errors import PrivilegeError, Tnat64Error
from tnat64d.kernel import network_namespace

pytestmark = pytest.mark.netns("setpriv")

TIMEOUT_S = 5


@pytest.fixture
def path() -> Iterator[Path]:
    """A path of a socket."""
    with tempfile.TemporaryDirectory(prefix="tnat64-watched-") as name:
        yield Path(name) / "control.sock"


@contextlib.asynccontextmanager
async def serving(path: Path, watched: Watched) -> AsyncIterator[None]:
    """A daemon that hears reports."""
    server = ControlServer(str(path), {"watched": watched.hear})
    await server.start()
    try:
        yield
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def reporting(reporter: Reporter) -> AsyncIterator[None]:
    """A watcher that runs."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reporter.run(), name="reporter")
        try:
            yield
        finally:
            task.cancel()


class Watcher:
    """Reports `state`, with much to tell; `lent` counts what comes before a report."""

    def __init__(self, path: Path) -> None:
        self.state = "standing"
        self.lent = 0
        self.reporter = Reporter(str(path), self._report, self._lend)

    def _report(self) -> Answer:
        missing = [f"the chain {number}" for number in range(1000)]
        return {"rules": {"state": self.state, "missing": missing, "error": None}, "rules_restored": 7}

    async def _lend(self) -> None:
        self.lent += 1


async def until_state(watched: Watched, state: str | None) -> None:
    def is_so() -> bool:
        told: object = watched.report.get("rules", {}).get("state")
        return told == state

    await asyncio.to_thread(wait_until, is_so, f"the state is {state}", TIMEOUT_S)


async def test_what_is_told_counts_until_the_watcher_goes(path: Path) -> None:
    watched, watcher = Watched(), Watcher(path)
    assert (watched.is_there, watched.report) == (False, {})
    async with serving(path, watched):
        async with reporting(watcher.reporter):
            await until_state(watched, "standing")
            rules = watched.report["rules"]
            assert (rules["way"], rules["watcher"], len(rules["missing"])) == ("setup", os.getpid(), 1000)
            assert watched.report["rules_restored"] == 7
            watcher.state = "restored"
            watcher.reporter.tell()
            await until_state(watched, "restored")
            assert watcher.lent == 2
            assert watched.is_there
        await until_state(watched, None)
        assert not watched.is_there


async def test_a_daemon_that_comes_later_or_again_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnat64d.daemon.watch_reports.RETRY_S", 0.05)
    watcher = Watcher(path)
    async with reporting(watcher.reporter):
        await asyncio.sleep(0)  # it has tried once
        for _ in range(2):
            watched = Watched()
            async with serving(path, watched):
                await until_state(watched, "standing")
                for task in asyncio.all_tasks():  # what a daemon's end closes
                    if "_serve" in repr(task):
                        task.cancel()


REPORT = {"rules": {"state": "standing", "missing": [], "error": None}, "rules_restored": 0}


@pytest.mark.parametrize(
    "arguments",
    [{}, {**REPORT, "rules": []}, {**REPORT, "rules": {"state": 1}}, {**REPORT, "rules_restored": None}],
)
async def test_what_is_no_report_is_refused(path: Path, arguments: Answer) -> None:
    watched = Watched()
    async with serving(path, watched):
        with pytest.raises(Tnat64Error, match="not a report of rules"):
            await asyncio.to_thread(ask, path, {"network": network_namespace.number(), **arguments})
        assert not watched.is_there


async def test_rules_of_another_network_namespace_are_not_this_daemons(path: Path) -> None:
    watched = Watched()
    async with serving(path, watched):
        with pytest.raises(Tnat64Error, match="another network namespace"):
            await asyncio.to_thread(ask, path, {"network": network_namespace.number() + 1, **REPORT})
        assert not watched.is_there


async def test_the_daemons_own_user_is_not_believed() -> None:
    watched = Watched()
    with socket.socket() as connection:
        question = Question(os.getpid(), 1000, 1000, {"network": network_namespace.number(), **REPORT}, connection)
        with pytest.raises(PrivilegeError, match="only root"):
            await watched.hear(question)
        assert not watched.is_there


def ask(path: Path, arguments: Answer) -> Answer:
    return control.ask(str(path), "watched", TIMEOUT_S, **arguments)
