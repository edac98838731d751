"""Who is at the other end of a unix socket."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tnat64d.kernel import peer
from tnat64d.kernel.peer import Peer

CONNECT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sys.stdin.read()
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A listener that a child connects to."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        sock.settimeout(10)
        yield sock


def client(listener: socket.socket, *wrapper: str) -> subprocess.Popen[bytes]:
    command = [*wrapper, "/usr/bin/python3", "-Ic", CONNECT, listener.getsockname()]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def test_its_process_and_user_are_told(listener: socket.socket) -> None:
    with client(listener) as process, listener.accept()[0] as connection:
        assert peer.credentials(connection) == Peer(process.pid, os.getuid(), os.getgid())


@pytest.mark.netns("setpriv")
def test_its_supplementary_groups_are_told_up_to_256(listener: socket.socket) -> None:
    for groups, told in (((7, 1, 8), {1, 7, 8}), (range(1, 257), set(range(1, 257))), (range(1, 258), set())):
        numbers = ",".join(map(str, groups))
        with client(listener, "setpriv", f"--groups={numbers}") as process, listener.accept()[0] as connection:
            assert peer.supplementary_groups(connection) == told
            process.communicate()


def test_one_that_has_ended_is_not_running(listener: socket.socket) -> None:
    with client(listener) as process, listener.accept()[0] as connection:
        assert peer.is_running(connection)
        process.communicate()
        assert not peer.is_running(connection)


@contextmanager
def lingering(count: int) -> Iterator[list[int]]:
    """Descriptors of TCP sockets whose close waits for 5 s: what they have sent is not read. Not closed here."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as peers:
        descriptors = []
        for _ in range(count):
            sock = socket.create_connection(listener.getsockname())
            peers.enter_context(listener.accept()[0])
            sock.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sock.send(b"x" * 65536)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
            descriptors.append(sock.detach())
        yield descriptors


@pytest.mark.parametrize("reads", [True, False])
def test_descriptors_that_linger_when_closed_hold_nobody_up(reads: bool) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    ours, theirs = socket.socketpair()
    with ours, theirs, lingering(3) as descriptors:
        socket.send_fds(theirs, [b"x"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)  # not the last one: they are on their way
        began = time.monotonic()
        with peer.without_lingering():
            if reads:
                assert ours.recv(1) == b"x"
            ours.close()
        assert time.monotonic() - began < 1
    assert signal.getsignal(signal.SIGALRM) is handler


def test_a_timer_that_runs_goes_on() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with peer.without_lingering():
            pass
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_descriptors_are_refused_where_linux_can(listener: socket.socket) -> None:
    peer.refuse_descriptors(listener)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        if kernel() < (6, 16):
            socket.send_fds(client, [b"x"], [0])
        else:
            with pytest.raises(PermissionError):
                socket.send_fds(client, [b"x"], [0])


def kernel() -> tuple[int, ...]:
    return tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
