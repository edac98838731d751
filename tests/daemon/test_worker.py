"""One worker: its limit, its log, the signals that are not meant for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Port, wait_until
from tests.lab.daemon import Daemon, Tables, dial, echo, expect_reset


def daemon_in(lab: IdealNat64Lab, conf: str = "nat64_prefix = 2001:db8:64::\n", **settings: object) -> Daemon:
    tables: Tables = {"proxy": {"workers": 1}, **settings}  # type: ignore[dict-item]
    return Daemon(lab.client, lab.directory, conf=conf, settings=tables)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_connections_beyond_the_limit_wait_until_there_is_room(ideal_lab: IdealNat64Lab, loop: str) -> None:
    with daemon_in(ideal_lab, proxy={"workers": 1, "max_connections": 2, "loop": loop}) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as one, dial(ideal_lab.client, Port.ECHO) as two:
            echo(one)
            echo(two)
            with dial(ideal_lab.client, Port.ECHO, timeout_s=0.2) as three:
                three.sendall(b"!")
                with pytest.raises(TimeoutError):
                    three.recv(1)
                assert daemon.total("active") == 2
                one.close()
                three.settimeout(5)
                assert three.recv(1) == b"!"
                echo(two)


def test_signals_from_a_terminal_or_a_careless_kill_do_not_end_a_worker(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon, dial(ideal_lab.client, Port.ECHO) as sock:
        echo(sock)
        (pid,) = daemon.worker_pids()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        echo(sock)
        assert daemon.worker_pids() == [pid]


def test_a_worker_is_told_apart_by_its_name(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        (pid,) = daemon.worker_pids()
        assert Path(f"/proc/{pid}/comm").read_text() == "tnat64d-w0\n"


@pytest.mark.parametrize(("connections", "closed", "refused"), [("all", 1, 1), ("failed", 0, 1), ("none", 0, 0)])
def test_the_log_has_the_connections_it_shall_have(
    ideal_lab: IdealNat64Lab, connections: str, closed: int, refused: int
) -> None:
    with daemon_in(ideal_lab, log={"connections": connections}) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
        expect_reset(ideal_lab.client, Port.REFUSED)
        daemon.wait_for_total("relayed_nat64", 1)
        daemon.wait_for_total("refused", 1)
        daemon.stop()
        assert daemon.log.count(f" -> {SERVER_V4}:{Port.ECHO} via NAT64 ") == closed
        assert daemon.log.count(f" -> {SERVER_V4}:{Port.REFUSED} refused: ") == refused


def test_a_silent_connection_is_closed_after_the_idle_timeout_only(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, proxy={"workers": 1, "idle_timeout_s": 0.5}) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as idle:
            echo(idle)
            with pytest.raises(ConnectionResetError):
                idle.recv(1)
        daemon.wait_for_log(r"via NAT64 .* 0\.[4-9]\d\d s, closed because idle")


def test_a_client_that_gives_up_ends_its_dialling(ideal_lab: IdealNat64Lab) -> None:
    ideal_lab.ip("server", f"route del local {ideal_lab.prefix} dev lo", f"route add blackhole {ideal_lab.prefix}")
    with daemon_in(ideal_lab) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            wait_until(lambda: daemon.total("active") == 1, "the connection is dialled")
            sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: close() resets
        daemon.wait_for_log(r"given up by the client")
        assert daemon.total("active") == 0


def test_without_any_prefix_everything_is_tried_by_ipv4_only(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, conf="") as daemon:
        expect_reset(ideal_lab.client, Port.ECHO)
        assert "tnat64.conf has no nat64_prefix: every destination is tried by IPv4 only" in daemon.log
        daemon.wait_for_log("refused: IPv4: Network is unreachable")


@pytest.mark.parametrize("scope", ["prefix", "destination"])
def test_a_narrower_sticky_scope(ideal_lab: IdealNat64Lab, scope: str) -> None:
    conf = "nat64_prefix = 2001:db8:dead::\npath {\nsubnet = 198.51.100.8/29\nnat64_prefix = 2001:db8:64::\n}\n"
    with daemon_in(ideal_lab, conf=conf, policy={"sticky_scope": scope}) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
        key = ideal_lab.prefix if scope == "prefix" else SERVER_V4
        wait_until(lambda: daemon.status()["sticky"] == [key], f"{key} is sticky")
        with dial(ideal_lab.client, Port.ECHO, "198.51.100.11") as sock:  # the same prefix, another destination
            echo(sock)
        daemon.wait_for_log(
            rf"198\.51\.100\.11:7 via .*\({'NAT64 sticky' if scope == 'prefix' else 'IPv4 unreachable'}\)"
        )
        expect_reset(ideal_lab.client, Port.ECHO, "198.51.100.99")  # the other prefix
        daemon.wait_for_log(r"198\.51\.100\.99:7 refused: IPv4: .*, NAT64: ")
        assert key in daemon.status()["sticky"]
