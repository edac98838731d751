"""The life of the watcher, from start to end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.lab import IdealNat64Lab, wait_until
from tests.lab.daemon import CONF, Daemon, Tables, iptables_after, snapshot
from tests.lab.units import Units

pytestmark = pytest.mark.netns("iptables-nft", "setpriv")

FAILING = "if [ -e {flag} ]; then echo no room >&2; exit 4; fi"


def serving(lab: IdealNat64Lab, settings: Tables | None = None) -> Daemon:
    return Daemon(lab.client, lab.directory, command="serve", settings=settings, leaves_kernel_as_found=False)


def with_failing_iptables(lab: IdealNat64Lab) -> Daemon:
    """A daemon whose iptables fails as long as there is a file `fail`."""
    script = FAILING.format(flag=lab.directory / "fail")
    return serving(lab, {"rules": {"backend": "iptables", "iptables": iptables_after(lab.directory, script)}})


def watch(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    return daemon.run("setup", "--watch", "-f", str(daemon.conf))


def test_it_loads_nothing_that_only_the_proxy_needs() -> None:
    code = "import sys, tnat64d.daemon.watching, tnat64d.daemon.journal; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not any(name.startswith(("tnat64d.proxy", "uvloop", "dns")) for name in loaded)


def test_rules_that_cannot_be_made_end_it_and_leave_nothing(ideal_lab: IdealNat64Lab) -> None:
    daemon = with_failing_iptables(ideal_lab)
    (ideal_lab.directory / "fail").touch()
    before = snapshot(ideal_lab.client)
    done = watch(daemon)
    assert (done.returncode, "no room" in done.stderr) == (1, True)
    assert snapshot(ideal_lab.client) == before


def test_a_file_with_a_mistake_ends_it_before_anything_is_done(ideal_lab: IdealNat64Lab) -> None:
    daemon = serving(ideal_lab)
    daemon.conf.write_text("local = here\n")
    before = snapshot(ideal_lab.client)
    done = watch(daemon)
    assert (done.returncode, done.stderr.startswith(f"{daemon.conf}:1:")) == (78, True)
    assert snapshot(ideal_lab.client) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_the_rules_stand_until_teardown(
    ideal_lab: IdealNat64Lab, number: signal.Signals
) -> None:
    with Units(serving(ideal_lab)) as units:
        stood = snapshot(ideal_lab.client)
        units.watcher.send_signal(number)
        assert units.watcher.wait() == 0
        units.wait_for_message("STOPPING=1")
        assert snapshot(ideal_lab.client) == stood
        assert units.daemon.run("teardown").returncode == 0
        assert snapshot(ideal_lab.client) == units.before
        units.daemon.stop()


def test_what_cannot_be_restored_is_told_to_systemd_and_the_daemon_and_tried_again(
    ideal_lab: IdealNat64Lab,
) -> None:
    with Units(with_failing_iptables(ideal_lab)) as units:
        flag = ideal_lab.directory / "fail"
        flag.touch()
        ideal_lab.client.run(["iptables-nft", "-w", "-t", "nat", "-F"])
        units.wait_for_message("STATUS=rules missing; missing: .*; cannot be restored: .*no room.*")
        assert "; cannot be restored: " in units.daemon.run("status").stdout
        flag.unlink()
        units.watcher.wait_for_output("changed: restored$")
        units.wait_for_message("STATUS=rules restored; restored 1 times")


def test_a_reload_of_the_daemon_names_what_brings_the_change_to_watched_rules(ideal_lab: IdealNat64Lab) -> None:
    with Units(serving(ideal_lab)) as units:
        pid = units.watcher.pid
        wait_until(lambda: units.daemon.status()["rules"]["watcher"] == pid, "the watcher has reported")
        units.daemon.conf.write_text(f"local = 203.0.113.0/24\n{CONF}")
        told = units.daemon.run("reload").stdout
        assert f"this change touches them: run `kill -HUP {pid}`, too" in told
