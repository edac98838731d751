"""A daemon that is killed in the middle of its work leaves a host that works as it did without it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Namespace, Port, wait_until
from tests.lab.daemon import Daemon, Tables, dial, echo, is_alive, seconds_of, snapshot

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")

DOWNLOADS = 100
NEVER_ENDING = b"1000000000000\n"
POLICY_RULES = {
    "+32768:\tfrom all fwmark 0x6464/0xffff ipproto tcp unreachable proto 64",
    "+32769:\tfrom all iif lo ipproto tcp lookup 6464 proto 64",
}
STATIC: dict[str, Tables] = {
    "nftables": {"rules": {"backend": "nftables"}},
    "iptables-nft": {"rules": {"backend": "iptables", "iptables": "iptables-nft"}},
    "iptables-legacy": {"rules": {"backend": "iptables", "iptables": "iptables-legacy"}},
}
FOREIGN = """
add table ip theirs
add chain ip theirs output { type nat hook output priority -100; }
add rule ip theirs output tcp dport 25 redirect to :2525
"""


@contextlib.contextmanager
def downloads(host: Namespace) -> Iterator[list[socket.socket]]:
    """That many under way, each with bytes received."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(dial(host, Port.SOURCE)) for _ in range(DOWNLOADS)]
        for sock in socks:
            sock.sendall(NEVER_ENDING)
        for sock in socks:
            assert sock.recv(1)
        yield socks


def read_to_the_end(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


def assert_all_are_reset(socks: list[socket.socket]) -> None:
    started = time.monotonic()
    for sock in socks:
        with pytest.raises(ConnectionResetError):
            read_to_the_end(sock)
    assert seconds_of(started) < 5


def assert_connect_fails_at_once(host: Namespace, code: int) -> None:
    for _ in range(10):
        started = time.monotonic()
        with host.socket() as sock:
            sock.settimeout(5)
            assert sock.connect_ex((SERVER_V4, 80)) == code
        assert seconds_of(started) < 0.05


def difference(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The lines that came (+) and went (-)."""
    lines: set[str] = set()
    for command, text in before.items():
        found = difflib.unified_diff(text.splitlines(), after[command].splitlines(), lineterm="", n=0)
        lines |= {line for line in found if line[:3] not in ("+++", "---", "@@ ")}
    return lines


def kill(daemon: Daemon, whom: str) -> None:
    """SIGKILL, and wait until nothing of the daemon is left."""
    workers = daemon.children()
    victims = (daemon.process.pid, *workers) if whom == "all" else (daemon.process.pid,)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    daemon.process.wait()
    wait_until(lambda: not any(map(is_alive, workers)), "the workers end")


def daemon_in(lab: IdealNat64Lab, command: str = "up", settings: Tables | None = None) -> Daemon:
    tables = {**(settings or {}), "proxy": {"workers": 2, **(settings or {}).get("proxy", {})}}
    return Daemon(lab.client, lab.directory, command=command, settings=tables, leaves_kernel_as_found=False)


@pytest.mark.parametrize(
    ("command", "connect"), [("up", "plain"), ("serve --own-rules", "plain"), ("up", "honest")]
)
def test_owned_rules_go_with_the_daemon_and_downloads_are_reset(
    ideal_lab: IdealNat64Lab, command: str, connect: str
) -> None:
    client = ideal_lab.client
    client.run(["nft", "-f", "-"], input=FOREIGN)
    name, *arguments = command.split()
    daemon = Daemon(
        client,
        ideal_lab.directory,
        command=name,
        arguments=tuple(arguments),
        settings={"proxy": {"workers": 2, "connect": connect}},
        leaves_kernel_as_found=False,
    )
    with daemon, downloads(client) as socks:
        assert len(difference(daemon.before, snapshot(client))) > 10
        kill(daemon, "the supervisor")
        assert_connect_fails_at_once(client, errno.ENETUNREACH)
        assert difference(daemon.before, snapshot(client)) == POLICY_RULES
        assert_all_are_reset(socks)
    assert daemon.run("teardown").returncode == 0
    assert snapshot(client) == daemon.before


def test_connections_that_were_idle_end_although_every_process_was_killed(ideal_lab: IdealNat64Lab) -> None:
    """What still had bytes to send cannot: the address has gone with the last process."""
    with daemon_in(ideal_lab) as daemon, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(dial(ideal_lab.client, Port.ECHO)) for _ in range(DOWNLOADS)]
        for sock in socks:
            echo(sock)
        kill(daemon, "all")
        assert_connect_fails_at_once(ideal_lab.client, errno.ENETUNREACH)
        assert difference(daemon.before, snapshot(ideal_lab.client)) == POLICY_RULES
        for sock in socks:
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connections_are_above_the_socket_in_which_the_rules_are_in_flight(
    ideal_lab: IdealNat64Lab, loop: str
) -> None:
    """A process that is killed closes the highest descriptor first."""
    with daemon_in(ideal_lab, settings={"proxy": {"loop": loop}}) as daemon, contextlib.ExitStack() as stack:
        before = {pid: set(os.listdir(f"/proc/{pid}/fd")) for pid in daemon.children()}
        for _ in range(8):
            echo(stack.enter_context(dial(ideal_lab.client, Port.ECHO)))
        for pid, known in before.items():
            holder = max(int(info.name) for info in Path(f"/proc/{pid}/fdinfo").iterdir() if holds_two(info))
            new = set(os.listdir(f"/proc/{pid}/fd")) - known
            assert all(int(fd) > holder for fd in new), (holder, new)
        assert daemon.total("active") == 8


def holds_two(fdinfo: Path) -> bool:
    """Whether two descriptors wait in the socket (unix_show_fdinfo() in net/unix/af_unix.c)."""
    return bool(re.search(r"^scm_fds: 2$", fdinfo.read_text().replace("\t", " "), re.MULTILINE))


def test_after_a_kill_the_next_start_begins_as_new_and_leaves_nothing(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as first:
        kill(first, "the supervisor")
    with daemon_in(ideal_lab) as second, dial(ideal_lab.client, Port.ECHO) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        sock.close()
        second.stop()
    assert snapshot(ideal_lab.client) == first.before


@pytest.mark.parametrize("connect", ["plain", "honest"])
@pytest.mark.parametrize("backend", STATIC)
def test_static_rules_that_a_killed_daemon_leaves_are_what_teardown_removes(
    ideal_lab: IdealNat64Lab, backend: str, connect: str
) -> None:
    client = ideal_lab.client
    client.run(["nft", "-f", "-"], input=FOREIGN)
    daemon = daemon_in(ideal_lab, "serve", {**STATIC[backend], "proxy": {"connect": connect}})
    before = snapshot(client)
    assert daemon.run("setup", "-f", str(daemon.conf)).returncode == 0
    stands = snapshot(client)
    with daemon, downloads(client) as socks:
        kill(daemon, "the supervisor")
        assert_connect_fails_at_once(client, errno.ECONNREFUSED)
        assert snapshot(client) == stands
        assert_all_are_reset(socks)
    assert daemon.run("teardown").returncode == 0
    assert snapshot(client) == before


def test_a_worker_that_is_killed_takes_no_rules_with_it(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        stands = snapshot(ideal_lab.client)
        victim = daemon.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in daemon.worker_pids(), "the worker is replaced")
        assert snapshot(ideal_lab.client) == stands
        with dial(ideal_lab.client, Port.ECHO) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
