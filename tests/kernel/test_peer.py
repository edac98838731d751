"""Who is at the other end of a unix socket."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
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
