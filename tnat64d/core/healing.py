"""When rules that others took away are put back, and when not any more.

Owns the decision. Refuses to own looking and putting back. Pure: the time is an argument, in seconds.

    state       what was lost                                   becomes
    STANDING    put back at once                                RESTORED
    RESTORED    put back after 1 s, 2 s, 4 s, 8 s               RESTORED; CONTESTED after ATTEMPTS in a row
    CONTESTED   nothing                                         CONTESTED; RESTORED if other parts are lost by now
    any         nothing is, QUIET_S after the last time         STANDING
    any         rules were made anew (start, reload)            STANDING
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ATTEMPTS = 5
FIRST_DELAY_S = 1.0
QUIET_S = 120.0


class State(StrEnum):
    """See the module's table; ABSENT and MISSING are for who only watches rules, or waits to restore them."""

    ABSENT = "absent"
    STANDING = "standing"
    RESTORED = "restored"
    MISSING = "missing"
    CONTESTED = "contested"


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Restore:
    """Put back what is lost, now."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave it to the administrator; `is_new`: he has not been told."""

    is_new: bool


class Healing:
    """The memory of restorations in a row."""

    def __init__(self) -> None:
        self.state = State.STANDING
        self.lost: tuple[str, ...] = ()
        self._in_a_row = 0
        self._last_s = 0.0

    def begin(self) -> None:
        """Rules were made anew."""
        self.state, self.lost, self._in_a_row = State.STANDING, (), 0

    def stands(self, now_s: float) -> None:
        """Nothing is lost."""
        if self.state is State.CONTESTED:
            self.state = State.RESTORED  # somebody put it back
        self.lost = ()
        if now_s - self._last_s >= QUIET_S:
            self.begin()

    def decide(self, lost: tuple[str, ...], now_s: float) -> Restore | Wait | GiveUp:
        """What to do about the parts `lost`. `Restore` counts as done."""
        if self._in_a_row and now_s - self._last_s >= QUIET_S and self.state is not State.CONTESTED:
            self.begin()
        was_contested = self.state is State.CONTESTED
        if was_contested and set(lost) == set(self.lost):
            return GiveUp(is_new=False)
        if was_contested:
            self.begin()
        self.lost = lost
        if self._in_a_row == ATTEMPTS:
            self.state = State.CONTESTED
            return GiveUp(is_new=True)
        if self._in_a_row and (delay_s := self._last_s + self._delay_s() - now_s) > 0:
            return Wait(delay_s)
        self._in_a_row += 1
        self._last_s = now_s
        self.state = State.RESTORED
        return Restore()

    def _delay_s(self) -> float:
        delay_s: float = FIRST_DELAY_S * 2 ** (self._in_a_row - 1)
        return delay_s
