"""The kernel's rules as `up` has them: made when the workers are ready, gone when they have ended.

Owns the order of changes, each in one thread and none at the same time as another, and whether there is
anything to take away. Refuses to own the rules (`kernel.installation`) and the moments (`daemon.supervisor`).
"""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from tnat64d.core.config import Config
from tnat64d.errors import Tnat64Error


class Rules(Protocol):
    """Where the daemon makes the kernel's rules itself. `install` and `remove` block, and raise Tnat64Error."""

    @property
    def device(self) -> int | None:
        """A descriptor to call `answer` for when it is readable, or None."""

    def begin(self) -> tuple[int, ...]:
        """Get hold of what they need; the descriptors that every process of the daemon shall have open."""

    def install(self, config: Config) -> None:
        """Make them stand for `config`; where that fails, what stood before does, or nothing."""

    def remove(self) -> None:
        """Leave none."""

    def answer(self) -> None:
        """Answer the packets that were not captured."""


class RulesThread:
    """Changes `rules`, if there are any, without blocking the loop."""

    def __init__(self, rules: Rules | None) -> None:
        self._rules = rules
        self._thread = ThreadPoolExecutor(1, "rules", initializer=_ignore_terminal)
        self._standing = False
        self._device: int | None = None

    def begin(self) -> tuple[int, ...]:
        """See Rules. Blocks. Raises Tnat64Error."""
        return () if self._rules is None else self._rules.begin()

    async def install(self, config: Config) -> None:
        """Make them stand for `config`. Raises Tnat64Error; what stood before, or nothing, stands then."""
        if self._rules is None:
            return
        stood_before = self._standing
        self._standing = True  # also if this is cancelled, for the thread goes on
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._rules.install, config)
        except Tnat64Error:
            self._standing = stood_before
            raise
        if self._device is None and (device := self._rules.device) is not None:
            self._device = device
            asyncio.get_running_loop().add_reader(device, self._rules.answer)

    async def remove(self) -> None:
        """Leave none. Raises Tnat64Error."""
        if self._device is not None:
            asyncio.get_running_loop().remove_reader(self._device)
            self._device = None
        if self._rules is not None and self._standing:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._rules.remove)
            self._standing = False


def _ignore_terminal() -> None:
    """Programs started by this thread inherit the mask: a second Ctrl-C must not stop an iptables-restore."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP})
