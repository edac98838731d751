"""`tnat64d exec` of programs that want a terminal: a shell with its jobs, and ssh to an IPv4-only server."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import pwd
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Namespace, Nat64Lab, wait_until
from tests.lab.namespace import pids_in
from tests.test_exec import ALLOWED, CONNECT, World, service, world_of

pytestmark = pytest.mark.netns("bash", "ssh", "ssh-keygen", "dropbear", "unshare")

PROMPT = "there$ "


class Terminal:
    """A terminal with a command in its foreground: what is typed there, and what is seen."""

    def __init__(self, world: World, *command: str) -> None:
        self._descriptor, other_end = pty.openpty()
        self.command = subprocess.Popen(
            ["nsenter", f"--net={world.lab.client.path}", "--", *world.launcher, *command],
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "PS1": PROMPT},
        )
        os.close(other_end)
        os.set_blocking(self._descriptor, False)
        self._seen = ""

    def close(self) -> None:
        """End all."""
        self.command.kill()
        self.command.wait(10)
        os.close(self._descriptor)

    def enter(self, line: str) -> None:
        """Type a line."""
        self.press(f"{line}\r".encode())

    def press(self, keys: bytes) -> None:
        """Type without a line's end."""
        os.write(self._descriptor, keys)

    def expect(self, text: str) -> None:
        """Wait until `text` is seen, and forget what came before its end."""

        def is_there() -> bool:
            with contextlib.suppress(BlockingIOError):
                self._seen += os.read(self._descriptor, 65536).decode(errors="replace")
            return text in self._seen

        try:
            wait_until(is_there, f"{text!r} is seen")
        except BaseException:
            print(self._seen)  # pytest shows it with the failure
            raise
        self._seen = self._seen.partition(text)[2]

    def resize(self, rows: int, columns: int) -> None:
        """The kernel sends SIGWINCH to the foreground (ioctl_tty(2))."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def foreground(self) -> str:
        """The name of the program that has the terminal."""
        return Path(f"/proc/{os.tcgetpgrp(self._descriptor)}/comm").read_text().strip()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_shell_has_job_control_and_all_its_children_are_carried(ideal_lab: IdealNat64Lab) -> None:
    with (
        service(ideal_lab, "owned", ALLOWED) as running,
        contextlib.closing(Terminal(world_of(ideal_lab, running), "bash", "--norc", "-i")) as terminal,
    ):
        terminal.expect(PROMPT)
        terminal.enter("sleep 60")
        terminal.expect("sleep 60\r\n")
        wait_until(lambda: terminal.foreground == "sleep", "sleep has the terminal")
        terminal.press(b"\x03")
        terminal.expect(PROMPT)
        terminal.enter("echo code $?")
        terminal.expect("code 130\r\n")
        terminal.enter("sleep 60 & kill %1; wait %1; echo code $?")
        terminal.expect("code 143\r\n")
        terminal.enter("'" + "' '".join(CONNECT) + "'")
        terminal.expect("through\r\n")
        terminal.enter("exit 7")
        assert terminal.command.wait(10) == 7


# dropbear, for its package starts no server on this host.
SERVE = """\
mount --bind "$1" "$2"; shift 2; exec "$@"
"""


@pytest.fixture
def ssh(nat64_lab: Nat64Lab) -> Iterator[tuple[World, list[str]]]:
    """A command that is carried, and the words by which ssh goes to root of the server, which has IPv4 only."""
    home, keys = nat64_lab.directory / "home", nat64_lab.directory / "keys"
    for each in (home, keys, home / ".ssh"):
        each.mkdir(mode=0o700)
    key = keys / "key"
    nat64_lab.client.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    (home / ".ssh/authorized_keys").write_text(Path(f"{key}.pub").read_text())
    server = ["dropbear", "-F", "-E", "-R", "-s", "-p", f"{SERVER_V4}:22", "-P", str(keys / "pid")]
    nat64_lab.server.run(["dropbearkey", "-t", "ed25519", "-f", keys / "host"])
    server += ["-r", str(keys / "host")]
    inside = ["unshare", "--mount", "sh", "-ec", SERVE, "sh", str(home), pwd.getpwuid(0).pw_dir]
    nat64_lab.server.start([*inside, *server]).wait_for_output("Not backgrounding")
    options = {"BatchMode": "yes", "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null"}
    words = ["ssh", "-F", "none", "-i", str(key)]
    words += [f"-o{name}={value}" for name, value in options.items()]
    with service(nat64_lab, "owned", ALLOWED) as running:
        yield world_of(nat64_lab, running), [*words, f"root@{SERVER_V4}"]


def names_in(namespace: Namespace) -> list[str]:
    """Of the programs that run there."""
    found = []
    for pid in pids_in(namespace.path):
        with contextlib.suppress(OSError):  # it has ended
            found.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def test_ssh_passes_input_output_and_the_exit_code(ssh: tuple[World, list[str]]) -> None:
    world, words = ssh
    done = world.run(*words, 'echo "$SSH_CONNECTION"; exit 3')
    assert done.returncode == 3
    source, _, destination, port = done.stdout.split()
    assert (destination, port, IPv4Address(source).is_private) == (SERVER_V4, "22", True)  # tayga's pool
    assert world.run(*words, "true", as_it_is=True).returncode == 255


def test_ssh_at_a_terminal_is_as_without_exec(ssh: tuple[World, list[str]]) -> None:
    world, words = ssh
    terminal = Terminal(world, *words, "-tt", f"exec env PS1='{PROMPT}' sh -i")
    with contextlib.closing(terminal):
        terminal.expect(PROMPT)
        terminal.enter("echo $((6 * 7))")
        terminal.expect("echo $((6 * 7))\r\n42\r\n")
        terminal.enter("sleep 60")
        terminal.expect("sleep 60\r\n")
        wait_until(lambda: "sleep" in names_in(world.lab.server), "sleep runs on the server")
        terminal.press(b"\x03")
        terminal.expect(PROMPT)
        terminal.enter("echo code $?")
        terminal.expect("code 130\r\n")
        terminal.resize(33, 101)
        terminal.enter("until stty size | grep '33 101'; do sleep 0.1; done")
        terminal.expect("\r\n33 101\r\n")
        terminal.enter("exit 7")
        assert terminal.command.wait(10) == 7


def test_ssh_ends_by_a_signal_as_without_exec(ssh: tuple[World, list[str]]) -> None:
    world, words = ssh
    command = world.lab.client.start([*world.launcher, *words, "echo started; exec sleep 60"])
    command.wait_for_output("started")
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 255  # ssh(1): an error occurred
