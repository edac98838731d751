"""What the service manager is told (sd_notify(3)), by a manager that is a socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.daemons import BAD_CONF, OTHER_PREFIX, daemon_in
from tests.lab import IdealNat64Lab, Port, wait_until
from tests.lab.daemon import Daemon, dial, echo


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What NOTIFY_SOCKET leads to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        receiver.bind(str(tmp_path / "notify"))
        yield receiver


def received(manager: socket.socket, *, until: str) -> list[str]:
    """The messages up to one that begins with `until`, without the watchdog's."""
    messages: list[str] = []
    while not messages or not messages[-1].startswith(until):
        message = manager.recv(8192).decode()
        if message != "WATCHDOG=1":
            messages.append(message)
    return messages


def environment(manager: socket.socket, watchdog_s: float | None = None) -> dict[str, str]:
    environ = {"NOTIFY_SOCKET": manager.getsockname()}
    return environ if watchdog_s is None else environ | {"WATCHDOG_USEC": str(round(watchdog_s * 1_000_000))}


def test_the_service_manager_is_told_of_start_reload_and_end(
    ideal_lab: IdealNat64Lab, manager: socket.socket
) -> None:
    with daemon_in(ideal_lab, "serve", environment(manager), drain_timeout_s=2) as daemon:
        (ready,) = received(manager, until="READY=1")
        assert ready.startswith("READY=1\nSTATUS=prefix 2001:db8:64::/96")
        daemon.conf.write_text(BAD_CONF)
        daemon.process.send_signal(signal.SIGHUP)
        reloading, ready_again = received(manager, until="READY=1")
        assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert ready_again == ready
        daemon.conf.write_text(f"nat64_prefix = {OTHER_PREFIX}\n")
        daemon.run("reload")
        reloading, ready = received(manager, until="READY=1")
        assert reloading.startswith("RELOADING=1\n")
        assert f"STATUS=prefix {OTHER_PREFIX}" in ready
        daemon.stop()
        (stopping,) = received(manager, until="STOPPING=1")
        seconds = int(stopping.removeprefix("STOPPING=1\nEXTEND_TIMEOUT_USEC=")) / 1_000_000
        assert 2 < seconds < 30


def test_ready_is_told_only_when_connections_are_accepted(
    ideal_lab: IdealNat64Lab, manager: socket.socket
) -> None:
    daemon = Daemon(ideal_lab.client, ideal_lab.directory, env=environment(manager))
    daemon.start()
    received(manager, until="READY=1")
    with dial(ideal_lab.client, Port.ECHO) as sock:
        echo(sock)
    with daemon:
        pass


def pings(manager: socket.socket, within_s: float) -> int:
    """How many come in that time."""
    deadline = time.monotonic() + within_s
    count = 0
    while (left_s := deadline - time.monotonic()) > 0:
        manager.settimeout(left_s)
        with contextlib.suppress(TimeoutError):
            count += manager.recv(8192) == b"WATCHDOG=1"
    manager.settimeout(5)
    return count


def test_the_watchdog_is_fed_while_every_worker_lives(ideal_lab: IdealNat64Lab, manager: socket.socket) -> None:
    with daemon_in(ideal_lab, "serve", environment(manager, watchdog_s=0.4), workers=2) as daemon:
        assert pings(manager, within_s=1.0) >= 3
        hung = daemon.worker_pids()[1]
        os.kill(hung, signal.SIGSTOP)
        pings(manager, within_s=0.45)  # what was under way
        assert pings(manager, within_s=1.0) == 0
        os.kill(hung, signal.SIGCONT)
        assert pings(manager, within_s=1.0) >= 2
        os.kill(hung, signal.SIGKILL)
        wait_until(lambda: hung not in daemon.worker_pids(), "the worker is replaced")
        assert pings(manager, within_s=1.0) >= 2


def test_the_watchdog_is_fed_while_connections_drain(ideal_lab: IdealNat64Lab, manager: socket.socket) -> None:
    with daemon_in(ideal_lab, "up", environment(manager, watchdog_s=0.4), workers=2) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
            daemon.process.send_signal(signal.SIGTERM)
            received(manager, until="STOPPING=1")
            pings(manager, within_s=0.45)
            assert pings(manager, within_s=1.0) >= 3
        daemon.expect_end(0)


def test_workers_do_not_speak_to_the_service_manager(ideal_lab: IdealNat64Lab, manager: socket.socket) -> None:
    with daemon_in(ideal_lab, "serve", environment(manager, watchdog_s=30)) as daemon:
        for pid in daemon.worker_pids():
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in environ
            assert b"WATCHDOG" not in environ
