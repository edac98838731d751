"""Notices that others took rules of ours away, and has them put back; and that a control group was made anew.

Owns the moments of looking, the log lines and the numbers for `status`. Refuses to own the decision
(`core.healing`), looking and putting back (`daemon.rules`).

Others change rules in bursts, so a look comes SETTLE_S after the last sign of a change, and at the latest
MAX_SETTLE_S after the first. Our own changes are signs, too; then nothing is found lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from tnat64d.core.healing import RETRY_S, Healing, Restore, SlowDown, State, Wait
from tnat64d.daemon.rules import RulesThread
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.changes import ChangeMonitor

_log = logging.getLogger(__name__)

SETTLE_S, MAX_SETTLE_S = 0.15, 1.0
UNSEEN_S = 1.5
"""Until the next look where one has failed."""


class Healer:
    """Looks after `rules` while `run` runs. `alone`: held by whoever changes them.

    `is_watched`: whether another process looks after those that this one cannot restore. `when_looked` is called
    after each look.
    """

    def __init__(
        self, rules: RulesThread, alone: asyncio.Lock, is_watched: Callable[[], bool] = lambda: False
    ) -> None:
        self._rules = rules
        self._alone = alone
        self._is_watched = is_watched
        self.when_looked: Callable[[], None] = lambda: None
        self._healing = Healing()
        self._sign = asyncio.Event()
        self._told: tuple[str, ...] = ()  # what another process must restore
        self.restored = 0
        self.followed = 0
        """How often rules were put back, and how often made anew for a control group."""
        rules.when_device_goes(self._sign.set)

    def made_anew(self) -> None:
        """The rules were made, by a start or a reload."""
        self._healing.begin()
        self._sign.set()  # other control groups may be watched now

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "way": self._rules.way,
            "state": self._state().value,
            "missing": list(self._healing.lost),
            "error": self._healing.error,
        }

    def _state(self) -> State:
        if not self._rules.has_stood:
            return State.ABSENT
        if self._healing.lost and self._healing.state is not State.CONTESTED:
            return State.MISSING
        return self._healing.state if self._rules.can_restore else State.ROUTING

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            monitor = ChangeMonitor(loop, self._sign.set, packet_rules=self._rules.watches_packet_rules)
        except OSError as error:
            self._healing.error = f"changes of the kernel's rules cannot be noticed: {error.strerror}"
            _log.warning("%s", self._healing.error)
            self.when_looked()
            return
        delay_s = None
        try:
            while True:
                await self._wait_for_sign(delay_s)
                async with self._alone:
                    monitor.watch_groups(self._rules.groups)
                    delay_s = await self._look(loop.time())
                self.when_looked()
        finally:
            monitor.close()

    async def _wait_for_sign(self, timeout_s: float | None) -> None:
        """Until others have changed something and are done with it; at most until `timeout_s` are over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._sign.wait()
        except TimeoutError:
            return
        try:
            async with asyncio.timeout(MAX_SETTLE_S):
                while self._sign.is_set():
                    self._sign.clear()
                    await asyncio.sleep(SETTLE_S)
        except TimeoutError:
            pass
        self._sign.clear()

    async def _look(self, now_s: float) -> float | None:
        """Seconds until the next look, None until the next sign."""
        try:
            lost = await self._rules.lost()
        except Tnat64Error as error:
            if str(error) != self._healing.error:
                _log.warning("the kernel's rules cannot be looked at: %s", error)
            self._healing.error = str(error)
            return UNSEEN_S
        renewed = tuple(f"the control group {path}" for path in await self._rules.renewed())
        if not lost and not renewed:
            self._tell_return()
            return self._healing.stands(now_s)
        if not self._rules.can_restore:
            self._tell_loss(lost)
            return None
        decision = self._healing.decide(lost + renewed, now_s) if lost else self._healing.decide_on_renewal(now_s)
        match decision:
            case Wait(delay_s):
                return delay_s
            case SlowDown(delay_s):
                parts = _and(lost + renewed)
                _log.error("something keeps removing %s: restored only each %.0f s for now", parts, RETRY_S)
                return delay_s
            case Restore():
                return await self._restore(lost, renewed)

    async def _restore(self, lost: tuple[str, ...], renewed: tuple[str, ...]) -> float | None:
        now_s = asyncio.get_running_loop().time
        both = lost + renewed
        try:
            await self._rules.restore()
        except Tnat64Error as error:
            if str(error) != self._healing.error:
                _log.warning("%s %s gone or changed, and cannot be restored: %s", _and(both), _were(both), error)
            self._healing.failed(str(error), now_s())
            return 0.0  # the next decision is to wait
        self._healing.restored(now_s(), counts=bool(lost))
        if lost:
            self.restored += 1
            _log.warning("%s %s gone or changed: restored", _and(lost), _were(lost))
        if renewed:
            self.followed += 1
            _log.info("%s %s made anew: the rules are for what is there now", _and(renewed), _were(renewed))
        return self._healing.stands(now_s())

    def _tell_loss(self, lost: tuple[str, ...]) -> None:
        if lost != self._told and not self._is_watched():
            _log.warning(
                '%s %s gone or changed: "tnat64d setup" restores the rules (systemctl start tnat64d-setup)',
                _and(lost),
                _were(lost),
            )
            self._told = lost
        self._healing.lost = lost

    def _tell_return(self) -> None:
        if self._told:
            _log.info("the kernel's rules stand again")
            self._told = ()


def _and(parts: tuple[str, ...]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _were(parts: tuple[str, ...]) -> str:
    return "was" if len(parts) == 1 else "were"
