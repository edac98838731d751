"""Notifier against a real datagram socket that stands for the service manager."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tnat64d.kernel.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A NOTIFY_SOCKET value of either kind."""
    return f"@tnat64d-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")


@pytest.fixture
def manager(address: str) -> Iterator[socket.socket]:
    """The manager's end, bound to `address`."""
    with bound(address) as receiver:
        yield receiver


@pytest.fixture
def notifier(address: str, manager: socket.socket) -> Iterator[Notifier]:
    """The daemon's end."""
    with_manager = Notifier.from_environment({"NOTIFY_SOCKET": address})
    yield with_manager
    with_manager.close()


def bound(address: str) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.settimeout(5)
    receiver.bind("\0" + address[1:] if address.startswith("@") else address)
    return receiver


def received(manager: socket.socket) -> list[str]:
    """The lines of the next message."""
    return manager.recv(8192).decode().split("\n")


def test_readiness_carries_the_status(notifier: Notifier, manager: socket.socket) -> None:
    assert notifier.ready("accepting on port 6464")
    assert received(manager) == ["READY=1", "STATUS=accepting on port 6464"]


def test_a_reload_carries_the_monotonic_time(notifier: Notifier, manager: socket.socket) -> None:
    before_us = time.monotonic_ns() // 1000
    assert notifier.reloading()
    after_us = time.monotonic_ns() // 1000
    head, stamp = received(manager)
    assert head == "RELOADING=1"
    assert before_us <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= after_us


def test_stopping_asks_for_the_time_it_needs(notifier: Notifier, manager: socket.socket) -> None:
    assert notifier.stopping()
    assert received(manager) == ["STOPPING=1"]
    assert notifier.stopping(within_s=2.5)
    assert received(manager) == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=2500000"]


def test_the_watchdog_message(notifier: Notifier, manager: socket.socket) -> None:
    assert notifier.watchdog()
    assert received(manager) == ["WATCHDOG=1"]


@pytest.mark.parametrize("text", ["a\nREADY=1", "a\rREADY=1", "a\u2028READY=1", "a\0READY=1", "a\udcffREADY=1"])
def test_a_status_cannot_forge_another_line(notifier: Notifier, manager: socket.socket, text: str) -> None:
    assert notifier.status(text)
    assert received(manager) == ["STATUS=a READY=1"]


def test_a_long_status_is_cut_to_what_a_manager_reads(notifier: Notifier, manager: socket.socket) -> None:
    assert notifier.status("\N{GRINNING FACE}" * 10_000)
    assert 1000 < len(manager.recv(8192)) < 4096


def test_a_full_socket_loses_the_message_and_nothing_else(notifier: Notifier, manager: socket.socket) -> None:
    sent = 0
    while notifier.watchdog():
        sent += 1
        assert sent < 100_000
    assert sent > 0
    received(manager)
    assert notifier.watchdog()


def test_a_manager_that_went_away_and_came_back_is_found_again(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert not notifier.ready("nobody has bound the path")
    with bound(address):
        assert notifier.watchdog()
    assert not notifier.watchdog()
    os.unlink(address)
    assert not notifier.watchdog()
    with bound(address) as manager:
        assert notifier.watchdog()
        assert received(manager) == ["WATCHDOG=1"]
    notifier.close()


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:9999"])
def test_without_a_usable_socket_every_message_does_nothing(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    assert notifier.watchdog_interval_s is None
    assert not any(
        [
            notifier.ready("x"),
            notifier.status("x"),
            notifier.reloading(),
            notifier.stopping(),
            notifier.watchdog(),
        ]
    )
    notifier.close()


def test_a_path_that_is_too_long_does_nothing() -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/" + "x" * 200})
    assert not notifier.ready("x")
    notifier.close()


def test_a_closed_notifier_does_nothing(notifier: Notifier) -> None:
    notifier.close()
    assert not notifier.watchdog()


@pytest.mark.parametrize(
    ("watchdog", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_interval_is_half_the_timeout_of_this_process(
    watchdog: dict[str, str], interval_s: float | None
) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "@tnat64d-nobody", **watchdog})
    assert notifier.watchdog_interval_s == interval_s
    notifier.close()


def test_children_inherit_none_of_the_variables() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Notifier.from_environment(environ).close()
    assert environ == {"PATH": "/bin"}
