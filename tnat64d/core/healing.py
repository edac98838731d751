"""When rules that others took away are put back.

Owns the decision. Refuses to own looking and putting back. Pure: the time is an argument, in seconds.
Restorations count for WINDOW_S, whatever parts they put back; one that fails does not count. One because a control
group was made anew is nobody's fault and no contest: after RENEWALS in WINDOW_S the next waits for RENEWAL_S.

    state       what was lost is put back                       becomes
    STANDING    at once                                         RESTORED
    RESTORED    1 s, 2 s, 4 s, 8 s after the last time          RESTORED; CONTESTED after ATTEMPTS that count
    CONTESTED   RETRY_S after the last time                     CONTESTED
    any         after a failure: 1 s, 2 s, 4 s ... RETRY_S      the same
    any         no restoration counts any more                  STANDING
    any         rules were made anew (start, reload)            STANDING
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ATTEMPTS = 5
FIRST_DELAY_S = 1.0
RETRY_S = 60.0
RENEWALS, RENEWAL_S = 10, 10.0
WINDOW_S = 120.0
"""More than RETRY_S: who goes on taking rules away stays contested."""


class State(StrEnum):
    """See the module's table; ABSENT, MISSING and ROUTING are for `status`."""

    ABSENT = "absent"
    STANDING = "standing"
    ROUTING = "routing"
    RESTORED = "restored"
    MISSING = "missing"
    CONTESTED = "contested"


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class SlowDown:
    """The same, and tell the administrator: it is contested from now on."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Restore:
    """Put back what is lost, now, and say `restored` or `failed`."""


class Healing:
    """The memory of restorations. `lost` and `error`: what is not there, and why it could not be put back."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Rules were made anew."""
        self.state = State.STANDING
        self._times_s: list[float] = []
        self._renewals_s: list[float] = []
        self._is_whole()

    def _is_whole(self) -> None:
        self.lost: tuple[str, ...] = ()
        self.error: str | None = None
        self._retry_s = FIRST_DELAY_S
        self._not_before_s = float("-inf")

    def stands(self, now_s: float) -> float | None:
        """Nothing is lost. The seconds until the last restoration does not count any more, if one does."""
        self._is_whole()
        self._forget(now_s)
        return self._times_s[-1] + WINDOW_S - now_s if self._times_s else None

    def decide_on_renewal(self, now_s: float) -> Restore | Wait:
        """What to do about control groups that were made anew, where nothing is lost."""
        self._forget(now_s)
        next_s = self._renewals_s[-1] + RENEWAL_S if len(self._renewals_s) >= RENEWALS else now_s
        delay_s = max(next_s, self._not_before_s) - now_s
        return Wait(delay_s) if delay_s > 0 else Restore()

    def decide(self, lost: tuple[str, ...], now_s: float) -> Restore | Wait | SlowDown:
        """What to do about the parts `lost`."""
        self.lost = lost
        self._forget(now_s)
        is_new = self.state is not State.CONTESTED and len(self._times_s) >= ATTEMPTS
        if is_new:
            self.state = State.CONTESTED
        delay_s = max(self._next_s(), self._not_before_s) - now_s
        if is_new:
            return SlowDown(max(0.0, delay_s))
        return Wait(delay_s) if delay_s > 0 else Restore()

    def restored(self, now_s: float, *, counts: bool = True) -> None:
        """What was lost has been put back."""
        self._is_whole()
        if not counts:
            self._renewals_s.append(now_s)
            return
        self._times_s.append(now_s)
        if self.state is not State.CONTESTED:
            self.state = State.RESTORED

    def failed(self, error: str, now_s: float) -> None:
        """It could not be put back."""
        self.error = error
        self._not_before_s = now_s + self._retry_s
        self._retry_s = min(RETRY_S, 2 * self._retry_s)

    def _forget(self, now_s: float) -> None:
        self._times_s = [time_s for time_s in self._times_s if now_s - time_s < WINDOW_S]
        self._renewals_s = [time_s for time_s in self._renewals_s if now_s - time_s < WINDOW_S]
        if not self._times_s:
            self.state = State.STANDING

    def _next_s(self) -> float:
        """When the last restoration allows another."""
        if not self._times_s:
            return float("-inf")
        is_slow = self.state is State.CONTESTED
        delay_s = RETRY_S if is_slow else FIRST_DELAY_S * 2 ** (len(self._times_s) - 1)
        return self._times_s[-1] + delay_s
