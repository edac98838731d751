"""When what was lost is put back, with a clock of the test's own."""

from __future__ import annotations

from tnat64d.core.healing import ATTEMPTS, QUIET_S, GiveUp, Healing, Restore, State, Wait

RULE, ROUTE = ("the rule",), ("the route",)


def fight(healing: Healing) -> list[float]:
    """Everything is lost at once, always; when it is put back, until that is given up."""
    now_s, times = 0.0, []
    while not isinstance(decision := healing.decide(RULE, now_s), GiveUp):
        if isinstance(decision, Wait):
            now_s += decision.delay_s
        else:
            times.append(now_s)
    assert decision.is_new
    return times


def test_the_first_loss_is_put_back_at_once() -> None:
    healing = Healing()
    assert healing.decide(RULE, 1000.0) == Restore()
    assert healing.state is State.RESTORED


def test_the_time_between_two_restorations_doubles_until_it_is_given_up() -> None:
    healing = Healing()
    assert fight(healing) == [0, 1, 3, 7, 15]
    assert ATTEMPTS == 5
    assert (healing.state, healing.lost) == (State.CONTESTED, RULE)


def test_giving_up_is_told_once() -> None:
    healing = Healing()
    fight(healing)
    assert healing.decide(RULE, 1e6) == GiveUp(is_new=False)


def test_when_something_else_is_lost_it_begins_anew() -> None:
    healing = Healing()
    fight(healing)
    assert healing.decide(RULE + ROUTE, 20.0) == Restore()
    assert healing.decide(RULE, 20.0) == Wait(1.0)


def test_a_reload_begins_anew() -> None:
    healing = Healing()
    fight(healing)
    healing.begin()
    assert (healing.state, healing.lost) == (State.STANDING, ())
    assert healing.decide(RULE, 20.0) == Restore()


def test_after_a_quiet_time_all_is_forgotten() -> None:
    healing = Healing()
    for now_s in (0.0, QUIET_S, 2 * QUIET_S):
        assert healing.decide(RULE, now_s) == Restore()
    states = []
    for now_s in (2 * QUIET_S + 1, 3 * QUIET_S):
        healing.stands(now_s)
        states.append(healing.state)
    assert states == [State.RESTORED, State.STANDING]


def test_what_somebody_else_puts_back_is_contested_no_more() -> None:
    healing = Healing()
    fight(healing)
    healing.stands(16.0)
    assert (healing.state, healing.lost) == (State.RESTORED, ())
