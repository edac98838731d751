"""A reload takes effect as a whole or not at all, whoever asks for it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path

import pytest

from tests.daemon.daemons import (
    BAD_CONF,
    OTHER_PREFIX,
    connect_to_each_worker,
    daemon_in,
    serve_other_prefix,
    with_iptables,
)
from tests.lab import IdealNat64Lab, Port, wait_until
from tests.lab.daemon import CONF, PROGRAM, Daemon, Tables, dial, echo, snapshot


def test_a_reload_takes_effect_for_new_connections_and_in_the_kernel(ideal_lab: IdealNat64Lab) -> None:
    other = serve_other_prefix(ideal_lab)
    with daemon_in(ideal_lab, workers=2) as daemon, contextlib.ExitStack() as stack:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
            daemon.conf.write_text(f"local = 198.51.100.99/32\nnat64_prefix = {OTHER_PREFIX}\n")
            done = daemon.run("reload")
            assert (done.returncode, done.stdout.splitlines()[0][:10]) == (0, "reloaded: ")
            assert OTHER_PREFIX in done.stdout
            echo(sock)  # as it was made
        socks = connect_to_each_worker(ideal_lab, daemon, stack)
        stack.close()
        wait_until(
            lambda: len(re.findall(rf"via NAT64 \[{other}\]", daemon.log)) == len(socks),
            "every connection goes by the other prefix",
        )
        assert "198.51.100.99" in snapshot(ideal_lab.client)["nft list ruleset"]
        assert OTHER_PREFIX in daemon.status()["summary"]


def test_sighup_reloads(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, "serve") as daemon:
        for number in (11, 12):  # it is no one-time thing
            daemon.conf.write_text(f"local = 10.0.0.0/{number}\n{CONF}")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for_log(rf"(reloaded: .*1 local networks(.|\n)*){{{number - 10}}}")


def test_sighup_before_the_daemon_is_ready_is_no_reason_to_die(ideal_lab: IdealNat64Lab) -> None:
    daemon = daemon_in(ideal_lab)
    daemon.start()
    wait_until(lambda: Path(daemon.control_socket).exists(), "the supervisor is there")
    daemon.process.send_signal(signal.SIGHUP)
    with daemon:
        daemon.wait_for_log("reloaded")


def expect_as_before(lab: IdealNat64Lab, daemon: Daemon, rules: dict[str, str]) -> None:
    assert snapshot(lab.client) == rules
    assert "2001:db8:64::/96" in daemon.status()["summary"]
    with dial(lab.client, Port.ECHO) as sock:
        echo(sock)


def test_a_bad_file_changes_nothing_and_every_problem_is_told(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        rules = snapshot(ideal_lab.client)
        daemon.conf.write_text(BAD_CONF)
        done = daemon.run("reload")
        assert done.returncode == 78
        assert [line.split(":")[1] for line in done.stderr.splitlines()] == ["1", "2", "3"]
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for_log("not reloaded, everything stays as it was")
        for line in (1, 2, 3):
            daemon.wait_for_log(f"^{daemon.conf}:{line}:")
        expect_as_before(ideal_lab, daemon, rules)


def test_a_file_that_is_gone_changes_nothing(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        rules = snapshot(ideal_lab.client)
        daemon.conf.unlink()
        done = daemon.run("reload")
        assert (done.returncode, done.stderr.count("\n")) == (78, 1)
        assert "there is no such file" in done.stderr
        expect_as_before(ideal_lab, daemon, rules)


def test_rules_that_cannot_be_made_leave_the_old_ones(ideal_lab: IdealNat64Lab) -> None:
    flag = ideal_lab.directory / "fail"
    script = f"if [ -e {flag} ]; then rm {flag}; echo no room for rules >&2; exit 4; fi"
    with with_iptables(ideal_lab, script) as daemon:
        rules = snapshot(ideal_lab.client)
        daemon.conf.write_text(f"local = 198.51.100.99/32\nnat64_prefix = {OTHER_PREFIX}\n")
        flag.touch()
        done = daemon.run("reload")
        assert done.returncode == 1
        assert "no room for rules" in done.stderr
        expect_as_before(ideal_lab, daemon, rules)


def test_rules_that_can_neither_be_made_nor_put_back_stay_until_the_end(ideal_lab: IdealNat64Lab) -> None:
    """As while another program holds the lock of xtables for long."""
    flag = ideal_lab.directory / "fail"
    with with_iptables(ideal_lab, f"if [ -e {flag} ]; then echo no room for rules >&2; exit 4; fi") as daemon:
        rules = snapshot(ideal_lab.client)
        daemon.conf.write_text(f"local = 198.51.100.99/32\nnat64_prefix = {OTHER_PREFIX}\n")
        flag.touch()
        assert daemon.run("reload").returncode == 1
        flag.unlink()
        expect_as_before(ideal_lab, daemon, rules)


def test_reloads_at_the_same_time_come_one_after_another(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        command = [*PROGRAM, "reload", "-c", str(daemon.settings)]
        reloads = [ideal_lab.client.start(command) for _ in range(6)]
        assert [reload.wait() for reload in reloads] == [0] * 6
        assert daemon.log.count("reloaded: ") == 6


def test_a_reload_reads_the_settings_for_rules_and_new_connections(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        daemon.write_settings(
            {
                "scope": {"not_ports": ["2525"]},
                "log": {"connections": "none"},
                "policy": {"sticky_scope": "prefix"},
                "proxy": {"idle_timeout_s": 0.2},
            },
        )
        done = daemon.run("reload")
        assert done.returncode == 0, done.stderr
        assert "tcp dport 2525 return" in snapshot(ideal_lab.client)["nft list ruleset"]
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
            with pytest.raises(ConnectionResetError):  # idle
                sock.recv(1)
        daemon.wait_for_total("relayed_nat64", 1)
        assert daemon.status()["sticky_scope"] == "prefix"
        assert daemon.status()["sticky"] == ["2001:db8:64::/96"]
        assert " -> " not in daemon.log


TOUCHING: dict[str, Tables] = {
    "scope": {"scope": {"not_ports": ["2525"]}},
    "honest": {"proxy": {"connect": "honest", "honest_ports": ["443"]}},
    "nothing": {"proxy": {"connect": "honest", "idle_timeout_s": 9.0}},
}


@pytest.mark.parametrize("change", TOUCHING)
def test_beside_setup_a_reload_says_whether_the_rules_need_it_too(ideal_lab: IdealNat64Lab, change: str) -> None:
    with daemon_in(ideal_lab, "serve", connect="honest") as daemon:
        daemon.write_settings({"proxy": {"connect": "honest"}, **TOUCHING[change]})
        done = daemon.run("reload")
        assert done.stdout.startswith("reloaded: prefix ")
        assert ("this change touches them: run `tnat64d setup`, too" in done.stdout) == (change != "nothing")
        assert ('"tnat64d setup"' in daemon.log) == (change != "nothing")
        assert json.loads(daemon.run("reload", "--json").stdout)["needs_setup"] is False
        daemon.conf.write_text(f"local = 203.0.113.0/24\n{CONF}")
        assert json.loads(daemon.run("reload", "--json").stdout) == {
            "summary": "prefix 2001:db8:64::/96, 0 paths, 1 local networks",
            "needs_setup": True,
            "watcher": None,
        }


def test_beside_setup_a_scope_of_nobody_changes_nothing(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, "serve") as daemon:
        daemon.write_settings({"scope": {"users": ["nosuchuser"]}})
        done = daemon.run("reload")
        assert (done.returncode, done.stderr) == (
            78,
            f"{daemon.settings}: scope: there is no user 'nosuchuser' on this host\n",
        )


def test_a_daemon_that_makes_its_rules_needs_no_setup(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        daemon.write_settings(TOUCHING["scope"])
        assert json.loads(daemon.run("reload", "--json").stdout)["needs_setup"] is False


def test_a_limit_on_connections_is_changed_by_a_reload(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, max_connections=1) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as first, dial(ideal_lab.client, Port.ECHO) as second:
            echo(first)
            second.sendall(b"x")  # connected in the backlog, not accepted
            assert daemon.total("accepted") == 1
            daemon.write_settings({"proxy": {"max_connections": 2}})
            assert daemon.run("reload").returncode == 0
            assert second.recv(1) == b"x"


def test_a_setting_that_needs_a_restart_changes_nothing_at_all(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        rules = snapshot(ideal_lab.client)
        daemon.conf.write_text(f"nat64_prefix = {OTHER_PREFIX}\n")
        daemon.write_settings({"rules": {"table": 77}, "scope": {"not_ports": ["2525"]}})
        done = daemon.run("reload")
        assert done.returncode == 78
        assert (
            done.stderr.strip() == f"{daemon.settings}: rules.table: is 77, and was 6464 at start: needs a restart"
        )
        expect_as_before(ideal_lab, daemon, rules)


def test_a_mistake_in_the_settings_changes_nothing(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        rules = snapshot(ideal_lab.client)
        daemon.write_settings({"log": {"connections": "some"}})
        done = daemon.run("reload")
        assert (done.returncode, done.stderr.count("\n")) == (78, 1)
        expect_as_before(ideal_lab, daemon, rules)
