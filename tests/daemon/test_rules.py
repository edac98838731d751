"""When rules are made and taken away, with rules that only take notes."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterable

import pytest

from tnat64d.core.config import Config
from tnat64d.core.settings import Settings
from tnat64d.daemon.rules import RulesThread
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.refused_set import Destination


class Notes:
    """Takes down what is asked of it, and what the thread that asks is like."""

    device: int | None = None
    way = "static"
    groups: tuple[str, ...] = ()
    watches_packet_rules = True
    has_stood = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.blocked: set[signal.Signals] = set()

    def begin(self) -> tuple[int, ...]:
        return ()

    def install(self, config: Config, settings: Settings) -> None:
        self.blocked = {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}
        assert self.may_go_on.wait(5)
        if self.fails:
            raise Tnat64Error("no")
        self.asked.append("install")

    def remove(self) -> None:
        self.asked.append("remove")

    def answer(self) -> bool:
        self.asked.append("answer")
        return False

    def refuse(self, destinations: Iterable[Destination]) -> None:
        if self.fails:
            raise Tnat64Error("full")
        self.asked.append(f"refuse {list(destinations)}")

    def forget_refused(self) -> None:
        self.asked.append("forget")

    def refused_count(self) -> int:
        return 7

    def refused_for_s(self, destination: Destination) -> float | None:
        return 1.5 if destination == ("192.0.2.1", 80) else None

    def lost(self) -> tuple[str, ...]:
        self.asked.append("lost")
        return ("the route",)

    def renewed(self) -> tuple[str, ...]:
        return ()

    def restore(self) -> None:
        self.asked.append("restore")


async def test_what_was_installed_is_removed_once() -> None:
    notes = Notes()
    thread = RulesThread(notes)
    await thread.install(Config(), Settings())
    await thread.remove()
    await thread.remove()
    assert notes.asked == ["install", "remove"]


async def test_what_was_never_installed_is_not_removed() -> None:
    notes = Notes()
    await RulesThread(notes).remove()
    assert notes.asked == []


async def test_what_failed_to_install_has_undone_itself() -> None:
    notes = Notes()
    notes.fails = True
    thread = RulesThread(notes)
    with pytest.raises(Tnat64Error):
        await thread.install(Config(), Settings())
    await thread.remove()
    assert notes.asked == []


async def test_an_installation_that_is_given_up_is_awaited_and_removed() -> None:
    notes = Notes()
    notes.may_go_on.clear()
    thread = RulesThread(notes)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await thread.install(Config(), Settings())
    removal = asyncio.ensure_future(thread.remove())
    notes.may_go_on.set()
    await removal
    assert notes.asked == ["install", "remove"]


async def test_a_terminal_cannot_interrupt_what_changes_rules() -> None:
    notes = Notes()
    await RulesThread(notes).install(Config(), Settings())
    assert notes.blocked >= {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP}


async def test_without_rules_there_is_nothing_to_do() -> None:
    thread = RulesThread(None)
    await thread.install(Config(), Settings())
    await thread.remove()
    assert await thread.lost() == ()
    await thread.restore()


async def test_what_is_lost_is_asked_and_restored_in_turn() -> None:
    notes = Notes()
    thread = RulesThread(notes)
    await thread.install(Config(), Settings())
    assert await thread.lost() == ("the route",)
    await thread.restore()
    assert notes.asked == ["install", "lost", "restore"]


async def test_a_device_that_is_gone_is_told_once_and_watched_again_when_it_is_back() -> None:
    notes = Notes()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        notes.device = ours.fileno()
        thread = RulesThread(notes)
        gone = asyncio.Event()
        thread.when_device_goes(gone.set)
        await thread.install(Config(), Settings())
        theirs.send(b"x")  # readable from now on
        for _ in range(2):
            async with asyncio.timeout(5):
                await gone.wait()
            gone.clear()
            await thread.restore()
        await thread.remove()
    assert notes.asked == ["install", "answer", "restore", "answer", "restore", "remove"]


async def test_refusals_are_told_in_their_order_and_a_failure_is_nobodys_concern() -> None:
    notes = Notes()
    thread = RulesThread(notes)
    await thread.install(Config(), Settings())
    thread.refuse([("192.0.2.1", 80)])
    thread.forget_refused()
    await thread.lost()
    notes.fails = True
    thread.refuse([("192.0.2.2", 80)])
    await thread.lost()
    assert notes.asked == ["install", "refuse [('192.0.2.1', 80)]", "forget", "lost", "lost"]


async def test_what_is_refused_is_told_at_once_although_rules_are_being_changed() -> None:
    notes = Notes()
    notes.may_go_on.clear()
    thread = RulesThread(notes)
    installing = asyncio.ensure_future(thread.install(Config(), Settings()))
    assert thread.refused_count() == 7
    assert [thread.refused_for_s(("192.0.2.1", port)) for port in (80, 443)] == [1.5, None]
    notes.may_go_on.set()
    await installing
    await thread.remove()


async def test_without_rules_nothing_is_refused() -> None:
    thread = RulesThread(None)
    thread.refuse([("192.0.2.1", 80)])
    thread.forget_refused()
    assert await thread.lost() == ()
    assert (thread.refused_count(), thread.refused_for_s(("192.0.2.1", 80))) == (0, None)
