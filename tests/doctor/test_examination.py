"""One check hides no other, and what a check needs is asked first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tnat64d.core.config import Config
from tnat64d.core.findings import Finding, Level, fail, ok
from tnat64d.core.settings import Settings
from tnat64d.doctor import examination
from tnat64d.doctor.examination import CHECKS, Check, Need, examine
from tnat64d.doctor.subject import Findings, Subject

SUBJECT = Subject(
    written_config=Config(),
    written_settings=Settings(),
    loaded=None,
    conf_file="/etc/tnat64.conf",
    settings_file="/etc/tnat64d.toml",
    problems=(),
    conf_option="",
    settings_option=" -c x.toml",
    is_root=True,
    daemon={},
    why_no_daemon="",
    target=None,
)


def well(_: Subject) -> Findings:
    """Nothing."""
    yield ok("well")


def broken(_: Subject) -> Findings:
    """Everything."""
    yield fail("broken", "mend")


def crashing(_: Subject) -> Findings:
    """Itself."""
    yield ok("so far")
    raise ZeroDivisionError("by nought")


def outcome(monkeypatch: pytest.MonkeyPatch, subject: Subject, *checks: Check) -> list[tuple[str, Finding]]:
    monkeypatch.setattr(examination, "CHECKS", checks)
    return [(found.check, found.finding) for found in examine(subject)]


def test_a_check_that_crashes_is_a_finding_and_the_next_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome(monkeypatch, SUBJECT, Check("first", crashing), Check("second", well))
    crash = fail("cannot be examined: ZeroDivisionError: by nought", "sudo tnat64d doctor -c x.toml")
    assert found == [("first", ok("so far")), ("first", crash), ("second", ok("well"))]


def test_without_root_a_check_that_needs_it_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    needing = Check("it", well, frozenset({Need.ROOT}))
    ((_, finding),) = outcome(monkeypatch, replace(SUBJECT, is_root=False), needing)
    assert finding.level is Level.WARN


@pytest.mark.parametrize(
    ("need", "subject"),
    [(Need.DAEMON, replace(SUBJECT, daemon=None)), (Need.CONFIG, replace(SUBJECT, written_config=None))],
)
def test_without_daemon_or_configuration_a_check_that_needs_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch, need: Need, subject: Subject
) -> None:
    assert outcome(monkeypatch, subject, Check("it", well, frozenset({need}))) == []


def test_after_a_failure_a_check_of_its_consequences_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    last = Check("last", well, frozenset({Need.NO_FAILURE}))
    assert len(outcome(monkeypatch, SUBJECT, Check("first", well), last)) == 2
    assert len(outcome(monkeypatch, SUBJECT, Check("first", broken), last)) == 1


def test_every_check_says_which_fault_it_looks_for() -> None:
    assert [check.name for check in CHECKS if not check.look.__doc__] == []
    assert len({check.name for check in CHECKS}) == len(CHECKS)
