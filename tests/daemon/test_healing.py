"""When a look is taken and what is told, with rules that only take notes, on a real kernel's signs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator

import pytest

from tests.kernel.bare_host import BareHost, ip
from tests.lab import Namespace
from tnat64d.core.config import Config
from tnat64d.core.settings import Settings
from tnat64d.daemon.healing import Healer
from tnat64d.daemon.rules import RulesThread
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.refused_set import Destination

pytestmark = pytest.mark.netns()

TIMEOUT_S = 5


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A network namespace with nothing but lo."""
    with BareHost() as lab:
        yield lab.host


class Notes:
    """Loses what a test takes away; `looked` is set after each look."""

    device: int | None = None
    way = "static"
    groups: tuple[str, ...] = ()
    watches_packet_rules = False
    has_stood = True

    def __init__(self) -> None:
        self.missing: tuple[str, ...] = ()
        self.looks = 0
        self.refusals = 0
        self.loop = asyncio.get_running_loop()
        self.looked = asyncio.Event()
        self.alone = asyncio.Lock()

    def begin(self) -> tuple[int, ...]:
        return ()

    def install(self, config: Config, settings: Settings) -> None:
        raise AssertionError

    def remove(self) -> None:
        raise AssertionError

    def answer(self) -> bool:
        raise AssertionError

    def refuse(self, destinations: Iterable[Destination]) -> None:
        raise AssertionError

    def forget_refused(self) -> None:
        raise AssertionError

    def refused_count(self) -> int:
        raise AssertionError

    def refused_for_s(self, destination: Destination) -> float | None:
        raise AssertionError

    def lost(self) -> tuple[str, ...]:
        self.looks += 1
        self.loop.call_soon_threadsafe(self.looked.set)
        return self.missing

    def renewed(self) -> tuple[str, ...]:
        return ()

    def restore(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise Tnat64Error("no room")
        self.missing = ()

    async def look(self) -> None:
        """Wait for the next, and until what it leads to is done."""
        async with asyncio.timeout(TIMEOUT_S):
            await self.looked.wait()
        self.looked.clear()
        async with self.alone:
            pass


def run(host: Namespace, scenario: Callable[[Notes, Healer], Awaitable[None]], way: str = "static") -> None:
    async def main() -> None:
        notes = Notes()
        notes.way = way
        healer = Healer(RulesThread(notes), notes.alone)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(healer.run(), name="healing")
            await asyncio.sleep(0)
            await scenario(notes, healer)
            task.cancel()

    host.call(lambda: asyncio.run(main()))


def test_many_changes_at_once_are_one_look(host: Namespace) -> None:
    async def scenario(notes: Notes, healer: Healer) -> None:
        ip(host, *(f"route add 198.18.0.{n} dev lo" for n in range(100)))
        await notes.look()
        assert notes.looks == 1
        assert healer.describe() == {"way": "static", "state": "standing", "missing": [], "error": None}

    ip(host, "link set lo up")
    run(host, scenario)


def test_what_cannot_be_restored_is_tried_again_later_and_not_counted(
    host: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(notes: Notes, healer: Healer) -> None:
        notes.missing, notes.refusals = ("the route", "the address"), 2
        ip(host, "route add 198.18.0.1 dev lo")
        await notes.look()
        await notes.look()
        assert healer.restored == 0
        assert healer.describe() == {
            "way": "static",
            "state": "missing",
            "missing": ["the route", "the address"],
            "error": "no room",
        }
        while healer.restored == 0:
            await notes.look()
        assert (healer.describe()["state"], healer.describe()["error"]) == ("restored", None)

    ip(host, "link set lo up")
    run(host, scenario)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the route and the address were gone or changed, and cannot be restored: no room",
        "the route and the address were gone or changed: restored",
    ]


def test_what_another_process_must_restore_is_told_once_each(
    host: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(notes: Notes, healer: Healer) -> None:
        for missing in (("a",), ("a",), ("a", "b"), ()):
            notes.missing = missing
            ip(host, "route add 198.18.0.1 dev lo", "route del 198.18.0.1 dev lo")
            await notes.look()
            assert healer.describe()["state"] == ("missing" if missing else "routing")
        assert healer.restored == 0

    caplog.set_level("INFO")
    ip(host, "link set lo up")
    run(host, scenario, way="setup")
    assert [record.getMessage().split(":")[0] for record in caplog.records if "asyncio" not in record.name] == [
        "a was gone or changed",
        "a and b were gone or changed",
        "the kernel's rules stand again",
    ]
