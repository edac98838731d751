"""Who may have a command carried, and what is lent to a daemon without root. The commands: tests/test_exec.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.daemon.lingering import MAKE_LINGERING_AS_NOBODY
from tnat64d.core import settings
from tnat64d.core.settings import Exec, Scope, Settings
from tnat64d.daemon.admission import Admission
from tnat64d.daemon.control import Question
from tnat64d.errors import ConfigurationError, PrivilegeError, Tnat64Error, UnavailableError
from tnat64d.kernel import cgroup

ALLOWED = Settings(scope=Scope(exec=True), exec=Exec(users=("1000",), groups=("50",)))


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """A connection whose peer is this process."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def question(connection: socket.socket, uid: int, gid: int = 1000, group: str | None = None) -> Question:
    arguments: Mapping[str, Any] = {"group": group or cgroup.of_exec()}
    return Question(os.getpid(), uid, gid, arguments, connection)


def test_root_goes_by_itself(connection: socket.socket) -> None:
    assert Admission(ALLOWED, "t.toml").admit(question(connection, 0)) == {"enter": True}


@pytest.mark.parametrize(("uid", "gid"), [(1000, 1), (1, 50)])
def test_who_is_allowed_fails_only_for_want_of_the_group(connection: socket.socket, uid: int, gid: int) -> None:
    with pytest.raises(UnavailableError, match="cannot be entered"):
        Admission(ALLOWED, "t.toml").admit(question(connection, uid, gid))


def test_others_are_refused(connection: socket.socket) -> None:
    with pytest.raises(PrivilegeError, match=r"user 1001 may not use exec: exec\.users or exec\.groups"):
        Admission(ALLOWED, "t.toml").admit(question(connection, 1001, 51))


def test_a_group_of_another_network_namespace_is_refused(connection: socket.socket) -> None:
    with pytest.raises(UnavailableError, match="another network namespace"):
        Admission(ALLOWED, "t.toml").admit(question(connection, 0, group="tnat64d.exec-1"))


def test_without_exec_in_the_scope_it_depends_on_whether_everybody_is_covered(connection: socket.socket) -> None:
    for scope in (Scope(), Scope(not_ports=("25",), networks=("203.0.113.0/24",))):
        assert Admission(Settings(scope=scope), "t.toml").admit(question(connection, 1001)) == {"enter": False}
    for scope in (Scope(users=("7",)), Scope(not_groups=("7",)), Scope(not_units=("a.service",))):
        with pytest.raises(Tnat64Error, match=r"set scope\.exec = true"):
            Admission(Settings(scope=scope), "t.toml").admit(question(connection, 0))


def test_a_name_that_does_not_exist_is_told_with_its_table() -> None:
    wrong = settings.parse('[exec]\ngroups = ["nosuchgroup"]\n', "t.toml")
    with pytest.raises(ConfigurationError, match=r"^t\.toml: exec: there is no group 'nosuchgroup' on this host$"):
        Admission(wrong, "t.toml")


SEND = """
import os, socket, sys
if sys.argv[2] == "nobody":
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect("\\0" + sys.argv[1])
socket.send_fds(sock, [b"d"], [0])
"""


@pytest.mark.netns
def test_a_door_is_taken_from_root_only_and_none_is_lost() -> None:
    admission = Admission(ALLOWED, "t.toml")
    admission.start()
    name = admission.door()["name"]
    before = len(os.listdir("/proc/self/fd"))
    for user, kept in (("nobody", 0), ("root", 1), ("root", 1), ("nobody", 1)):
        subprocess.run([sys.executable, "-c", SEND, name, user], check=True, timeout=10)
        admission.receive()
        assert len(os.listdir("/proc/self/fd")) == before + kept, user
    for descriptors in ([], [0, 1], [0, 1, 2]):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"\0{name}")
            socket.send_fds(sock, [b"d"], descriptors)
            admission.receive()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    admission.receive()  # there is nothing more
    admission.stop()
    assert len(os.listdir("/proc/self/fd")) == before - 1


LINGER = (
    MAKE_LINGERING_AS_NOBODY
    + """
sock = socket.socket(socket.AF_UNIX)
sock.connect("\\0" + sys.argv[1])
socket.send_fds(sock, [b"d"], [lingering.fileno()])
os.close(lingering.detach())
print("sent", flush=True)
sys.stdin.read()
"""
)


@pytest.mark.netns
@pytest.mark.parametrize("is_received", [True, False])
def test_what_a_stranger_sends_to_the_door_holds_nobody_up(is_received: bool) -> None:
    admission = Admission(ALLOWED, "t.toml")
    admission.start()
    command = [sys.executable, "-c", LINGER, admission.door()["name"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sent\n"
        began = time.monotonic()
        if is_received:
            admission.receive()
        admission.stop()
        assert time.monotonic() - began < 2
        process.communicate()
