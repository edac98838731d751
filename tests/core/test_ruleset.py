"""The words for what must stand: none stands for two things."""

from __future__ import annotations

import pytest

from tests.core.test_description import CONFIG, PORT
from tnat64d.core.description import describe
from tnat64d.core.ruleset import (
    CAPTURED_PRIORITY,
    FALLBACK_PRIORITY,
    HOLD_BITS,
    OWN_ATTEMPTS_PRIORITY,
    QUEUES,
    Hook,
    Ruleset,
    cgroups,
    without_cgroups,
)
from tnat64d.core.scope import Program, Scope
from tnat64d.core.settings import Mode, Rules


def test_every_hook_is_a_member_of_its_own() -> None:
    """Members of equal value would be one (enum, aliases)."""
    assert list(Hook.__members__.values()) == list(Hook)


def test_other_peoples_rules_come_before_the_capture_and_after_the_guard() -> None:
    assert {hook for hook in Hook if hook.before_others} == {Hook.GUARD_OUTPUT}


def test_the_bits_of_a_held_syn_count_the_queues() -> None:
    assert 1 << HOLD_BITS.bit_count() == QUEUES


def test_what_is_captured_is_routed_before_main_and_the_rest_after_default() -> None:
    main, default = 32766, 32767
    assert CAPTURED_PRIORITY < main < default < OWN_ATTEMPTS_PRIORITY < FALLBACK_PRIORITY


@pytest.mark.parametrize("mode", Mode)
def test_without_control_groups_that_are_absent_it_is_as_if_nobody_had_named_them(mode: Mode) -> None:
    def of(*names: str, but: tuple[str, ...] = ()) -> Ruleset:
        programs = (Program(uid=33), *(Program(cgroup=name) for name in names))
        scope = Scope(programs=programs, not_programs=tuple(Program(cgroup=name) for name in but))
        return describe(CONFIG, Rules(mode=mode), scope, PORT, honest=())

    assert cgroups(of("a", "b", but=("c", "a"))) == ("c", "a", "b")
    assert cgroups(of()) == ()
    assert without_cgroups(of("a", "b", but=("c",)), {"b", "c"}) == of("a")
    assert without_cgroups(of("a"), ()) == of("a")
