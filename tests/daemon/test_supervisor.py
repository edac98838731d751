"""The daemon's life from start to end, by signals and commands; and that `up` leaves no trace."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.daemon.daemons import daemon_in, with_iptables
from tests.lab import SERVER_V4, IdealNat64Lab, Port, wait_until
from tests.lab.daemon import (
    PROGRAM,
    Daemon,
    Tables,
    dial,
    echo,
    expect_refused,
    is_alive,
    run_cli,
    seconds_of,
    snapshot,
)
from tnat64d.daemon.supervisor import MAX_AUTO_WORKERS, worker_count

# Ending


def all_are_refused(lab: IdealNat64Lab) -> bool:
    """Whether five connections, which come to any worker, are refused."""
    try:
        for _ in range(5):
            expect_refused(lab.client, Port.ECHO)
    except TimeoutError:  # that one is echoed
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_a_signal_lets_connections_finish_and_refuses_new_ones(
    ideal_lab: IdealNat64Lab, mode: str, number: signal.Signals
) -> None:
    settings: Tables = {"rules": {"mode": mode}, "proxy": {"workers": 2}}
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=settings) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
            daemon.process.send_signal(number)
            daemon.wait_for_log("draining 1 connections")
            wait_until(lambda: all_are_refused(ideal_lab), "each worker has heard of it")
            assert daemon.status()["state"] == "draining"
            echo(sock, b"x" * 1_000_000)
            assert daemon.process.returncode is None
        daemon.expect_end(0)


def test_an_idle_daemon_ends_at_once(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, drain_timeout_s=30) as daemon:
        started = time.monotonic()
        daemon.stop()
        assert seconds_of(started) < 3


def test_what_has_not_finished_in_time_is_reset(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, drain_timeout_s=0.3) as daemon, dial(ideal_lab.client, Port.ECHO) as sock:
        echo(sock)
        daemon.stop()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert "reset 1 connections that had not ended" in daemon.log


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_resets_what_is_left_at_once(ideal_lab: IdealNat64Lab, workers: int) -> None:
    with daemon_in(ideal_lab, workers=workers) as daemon, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(dial(ideal_lab.client, Port.ECHO)) for _ in range(10)]
        for sock in socks:
            echo(sock)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for_log("draining 10 connections")
        started = time.monotonic()
        daemon.stop()
        assert seconds_of(started) < 2
        for sock in socks:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


def test_a_connection_that_is_still_dialling_may_finish_too(ideal_lab: IdealNat64Lab) -> None:
    ideal_lab.ip("server", f"route del local {ideal_lab.prefix} dev lo", f"route add blackhole {ideal_lab.prefix}")
    with daemon_in(ideal_lab) as daemon, dial(ideal_lab.client, Port.ECHO) as sock:
        wait_until(lambda: daemon.total("active") == 1, "the connection is dialled")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for_log("draining 1 connections")
        ideal_lab.ip(
            "server", f"route del blackhole {ideal_lab.prefix}", f"route add local {ideal_lab.prefix} dev lo"
        )
        echo(sock)
        sock.close()
        daemon.expect_end(0)


def test_the_drain_command_returns_when_the_daemon_has_ended(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        done = daemon.run("drain")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert snapshot(ideal_lab.client) == daemon.before
        daemon.expect_end(0)


def test_workers_end_by_themselves_when_the_supervisor_is_killed(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, workers=2) as daemon, dial(ideal_lab.client, Port.ECHO) as sock:
        echo(sock)
        workers = daemon.children()
        daemon.process.send_signal(signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        wait_until(lambda: not any(map(is_alive, workers)), "the workers end")
        assert snapshot(ideal_lab.client) != daemon.before
        assert daemon.run("teardown").returncode == 0
        assert snapshot(ideal_lab.client) == daemon.before


def test_workers_that_drain_end_when_the_supervisor_is_killed(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, "serve", workers=2) as daemon:
        sock = ideal_lab.client.socket()
        with sock:
            run_cli(ideal_lab.client, "setup", "-f", str(daemon.conf), "-c", str(daemon.settings))
            sock.connect((SERVER_V4, Port.ECHO))
            echo(sock)
            workers = daemon.children()
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for_log("draining")
            daemon.process.send_signal(signal.SIGKILL)
            wait_until(lambda: not any(map(is_alive, workers)), "the workers end", timeout_s=2.0)


# Starting


def test_auto_is_one_worker_for_each_processor_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, workers in ((1, 1), (3, 3), (MAX_AUTO_WORKERS + 1, MAX_AUTO_WORKERS)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, count=processors: set(range(count)))
        assert worker_count("auto") == workers
    assert worker_count(MAX_AUTO_WORKERS + 1) == MAX_AUTO_WORKERS + 1


def test_a_signal_before_the_workers_are_ready_ends_the_daemon(ideal_lab: IdealNat64Lab) -> None:
    daemon = daemon_in(ideal_lab, drain_timeout_s=30)
    daemon.start()
    wait_until(lambda: Path(daemon.control_socket).exists(), "the supervisor is there")
    started = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    daemon.expect_end(0)
    assert seconds_of(started) < 3


def test_a_signal_while_rules_are_made_takes_them_away_again(ideal_lab: IdealNat64Lab) -> None:
    flag = ideal_lab.directory / "restoring"
    daemon = with_iptables(ideal_lab, f"touch {flag}; sleep 0.5")
    daemon.start()
    wait_until(flag.exists, "iptables-restore runs")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.expect_end(0)


def test_signals_while_rules_are_taken_away_change_nothing(ideal_lab: IdealNat64Lab) -> None:
    flag = ideal_lab.directory / "restoring"
    with with_iptables(ideal_lab, f"touch {flag}; sleep 0.3") as daemon:
        flag.unlink()
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(flag.exists, "iptables-restore runs")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            daemon.process.send_signal(number)
        daemon.expect_end(0)


def test_ctrl_c_twice_leaves_no_rules(ideal_lab: IdealNat64Lab) -> None:
    """A terminal sends SIGINT to every process of the foreground group, iptables-restore among them."""
    flag = ideal_lab.directory / "restoring"
    with with_iptables(ideal_lab, f"touch {flag}; sleep 0.3", ("setsid", *PROGRAM)) as daemon:
        group = os.getpgid(daemon.process.pid)
        assert group == daemon.process.pid
        flag.unlink()
        os.killpg(group, signal.SIGINT)
        wait_until(flag.exists, "iptables-restore runs")
        os.killpg(group, signal.SIGINT)
        daemon.expect_end(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_setup_that_is_told_to_end_leaves_nothing(ideal_lab: IdealNat64Lab, number: signal.Signals) -> None:
    flag = ideal_lab.directory / "restoring"
    daemon = with_iptables(ideal_lab, f"touch {flag}; sleep 0.3")
    before = snapshot(ideal_lab.client)
    setup = ideal_lab.client.start([*PROGRAM, "setup", "-f", str(daemon.conf), "-c", str(daemon.settings)])
    wait_until(flag.exists, "iptables-restore runs")
    setup.send_signal(number)
    time.sleep(0.05)  # into the undoing
    setup.send_signal(number)
    assert setup.wait() == 128 + number
    assert setup.stderr == ""
    assert snapshot(ideal_lab.client) == before


DELAYS_S = [1.5 * (n + random.random()) / 20 for n in range(20)]


def test_up_that_is_interrupted_at_any_moment_leaves_the_kernel_as_it_was(ideal_lab: IdealNat64Lab) -> None:
    before = snapshot(ideal_lab.client)
    for delay_s, number in zip(
        DELAYS_S, [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGTERM] * 5, strict=True
    ):
        daemon = daemon_in(ideal_lab, workers=2)
        daemon.start()
        time.sleep(delay_s)
        daemon.process.send_signal(number)
        daemon.process.wait()
        if number is signal.SIGKILL:
            assert daemon.run("teardown").returncode == 0
        elif number is signal.SIGTERM:  # SIGINT may hit Python before it has come to our first line
            assert "Traceback" not in daemon.log
        assert snapshot(ideal_lab.client) == before, f"{number.name} after {delay_s} s: {daemon.log}"


SLOW_START = """
import pathlib, sys, time
if "tnat64d.daemon.worker" in sys.orig_argv:
    pathlib.Path(__file__).with_name("starting").touch()
    time.sleep(1.5)
"""


def test_a_teardown_after_a_kill_waits_for_workers_that_were_starting(ideal_lab: IdealNat64Lab) -> None:
    """They hold the rules until they have come so far as to see that their supervisor is gone."""
    before = snapshot(ideal_lab.client)
    (ideal_lab.directory / "sitecustomize.py").write_text(SLOW_START)
    daemon = daemon_in(ideal_lab, env={"PYTHONPATH": str(ideal_lab.directory)})
    daemon.start()
    wait_until((ideal_lab.directory / "starting").exists, "a worker starts")
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    done = daemon.run("teardown")
    assert (done.returncode, done.stderr) == (0, "")
    assert snapshot(ideal_lab.client) == before


# Status


def test_status_tells_people_and_programs(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, workers=2) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock, b"twelve bytes")
        daemon.wait_for_total("relayed_nat64", 1)
        told = daemon.run("status")
        assert told.returncode == 0
        assert f"pid {daemon.process.pid}: serving on 127.0.0.1:6464" in told.stdout
        assert "12 up, 12 down" in told.stdout
        shown = daemon.status()
        assert shown["state"] == "serving"
        assert shown["pid"] == daemon.process.pid
        assert [worker["pid"] for worker in shown["workers"]] == list(daemon.children())
        assert daemon.run("status", "--json").stdout.startswith('{"version": ')


def test_status_of_no_daemon_is_3(ideal_lab: IdealNat64Lab) -> None:
    daemon = daemon_in(ideal_lab)
    told = daemon.run("status")
    assert (told.returncode, told.stderr) == (3, "")
    assert told.stdout == f"no tnat64d answers at {daemon.control_socket}: is it running?\n"
    assert daemon.run("status", "--json").stdout == '{"state": "stopped"}\n'
    for command in ("reload", "drain"):
        asked = daemon.run(command)
        assert (asked.returncode, asked.stdout) == (69, "")
        assert asked.stderr == f"tnat64d: no tnat64d answers at {daemon.control_socket}: is it running?\n"
