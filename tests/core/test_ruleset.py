"""The words for what must stand: none stands for two things."""

from __future__ import annotations

from tnat64d.core.ruleset import (
    CAPTURED_PRIORITY,
    FALLBACK_PRIORITY,
    HOLD_BITS,
    OWN_ATTEMPTS_PRIORITY,
    QUEUES,
    Hook,
)


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
