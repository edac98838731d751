"""Remedies name the files that the command line named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.doctor.test_examination import SUBJECT
from tnat64d.doctor.subject import ask_daemon


def test_a_command_of_a_remedy_takes_the_options_that_it_knows() -> None:
    subject = replace(SUBJECT, conf_option=" -f a", settings_option=" -c b")
    assert subject.command("setup") == "tnat64d setup -f a -c b"
    assert subject.command("teardown") == "tnat64d teardown -c b"


def test_what_restores_rules_is_asked_of_whoever_made_them() -> None:
    def restoring(**rules: object) -> str:
        return replace(SUBJECT, settings_option="", daemon={"rules": rules}).restoring

    assert restoring(way="owned", watcher=None) == "tnat64d reload"
    assert restoring(way="static", watcher=None) == "tnat64d reload"
    assert restoring(way="setup", watcher=None) == "tnat64d setup"
    assert restoring(way="setup", watcher=77) == "kill -HUP 77"


def test_without_a_daemon_there_is_a_sentence_that_says_so(tmp_path: Path) -> None:
    answer, why = ask_daemon(str(tmp_path / "none.sock"))
    assert answer is None
    assert "is it running?" in why
