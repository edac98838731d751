"""tnat64d in a lab's namespace, and the kernel state that it must leave as it found it.

    with Daemon(lab.client, lab.directory) as daemon:
        dial(lab.client, Port.ECHO).sendall(b"hello")
        daemon.wait_for_log("via NAT64")

Owns the command's files, its life, and the comparison of before and after. Every output is searched for
tracebacks: none is ever meant for a user.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.namespace import LabError, Namespace, Process, wait_until
from tests.lab.nat64 import PREFIX, SERVER_V4
from tnat64d.daemon import control

CONF = f"nat64_prefix = {PREFIX.removesuffix('/96')}\n"
Tables = Mapping[str, Mapping[str, object]]

PROGRAM = (sys.executable, "-m", "tnat64d")
_UNSET = {"TNAT64_CONF_FILE": "", "TNAT64_DEBUG": "1", "TNAT64_DEBUG_FILE": ""}
_numbers = itertools.count()


class Daemon:
    """`tnat64d up` or `serve`, from start to stop, with files of its own."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        *,
        command: str = "up",
        conf: str = CONF,
        settings: Tables | None = None,
        env: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        program: tuple[str, ...] = PROGRAM,
        leaves_kernel_as_found: bool = True,
    ) -> None:
        """`settings`: the tables of tnat64d.toml; unless they say otherwise, the control socket is set here, and
        there is one worker, which is ready sooner than several.

        `leaves_kernel_as_found`: False where the test itself changes the network meanwhile.
        """
        self.namespace = namespace
        self.directory = directory / f"daemon-{next(_numbers)}"
        self.directory.mkdir()
        self.conf = self.directory / "tnat64.conf"
        self.settings = self.directory / "tnat64d.toml"
        self._workers = (settings or {}).get("proxy", {}).get("workers", 1)
        tables = self.write_settings(settings or {})
        self.control_socket = str(tables["control"]["socket"])
        self.conf.write_text(conf)
        self.before: dict[str, str] = {}
        self.command = (*program, command, "-f", str(self.conf), "-c", str(self.settings), *arguments)
        self._env = {**_UNSET, **(env or {})}
        self._leaves_kernel_as_found = leaves_kernel_as_found
        self._process: Process | None = None

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        self.wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.returncode is not None:
            return
        if kind is None:
            self.stop()
        else:
            print(self.process.stderr)  # pytest shows it with the failure
            self.process.terminate(timeout_s=2.0)

    @property
    def process(self) -> Process:
        """The supervisor."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def log(self) -> str:
        """All that it has written so far."""
        return self.process.stderr

    def write_settings(self, settings: Tables) -> Tables:
        """See `__init__`, but for the number of workers, which stays; the tables as written."""
        tables = {"control": {"socket": str(self.directory / "control.sock")}, "proxy": {}, **settings}
        tables["proxy"] = {"workers": self._workers, **tables["proxy"]}
        self.settings.write_text(as_toml(tables))
        return tables

    def start(self) -> None:
        """Take down what the kernel looks like, start, and return at once."""
        self.before = snapshot(self.namespace)
        self._process = self.namespace.start(self.command, env=self._env)

    def wait_until_ready(self) -> None:
        """Raises LabError, with the log, if it ends before."""
        self.process.wait_for_output(r"\bready: ")

    def wait_for_log(self, pattern: str, timeout_s: float = 10.0) -> re.Match[str]:
        """See `Process.wait_for_output`."""
        return self.process.wait_for_output(pattern, timeout_s)

    def status(self) -> dict[str, Any]:
        """What `tnat64d status --json` prints."""
        return control.ask(self.control_socket, "status", timeout_s=5.0)

    def total(self, counter: str) -> int:
        """One of the counters, summed over the workers."""
        count: int = self.status()["total"][counter]
        return count

    def wait_for_total(self, counter: str, value: int) -> None:
        """Workers count a little after the client has seen what is counted."""
        wait_until(lambda: self.total(counter) == value, f"{counter} is {value}", timeout_s=5.0)

    def worker_pids(self) -> list[int]:
        """By worker number."""
        return [worker["pid"] for worker in self.status()["workers"]]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command with this daemon's settings: `run("status", "--json")`."""
        command, *options = arguments
        return run_cli(self.namespace, command, "-c", str(self.settings), *options)

    def stop(self, number: signal.Signals = signal.SIGTERM, exit_code: int = 0) -> None:
        """End it, and require that it leaves nothing: no process, no file, no kernel state, no traceback."""
        children = self.children()
        self.process.send_signal(number)
        self.expect_end(exit_code, children)

    def expect_end(self, exit_code: int, children: tuple[int, ...] = (), timeout_s: float = 10.0) -> None:
        """Wait for an end that has been asked for; requires what `stop` requires."""
        assert self.process.wait(timeout_s) == exit_code, self.log
        assert "Traceback" not in self.log, self.log
        wait_until(lambda: not any(map(is_alive, children)), f"{children} end")
        assert not Path(self.control_socket).exists()
        if self._leaves_kernel_as_found:
            assert snapshot(self.namespace) == self.before

    def children(self) -> tuple[int, ...]:
        """The worker processes, ready or not."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return tuple(map(int, path.read_text().split()))


class Service:
    """A daemon and its rules: owned (`up`), or static (`setup`, `serve`, and `teardown` at the end)."""

    def __init__(
        self, namespace: Namespace, directory: Path, *, settings: Tables | None = None, is_static: bool = True
    ) -> None:
        self._is_static = is_static
        self._before = snapshot(namespace)
        self.daemon = Daemon(namespace, directory, command="serve" if is_static else "up", settings=settings)

    def __enter__(self) -> Self:
        if self._is_static:
            done = self.daemon.run("setup", "-f", str(self.daemon.conf))
            assert done.returncode == 0, done.stderr
        self.daemon.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.daemon.__exit__(kind, error, trace)
        if self._is_static:
            done = self.daemon.run("teardown")
            assert done.returncode == 0, done.stderr
        assert snapshot(self.daemon.namespace) == self._before


def run_cli(
    namespace: Namespace,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    program: tuple[str, ...] = PROGRAM,
) -> subprocess.CompletedProcess[str]:
    """Run `tnat64d ARGUMENTS` to its end, whatever its exit code. A traceback is an error."""
    done = namespace.run([*program, *arguments], check=False, env={**_UNSET, **(env or {})})
    if "Traceback" in done.stdout + done.stderr:
        raise LabError(f"tnat64d {' '.join(arguments)} ended with a traceback:\n{done.stdout}{done.stderr}")
    return done


def dial(namespace: Namespace, port: int, address: str = SERVER_V4, timeout_s: float = 5.0) -> socket.socket:
    """A connection as an IPv4-only program makes it; every wait on it ends after `timeout_s`."""
    sock = namespace.socket()
    try:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def echo(sock: socket.socket, message: bytes = b"are you there?") -> None:
    """Require that the ECHO or BANNER server at the other end of `sock` sends `message` back."""
    sock.sendall(message)
    answer = b""
    while len(answer) < len(message):
        chunk = sock.recv(65536)
        assert chunk, "the connection ended"
        answer += chunk
    assert answer == message


def expect_refused(namespace: Namespace, port: int, address: str = SERVER_V4) -> None:
    """Require that a connection is refused, or else reset at once."""
    with contextlib.suppress(ConnectionRefusedError):
        expect_reset(namespace, port, address, timeout_s=1.0)


def expect_reset(namespace: Namespace, port: int, address: str = SERVER_V4, timeout_s: float = 5.0) -> None:
    """Require that a connection ends with a reset, neither with a FIN nor with silence.

    The reset may come before connect() has returned.
    """
    try:
        with dial(namespace, port, address, timeout_s) as sock:
            received = sock.recv(1)
    except ConnectionResetError:
        return
    raise AssertionError(f"no reset, but {received!r}")


def snapshot(namespace: Namespace) -> dict[str, str]:
    """All that tnat64d could have changed in a network namespace, by command, without what changes by itself."""
    shown = {
        command: namespace.run(command.split()).stdout
        for command in (
            "iptables-nft-save",
            "iptables-legacy-save",
            "nft list ruleset",
            "ip rule",
            "ip -6 rule",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "ip -o address",
        )
    }
    # Tables are shown in the order of their making.
    shown["nft list ruleset"] = "".join(
        sorted(re.split(r"^(?=table )", shown["nft list ruleset"], flags=re.MULTILINE))
    )
    shown["iptables-legacy-save"] = _without_untouched_tables(shown["iptables-legacy-save"])
    return {command: _without_noise(text) for command, text in shown.items()}


_NOISE = re.compile(
    r"^#.*|^.*\b(fe80::|ff00::).*|\[\d+:\d+\]|counter packets \d+ bytes \d+|(valid|preferred)_lft \S+|expires \S+",
    re.MULTILINE,
)


def _without_noise(text: str) -> str:
    """Without comments (they have the time), counters, lifetimes, and link-local addresses, which come late."""
    lines = (line.strip() for line in _NOISE.sub("", text).splitlines())
    return "\n".join(line for line in lines if line)


def _without_untouched_tables(text: str) -> str:
    """A table of iptables-legacy stays once it was used; empty and accepting, it is as good as none."""
    tables = re.findall(r"^\*.*?^COMMIT\n", text, re.MULTILINE | re.DOTALL)
    return "".join(table for table in tables if re.search(r"^-A|^:\S+ (?!ACCEPT)", table, re.MULTILINE))


def as_toml(tables: Tables) -> str:
    """Texts, numbers and truth values are written in TOML as in JSON."""
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "".join(f"{line}\n" for line in lines)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not only waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def iptables_after(directory: Path, script: str) -> str:
    """An iptables for `rules.iptables` whose -restore runs `script` before the real one has its turn.

    bash, for dash unblocks the signals that its parent had blocked.
    """
    program = directory / "iptables-after"
    for suffix, first in (("save", ""), ("restore", script)):
        path = Path(f"{program}-{suffix}")
        path.write_text(f'#!/bin/bash\n{first}\nexec iptables-nft-{suffix} "$@"\n')
        path.chmod(0o755)
    return str(program)


def seconds_of(started: float) -> float:
    """How long ago `time.monotonic()` gave `started`."""
    return time.monotonic() - started
