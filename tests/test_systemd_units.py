"""The unit files: systemd finds no fault, the sandbox is tight, and the rules come and go with the daemon."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab.units import DAEMON, SETUP, UNITS, values, words
from tests.lab.units import INSTALLED as PROGRAM
from tnat64d.core.settings import Settings

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
needs_systemd_sysusers = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed"
)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@needs_systemd_analyze
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    program = tmp_path / "tnat64d"
    program.touch(mode=0o755)
    for unit in (DAEMON, SETUP):
        (tmp_path / unit).write_text((UNITS / unit).read_text().replace(PROGRAM, str(program)))
    paths = [str(tmp_path / unit) for unit in (DAEMON, SETUP)]
    verdict = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths)
    assert (verdict.returncode, verdict.stdout + verdict.stderr) == (0, "")


@needs_systemd_analyze
@pytest.mark.parametrize("unit", [DAEMON, SETUP])
def test_the_exposure_is_at_most_2(unit: str) -> None:
    # The threshold is in tenths.
    verdict = run(
        "systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=20", str(UNITS / unit)
    )
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    assert "Overall exposure level" in verdict.stdout


@needs_systemd_sysusers
def test_sysusers_makes_the_user_that_the_daemon_runs_as(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    verdict = run("systemd-sysusers", f"--root={tmp_path}", str(UNITS / "tnat64d.sysusers"))
    assert verdict.returncode == 0, verdict.stderr
    user, _, uid, *_, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert [user] == words(DAEMON, "User") == words(DAEMON, "Group")
    assert uid != "0"
    assert shell == "/usr/sbin/nologin"


def test_the_daemon_announces_readiness_and_life_from_its_main_process_only() -> None:
    assert words(DAEMON, "Type") == ["notify"]
    assert words(DAEMON, "NotifyAccess") == ["main"]
    assert words(DAEMON, "WatchdogSec") == ["30"]


def test_the_daemon_has_one_capability_and_no_root() -> None:
    assert words(DAEMON, "AmbientCapabilities") == words(DAEMON, "CapabilityBoundingSet") == ["CAP_NET_RAW"]
    assert words(DAEMON, "User") not in ([], ["root"], ["0"])
    assert words(DAEMON, "NoNewPrivileges") == ["yes"]


def test_setup_has_the_capabilities_for_rules_and_no_others() -> None:
    assert words(SETUP, "CapabilityBoundingSet") == ["CAP_NET_ADMIN", "CAP_NET_RAW"]


def test_a_restart_is_not_tried_where_it_cannot_help() -> None:
    assert words(DAEMON, "Restart") == ["always"]
    assert words(SETUP, "Restart") == ["on-failure"]
    for unit in (DAEMON, SETUP):
        assert words(unit, "RestartPreventExitStatus") == ["2", "77", "78"]
        assert words(unit, "StartLimitIntervalSec") == ["0"]


def test_stopping_leaves_time_to_drain() -> None:
    assert words(DAEMON, "KillMode") == ["mixed"]
    (timeout_s,) = words(DAEMON, "TimeoutStopSec")
    assert int(timeout_s) > Settings().proxy.drain_timeout_s


def test_starting_the_daemon_starts_setup_but_does_not_wait_for_it() -> None:
    assert SETUP in words(DAEMON, "Wants")
    assert SETUP not in words(DAEMON, "After") + words(DAEMON, "Before") + words(DAEMON, "Requires")


def test_rules_come_once_the_daemon_is_ready_and_go_however_it_ends() -> None:
    assert DAEMON in words(SETUP, "After")
    assert words(SETUP, "BindsTo") == [DAEMON]
    assert words(SETUP, "ExecStart") == [PROGRAM, "setup", "--watch"]


def test_the_watcher_announces_that_rules_stand_and_ends_without_those_that_it_started() -> None:
    assert (words(SETUP, "Type"), words(SETUP, "NotifyAccess")) == (["notify"], ["main"])
    assert words(SETUP, "KillMode") == ["mixed"]


def test_a_setup_that_failed_half_way_is_undone_too() -> None:
    assert words(SETUP, "ExecStopPost") == [PROGRAM, "teardown"]


def test_a_reload_of_the_daemon_renews_the_rules_after_it() -> None:
    assert words(DAEMON, "ExecReload") == [PROGRAM, "reload"]
    assert words(SETUP, "ReloadPropagatedFrom") == [DAEMON]
    assert values(SETUP, "ExecReload") == [f"{PROGRAM} check", "/bin/kill -HUP $MAINPID"]


def test_rules_come_after_a_firewall_that_replaces_all_of_them() -> None:
    assert {"nftables.service", "firewalld.service"} <= set(words(SETUP, "After"))


def test_setup_can_make_and_lock_the_lock_of_iptables() -> None:
    assert words(SETUP, "ProtectSystem") == ["strict"]
    assert words(SETUP, "ReadWritePaths") == ["/run"]


def test_the_control_socket_lies_in_the_directory_that_the_unit_makes() -> None:
    (directory,) = words(DAEMON, "RuntimeDirectory")
    assert Settings().control.socket.startswith(f"/run/{directory}/")
