"""The kernel's rules as `up` has them: made when the workers are ready, gone when they have ended.

Owns the order of changes, each in one thread and none at the same time as another, and whether there is
anything to take away. Refuses to own the rules (`kernel.installation`) and the moments (`daemon.supervisor`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from tnat64d.core.config import Config
from tnat64d.core.settings import Settings
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.refused_set import Destination

_log = logging.getLogger(__name__)


class Rules(Protocol):
    """Where the daemon makes the kernel's rules itself. `install` and `remove` block, and raise Tnat64Error."""

    @property
    def device(self) -> int | None:
        """A descriptor to call `answer` for when it is readable, or None."""

    def begin(self) -> tuple[int, ...]:
        """Get hold of what they need; the descriptors that every process of the daemon shall have open."""

    @property
    def way(self) -> str:
        """ "owned", "static", or "setup" where another process makes them."""

    @property
    def watches_packet_rules(self) -> bool:
        """Whether others can take packet rules away, too."""

    @property
    def has_stood(self) -> bool:
        """Whether they have been seen to stand."""

    def lost(self) -> tuple[str, ...]:
        """The parts that do not stand as they did after `install`. Raises Tnat64Error."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The control groups that they are for."""

    def renewed(self) -> tuple[str, ...]:
        """Those that are not the same any more: `restore` makes the rules for what they are now."""

    def restore(self) -> None:
        """Make them stand again, as after the last `install`. Raises as that."""

    def install(self, config: Config, settings: Settings) -> None:
        """Make them stand for `config` and `settings`; where that fails, what stood before does, or nothing."""

    def refuse(self, destinations: Iterable[Destination]) -> None:
        """Let the kernel refuse each for as long as the installed settings say, if it can. Raises Tnat64Error."""

    def forget_refused(self) -> None:
        """Let it refuse none any more. Raises Tnat64Error."""

    def refused_count(self) -> int:
        """How many connects the kernel has refused for that. Does not block. Raises Tnat64Error."""

    def refused_for_s(self, destination: Destination) -> float | None:
        """For how long it refuses `destination` from now on; None if it does not. As `refused_count`."""

    def remove(self) -> None:
        """Leave none."""

    def answer(self) -> bool:
        """Answer the packets that were not captured; False if the device is gone."""


class RulesThread:
    """Changes `rules`, if there are any, without blocking the loop."""

    def __init__(self, rules: Rules | None) -> None:
        self._rules = rules
        self._thread = ThreadPoolExecutor(1, "rules", initializer=_ignore_terminal)
        self._standing = False
        self._device: int | None = None
        self._device_gone: Callable[[], None] = lambda: None

    def begin(self) -> tuple[int, ...]:
        """See Rules. Blocks. Raises Tnat64Error."""
        return () if self._rules is None else self._rules.begin()

    async def install(self, config: Config, settings: Settings) -> None:
        """Make them stand. Raises Tnat64Error; what stood before, or nothing, stands then."""
        if self._rules is None:
            return
        stood_before = self._standing
        self._standing = True  # also if this is cancelled, for the thread goes on
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._rules.install, config, settings)
        except Tnat64Error:
            self._standing = stood_before
            raise
        self._watch_device()

    @property
    def way(self) -> str:
        """See Rules; "none" without any."""
        return "none" if self._rules is None else self._rules.way

    @property
    def can_restore(self) -> bool:
        """Whether `restore` is this daemon's to do."""
        return self.way in ("owned", "static")

    @property
    def watches_packet_rules(self) -> bool:
        """See Rules."""
        return self._rules is not None and self._rules.watches_packet_rules

    @property
    def has_stood(self) -> bool:
        """See Rules."""
        return self._rules is not None and self._rules.has_stood

    def when_device_goes(self, call: Callable[[], None]) -> None:
        """Call `call` when somebody has deleted the device."""
        self._device_gone = call

    async def lost(self) -> tuple[str, ...]:
        """See Rules. Raises Tnat64Error."""
        if self._rules is None:
            return ()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._rules.lost)

    @property
    def groups(self) -> tuple[str, ...]:
        """See Rules."""
        return () if self._rules is None else self._rules.groups

    async def renewed(self) -> tuple[str, ...]:
        """See Rules."""
        if self._rules is None:
            return ()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._rules.renewed)

    async def restore(self) -> None:
        """See Rules. Raises Tnat64Error."""
        if self._rules is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._rules.restore)
            self._watch_device()

    def refuse(self, destinations: Sequence[Destination]) -> None:
        """See Rules; soon, and what cannot be refused is only not refused."""
        if self._rules is not None:
            self._thread.submit(_attempt, self._rules.refuse, destinations)

    def forget_refused(self) -> None:
        """See Rules; soon."""
        if self._rules is not None:
            self._thread.submit(_attempt, self._rules.forget_refused)

    def refused_count(self) -> int:
        """See Rules."""
        return 0 if self._rules is None else self._rules.refused_count()

    def refused_for_s(self, destination: Destination) -> float | None:
        """See Rules."""
        return None if self._rules is None else self._rules.refused_for_s(destination)

    def _watch_device(self) -> None:
        assert self._rules is not None
        if self._device is None and (device := self._rules.device) is not None:
            self._device = device
            asyncio.get_running_loop().add_reader(device, self._answer)

    def _answer(self) -> None:
        assert self._rules is not None
        if not self._rules.answer():
            self._forget_device()  # it would be reported as readable for ever
            self._device_gone()

    def _forget_device(self) -> None:
        if self._device is not None:
            asyncio.get_running_loop().remove_reader(self._device)
            self._device = None

    async def remove(self) -> None:
        """Leave none. Raises Tnat64Error."""
        self._forget_device()
        if self._rules is not None and self._standing:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._rules.remove)
            self._standing = False


def _attempt(change: Callable[..., None], *arguments: object) -> None:
    try:
        change(*arguments)
    except Tnat64Error as error:
        _log.debug("the kernel's memory of refusals was not changed: %s", error)


def _ignore_terminal() -> None:
    """Programs started by this thread inherit the mask: a second Ctrl-C must not stop an iptables-restore."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP})
