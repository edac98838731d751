"""When what was lost is put back, with a clock of the test's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from tnat64d.core.healing import (
    ATTEMPTS,
    RENEWAL_S,
    RENEWALS,
    RETRY_S,
    WINDOW_S,
    Healing,
    Restore,
    SlowDown,
    State,
    Wait,
)

RULE, ROUTE = ("the rule",), ("the route",)


def fight(healing: Healing, losses: Iterable[tuple[str, ...]], until_s: float) -> tuple[list[float], int]:
    """The next of `losses` is there at once when the one before is put back: when that was, and the slow-downs."""
    now_s, times, slow_downs = 0.0, [], 0
    for lost in losses:
        decision = healing.decide(lost, now_s)
        while isinstance(decision, Wait | SlowDown):
            slow_downs += isinstance(decision, SlowDown)
            now_s += decision.delay_s
            decision = healing.decide(lost, now_s)
        if now_s > until_s:
            break
        healing.restored(now_s)
        times.append(now_s)
    return times, slow_downs


def told(healing: Healing) -> tuple[State, tuple[str, ...], str | None]:
    return healing.state, healing.lost, healing.error


def test_the_first_loss_is_put_back_at_once() -> None:
    healing = Healing()
    assert healing.decide(RULE, 1000.0) == Restore()
    assert told(healing) == (State.STANDING, RULE, None)
    healing.restored(1000.0)
    assert told(healing) == (State.RESTORED, (), None)


def test_the_time_between_two_restorations_doubles_and_then_is_a_minute_for_ever() -> None:
    healing = Healing()
    assert fight(healing, itertools.repeat(RULE), 300.0) == ([0, 1, 3, 7, 15, 75, 135, 195, 255], 1)
    assert (ATTEMPTS, RETRY_S) == (5, 60.0)
    assert told(healing) == (State.CONTESTED, RULE, None)


def test_losing_now_this_and_now_that_makes_no_difference() -> None:
    same, others = (
        fight(Healing(), losses, 600.0)
        for losses in (itertools.repeat(RULE), itertools.cycle((RULE, RULE + ROUTE, ROUTE)))
    )
    assert others == same


def test_a_firewall_that_is_reloaded_six_times_is_survived() -> None:
    healing = Healing()
    for number in range(ATTEMPTS):
        assert healing.decide(RULE, 12.0 * number) == Restore()
        healing.restored(12.0 * number)
    assert healing.decide(RULE, 60.0) == SlowDown(48.0)
    assert healing.decide(RULE, 61.0) == Wait(47.0)
    assert healing.decide(RULE, 108.0) == Restore()
    healing.restored(108.0)
    assert healing.stands(109.0) == WINDOW_S - 1
    assert told(healing) == (State.CONTESTED, (), None)
    assert healing.stands(108.0 + WINDOW_S) is None
    assert told(healing) == (State.STANDING, (), None)


def test_what_is_lost_each_half_minute_is_always_put_back_at_once() -> None:
    healing = Healing()
    for number in range(100):
        assert healing.decide(RULE, 30.0 * number) == Restore()
        healing.restored(30.0 * number)
    assert told(healing) == (State.RESTORED, (), None)


def test_a_reload_begins_anew() -> None:
    healing = Healing()
    fight(healing, itertools.repeat(RULE), 60.0)
    healing.begin()
    assert told(healing) == (State.STANDING, (), None)
    assert healing.decide(RULE, 20.0) == Restore()


def test_after_a_quiet_time_all_is_forgotten() -> None:
    healing = Healing()
    for now_s in (0.0, WINDOW_S, 2 * WINDOW_S):
        assert healing.decide(RULE, now_s) == Restore()
        healing.restored(now_s)
    assert healing.stands(2 * WINDOW_S + 1) == WINDOW_S - 1
    assert told(healing) == (State.RESTORED, (), None)
    assert healing.stands(3 * WINDOW_S) is None
    assert told(healing) == (State.STANDING, (), None)


def test_a_restoration_that_fails_is_tried_again_and_is_nobody_s_fault() -> None:
    healing = Healing()
    now_s, times = 0.0, []
    for _ in range(2000):
        assert healing.decide(RULE, now_s) == Restore()
        healing.failed("no room", now_s)
        times.append(now_s)
        wait = healing.decide(RULE, now_s)
        assert isinstance(wait, Wait)
        now_s += wait.delay_s
        assert told(healing) == (State.STANDING, RULE, "no room")
    assert times[:10] == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    assert healing.decide(RULE, now_s) == Restore()
    healing.restored(now_s)
    assert told(healing) == (State.RESTORED, (), None)
    assert healing.decide(RULE, now_s) == Wait(1.0)


def test_a_failure_is_forgotten_when_somebody_else_puts_it_back() -> None:
    healing = Healing()
    assert healing.decide(RULE, 0.0) == Restore()
    healing.failed("no room", 0.0)
    assert healing.stands(0.1) is None
    assert (healing.lost, healing.error) == ((), None)
    assert healing.decide(RULE, 0.2) == Restore()


def test_renewals_are_no_contest_and_after_many_they_are_spaced() -> None:
    healing = Healing()
    for number in range(RENEWALS):
        assert healing.decide_on_renewal(float(number)) == Restore()
        healing.restored(float(number), counts=False)
        assert told(healing) == (State.STANDING, (), None)
    last_s = RENEWALS - 1.0
    assert healing.decide_on_renewal(last_s + 1) == Wait(RENEWAL_S - 1)
    assert healing.decide_on_renewal(last_s + RENEWAL_S) == Restore()
    assert healing.decide(RULE, last_s + 1) == Restore(), "what is lost waits for none of them"
    assert healing.stands(last_s) is None


def test_renewals_of_long_ago_do_not_count() -> None:
    healing = Healing()
    for _ in range(RENEWALS):
        healing.restored(0.0, counts=False)
    assert healing.decide_on_renewal(WINDOW_S) == Restore()
