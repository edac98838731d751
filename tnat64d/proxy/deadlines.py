"""Deadlines that all lie the same time ahead, at the cost of a dictionary entry each.

Owns who is due when. Refuses to own what happens then. A timer of the event loop for each connection would
cost more than the rest of its bookkeeping: since all deadlines of one kind have the same length, they come in
the order in which they were set, and one timer for the first of them is enough. None pending: no timer, no
wake-up. After it has fired the timer rests for a sixteenth of the delay: what is due meanwhile is due together,
and the end of a burst of connections is a few wake-ups and not one for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

CLOCK_ERROR_S: Final = 1e-6
"""A timer fires when the loop's clock shows its time; sums of floats differ from that in their last bits."""

Item = TypeVar("Item", bound=Hashable)


class Deadlines(Generic[Item]):
    """Calls `due(item)` once, `delay_s` after `start(item)` or up to a sixteenth of it later, unless `stop(item)`
    came first. A delay of 0 means never.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float, due: Callable[[Item], None]) -> None:
        self._loop = loop
        self._time = loop.time
        self._delay_s = delay_s
        self._rest_s = delay_s / 16
        self._due = due
        self._pending: dict[Item, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, item: Item) -> None:
        """`item` is due after the delay, counted from now; it must not be pending already."""
        if self._delay_s <= 0:
            return
        self._pending[item] = self._time() + self._delay_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._delay_s, self._fire)

    def stop(self, item: Item) -> None:
        """`item` is not due any more; nothing if it was not pending."""
        self._pending.pop(item, None)

    def change(self, delay_s: float) -> None:
        """Another delay from now on; what is pending is due no later than if it started now.

        So deadlines stay in order. After a delay of 0 nothing is pending.
        """
        self._delay_s = delay_s
        self._rest_s = delay_s / 16
        if delay_s <= 0:
            self.cancel()
            return
        latest = self._time() + delay_s
        self._pending = {item: min(deadline, latest) for item, deadline in self._pending.items()}
        if self._timer is not None:
            self._timer.cancel()
            self._time_first()

    def cancel(self) -> None:
        """Nothing is due any more."""
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        # `_timer` stays set until the end: what starts while another is due must not set a later one of its own.
        now = self._time() + CLOCK_ERROR_S
        due = []
        for item, deadline in self._pending.items():
            if deadline > now:
                break
            due.append(item)
        try:
            for item in due:
                if self._pending.pop(item, None) is not None:
                    self._due(item)
        finally:
            self._time_first(now + self._rest_s)

    def _time_first(self, earliest: float = 0.0) -> None:
        """Set the timer for the first that is pending, but not before `earliest`."""
        self._timer = None
        if self._pending:
            first = next(iter(self._pending.values()))
            self._timer = self._loop.call_at(max(first, earliest), self._fire)
