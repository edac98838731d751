"""The service, by the commands of its units: others take its rules away, and `setup --watch` puts them back."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.lab import IdealNat64Lab, Port, wait_until
from tests.lab.daemon import CONF, PROGRAM, Daemon, Tables, dial, echo, run_cli, snapshot
from tests.lab.units import Units
from tests.test_fail_open import assert_connect_fails_at_once, kill
from tests.test_healing import FOREIGN, LOSSES, SOON_S, foreign_rules, works
from tnat64d.core.healing import ATTEMPTS

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")

BACKENDS: dict[str, Tables] = {
    "nftables": {"rules": {"backend": "nftables"}},
    "iptables-nft": {"rules": {"backend": "iptables", "iptables": "iptables-nft"}},
    "iptables-legacy": {"rules": {"backend": "iptables", "iptables": "iptables-legacy"}},
}
STATIC_LOSSES = {name: loss for name, loss in LOSSES.items() if not name.startswith("owned")} | {
    "nftables, redirect: everything": (BACKENDS["nftables"], "nft flush ruleset"),
    "nftables, redirect: the route": (BACKENDS["nftables"], "ip route flush table 6464"),
}


@contextlib.contextmanager
def running(lab: IdealNat64Lab, settings: Tables) -> Iterator[Units]:
    """The service, seen to work; in the end the host is as before."""
    daemon = Daemon(lab.client, lab.directory, command="serve", settings=settings, leaves_kernel_as_found=False)
    with Units(daemon) as units:
        with dial(lab.client, Port.ECHO) as sock:
            echo(sock)
        yield units


def warnings(units: Units) -> list[str]:
    return re.findall(r"(?:WARNING|ERROR): .*", units.watcher.stderr)


@pytest.mark.parametrize(("settings", "command"), STATIC_LOSSES.values(), ids=STATIC_LOSSES)
def test_what_others_take_away_is_put_back_once(ideal_lab: IdealNat64Lab, settings: Tables, command: str) -> None:
    client = ideal_lab.client
    with running(ideal_lab, settings) as units:
        client.run(["nft", "-f", "-"], input=FOREIGN)
        client.run(command.split())
        started = time.monotonic()
        theirs = foreign_rules(client)
        units.watcher.wait_for_output("changed: restored$", timeout_s=SOON_S)
        wait_until(lambda: works(client), "connections work again", timeout_s=SOON_S)
        assert time.monotonic() - started < SOON_S
        assert foreign_rules(client) == theirs
        client.run(["nft", "delete", "table", "ip", "theirs"], check=False)
        (warning,) = warnings(units)
        assert warning.endswith("gone or changed: restored")
        assert units.wait_for_message("STATUS=rules restored; restored 1 times")
        wait_until(lambda: units.daemon.status()["rules_restored"] == 1, "the daemon is told")
        rules: object = {
            "way": "setup",
            "state": "restored",
            "missing": [],
            "error": None,
            "watcher": units.watcher.pid,
        }
        assert units.daemon.status()["rules"] == rules
        assert "tnat64d setup" not in units.daemon.log  # nothing is left to be done
        units.stop()
    assert snapshot(client) == units.before


def test_it_does_not_fight_for_ever_and_a_reload_begins_anew(ideal_lab: IdealNat64Lab) -> None:
    script = "while sleep 0.02; do ip rule del pref 32769; done 2>/dev/null"
    with running(ideal_lab, BACKENDS["nftables"]) as units:
        opponent = ideal_lab.client.start(["sh", "-c", script])
        units.watcher.wait_for_output("ERROR: something keeps removing the routing rule 32769", timeout_s=30)
        units.wait_for_message(
            f"STATUS=rules contested; restored {ATTEMPTS} times; missing: the routing rule 32769"
        )
        wait_until(lambda: units.daemon.status()["rules"]["state"] == "contested", "the daemon is told")
        shown = units.daemon.run("status").stdout
        assert (
            f"contested (setup, watched by pid {units.watcher.pid}), restored {ATTEMPTS} times; missing: " in shown
        )
        opponent.terminate()
        finding = daemon_finding(units)
        assert (finding["level"], finding["remedy"]) == ("fail", f"kill -HUP {units.watcher.pid}")
        ideal_lab.client.run(str(finding["remedy"]).split())
        units.watcher.wait_for_output("INFO: reloaded")
        assert works(ideal_lab.client)
        wait_until(lambda: units.daemon.status()["rules"]["state"] == "standing", "the daemon is told")
        assert daemon_finding(units)["level"] == "ok"
        assert len(warnings(units)) == ATTEMPTS + 1


def daemon_finding(units: Units) -> dict[str, object]:
    """What `doctor` finds of the daemon."""
    findings = json.loads(units.daemon.run("doctor", "-f", str(units.daemon.conf), "--json").stdout)
    (finding,) = (each for each in findings if each["check"] == "daemon")
    found: dict[str, object] = finding
    return found


@pytest.mark.parametrize("settings", BACKENDS.values(), ids=BACKENDS)
def test_a_reload_makes_the_rules_of_both_files_and_those_are_watched(
    ideal_lab: IdealNat64Lab, settings: Tables
) -> None:
    with running(ideal_lab, settings) as units:
        units.daemon.conf.write_text(f"local = 198.51.100.99/32\n{CONF}")
        with units.daemon.settings.open("a") as file:
            file.write('[scope]\nnot_ports = ["2525"]\n')
        assert units.reload_setup()
        units.wait_for_message("RELOADING=1")
        units.wait_for_message("READY=1")
        shown = rules_of(ideal_lab)
        assert "198.51.100.99" in shown
        assert "2525" in shown
        ideal_lab.client.run(["ip", "rule", "del", "pref", "32769"])
        units.watcher.wait_for_output("changed: restored$")
        assert rules_of(ideal_lab) == shown
        assert len(warnings(units)) == 1
        units.stop()
    assert snapshot(ideal_lab.client) == units.before


def rules_of(lab: IdealNat64Lab) -> str:
    shown = snapshot(lab.client)
    return "".join(shown[name] for name in ("iptables-nft-save", "iptables-legacy-save", "nft list ruleset"))


def test_a_reload_with_a_mistake_fails_and_keeps_the_rules_watched(ideal_lab: IdealNat64Lab) -> None:
    with running(ideal_lab, {}) as units:
        stood = rules_of(ideal_lab)
        units.daemon.conf.write_text("local = here\n")
        assert not units.reload_setup()
        units.watcher.send_signal(signal.SIGHUP)  # as somebody does by hand
        units.watcher.wait_for_output(rf"ERROR: not reloaded, everything stays as it was:\n{units.daemon.conf}:1:")
        units.wait_for_message("READY=1")
        units.daemon.conf.write_text(CONF)
        with units.daemon.settings.open("a") as file:
            file.write("[rules]\ntable = 7777\n")
        assert units.reload_setup()
        units.watcher.wait_for_output(r"rules\.table: is 7777, and was 6464 at start: needs a restart")
        assert rules_of(ideal_lab) == stood
        ideal_lab.client.run(["nft", "delete", "table", "ip", "tnat64d"])
        units.watcher.wait_for_output("changed: restored$")
        assert rules_of(ideal_lab) == stood


@pytest.mark.parametrize("settings", BACKENDS.values(), ids=BACKENDS)
def test_a_watcher_that_is_killed_leaves_nothing_and_its_next_start_goes_on(
    ideal_lab: IdealNat64Lab, settings: Tables
) -> None:
    """Connections under way stand still meanwhile, and go on."""
    client = ideal_lab.client
    with running(ideal_lab, settings) as units, dial(client, Port.ECHO) as sock:
        echo(sock)
        stood = rules_of(ideal_lab)
        units.watcher.send_signal(signal.SIGKILL)
        units.watcher.wait()
        assert rules_of(ideal_lab) == stood
        wait_until(lambda: units.daemon.status()["rules"]["state"] == "routing", "the daemon looks for itself")
        units.clean_up()
        assert snapshot(client) == units.before
        units.daemon.wait_for_log('WARNING: .* gone or changed: "tnat64d setup" restores the rules')
        assert units.daemon.status()["rules"]["watcher"] is None
        units.start_setup()
        units.daemon.wait_for_log("the kernel's rules stand again")
        assert rules_of(ideal_lab) == stood
        echo(sock)
        assert works(client)
        client.run(["ip", "rule", "del", "pref", "32769"])
        units.watcher.wait_for_output("changed: restored$")


def test_connections_end_before_the_rules_go(ideal_lab: IdealNat64Lab) -> None:
    client = ideal_lab.client
    with running(ideal_lab, {}) as units, dial(client, Port.ECHO) as sock:
        echo(sock)
        stopping = threading.Thread(target=units.stop)
        stopping.start()
        units.daemon.wait_for_log("draining 1 connections")
        client.run(["nft", "flush", "ruleset"])  # it is still watched
        units.watcher.wait_for_output("changed: restored$")
        echo(sock)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        stopping.join()
        assert 'stopped: the rules stand until "tnat64d teardown"' in units.watcher.stderr
    assert snapshot(client) == units.before


@pytest.mark.parametrize("settings", BACKENDS.values(), ids=BACKENDS)
def test_a_daemon_that_is_killed_takes_watcher_and_rules_with_it(
    ideal_lab: IdealNat64Lab, settings: Tables
) -> None:
    with running(ideal_lab, settings) as units:
        kill(units.daemon, "all")
        units.stop(-signal.SIGKILL)
    assert snapshot(ideal_lab.client) == units.before
    assert_connect_fails_at_once(ideal_lab.client, errno.ENETUNREACH)


def test_what_others_of_us_would_change_is_refused_while_it_is_watched(ideal_lab: IdealNat64Lab) -> None:
    with running(ideal_lab, {}) as units:
        stood = rules_of(ideal_lab)
        conf = ("-f", str(units.daemon.conf))
        for command in (("setup", *conf), ("setup", "--watch", *conf), ("teardown",)):
            done = units.daemon.run(*command)
            assert (done.returncode, "setup --watch keeps the rules here" in done.stderr) == (1, True), command
        other: Tables = {"proxy": {"port": 6465}}
        up = Daemon(ideal_lab.client, ideal_lab.directory, settings=other)
        done = up.run("up", "-f", str(up.conf))
        assert (done.returncode, "setup --watch keeps the rules here" in done.stderr) == (1, True)
        assert units.daemon.run("setup", "--dry-run", *conf).stdout == "# nothing to do\n"
        assert rules_of(ideal_lab) == stood
        assert warnings(units) == []


def test_a_daemon_that_starts_later_is_told_too(ideal_lab: IdealNat64Lab) -> None:
    """By hand: systemd stops the watcher with the daemon."""
    with running(ideal_lab, {}) as units:
        units.daemon.stop()
        with Daemon(
            ideal_lab.client,
            ideal_lab.directory,
            command="serve",
            settings={"control": {"socket": units.daemon.control_socket}},
            leaves_kernel_as_found=False,
        ) as another:
            wait_until(lambda: another.status()["rules"]["watcher"] == units.watcher.pid, "the daemon is told")
            assert another.status()["rules"]["state"] == "standing"
        units.daemon.start()
        units.daemon.wait_until_ready()


def test_without_the_right_it_says_so(ideal_lab: IdealNat64Lab) -> None:
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", *PROGRAM)
    done = run_cli(ideal_lab.client, "setup", "--watch", program=powerless)
    assert (done.returncode, done.stderr.count("\n")) == (77, 1)
