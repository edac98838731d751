"""One network namespace: programs, sockets and calls inside it.

Owns entering a namespace and the processes started there. Making, wiring and removing namespaces is `lab`'s.

Programs enter by nsenter(1), which replaces itself by the program: `Process.pid` is the program's own pid, and
unlike `ip netns exec` the mounts stay as they are, so that /sys/fs/cgroup remains visible. Calls enter by setns(2)
in a thread of their own; a socket belongs for life to the namespace it was made in, whoever uses it later.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

RUN_DIRECTORY = Path("/run/netns")  # where ip-netns(8) keeps the names
CLONE_NEWNET = 0x40000000  # linux/sched.h
POLL_INTERVAL_S = 0.005

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """Something in the lab did not do what it must; the message carries the program's own words."""


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = 10.0) -> T:
    """Poll `condition` until it is true and return its value.

    Raises LabError naming `what` when it is still false after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout_s} s")
        time.sleep(POLL_INTERVAL_S)
    return value


class Process:
    """A program running in a namespace, its output kept in two files."""

    def __init__(self, argv: Sequence[str], popen: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.argv = tuple(argv)
        self.stdout_path = out
        self.stderr_path = err
        self._popen = popen

    @property
    def pid(self) -> int:
        """The program's own pid, not that of a wrapper."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, -n after signal n, None while it runs."""
        return self._popen.poll()

    @property
    def stdout(self) -> str:
        """All it has written to standard output so far."""
        return self.stdout_path.read_text(errors="backslashreplace")

    @property
    def stderr(self) -> str:
        """All it has written to standard error so far."""
        return self.stderr_path.read_text(errors="backslashreplace")

    def wait_for_output(self, pattern: str, timeout_s: float = 10.0) -> re.Match[str]:
        """Wait until `pattern` (re, multiline) occurs in standard output or standard error.

        Raises LabError, with what was written, when the program ends or `timeout_s` passes first.
        """
        expression = re.compile(pattern, re.MULTILINE)

        def seen() -> re.Match[str] | None:
            ended = self.returncode is not None  # asked first: what it wrote before its end still counts
            match = expression.search(self.stdout) or expression.search(self.stderr)
            if match is None and ended:
                raise LabError(f"{self} ended before it wrote {pattern!r}")
            return match

        try:
            match = wait_until(seen, f"{self} writes {pattern!r}", timeout_s)
        except LabError as error:
            raise LabError(f"{error}:\n{self.stdout}{self.stderr}") from None
        assert match is not None
        return match

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, to this process only."""
        self._popen.send_signal(number)

    def wait(self, timeout_s: float = 10.0) -> int:
        """Wait for the end; returns the exit code. Raises LabError after `timeout_s`."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self} still runs after {timeout_s} s:\n{self.stdout}{self.stderr}") from None

    def terminate(self, timeout_s: float = 5.0) -> int:
        """SIGTERM, and SIGKILL when that is not obeyed within `timeout_s`; returns the exit code."""
        self._popen.terminate()
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()

    def __str__(self) -> str:
        return f"{self.argv[0]} (pid {self.pid}, exit code {self.returncode})"


class Namespace:
    """A named network namespace that exists already."""

    def __init__(self, name: str, directory: Path) -> None:
        """`directory`: where the output of started programs is kept."""
        self.name = name
        self.path = RUN_DIRECTORY / name
        self._directory = directory
        self._processes: list[Process] = []

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout_s: float = 30.0,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, as subprocess.run() with captured text output.

        `env` is added to the environment. Raises LabError, with the program's output, when it fails (unless
        `check` is False) or when it takes longer than `timeout_s`.
        """
        command = [str(word) for word in argv]
        try:
            done = subprocess.run(
                self._inside(command),
                stdin=subprocess.DEVNULL if input is None else None,
                input=input,
                env={**os.environ, **(env or {})},
                capture_output=True,
                encoding="utf-8",
                errors="backslashreplace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{command} in {self.name} took longer than {timeout_s} s: {error.stderr!r}") from None
        done.args = command
        if check and done.returncode != 0:
            output = f"{done.stdout}{done.stderr}{input or ''}"
            raise LabError(f"{command} in {self.name} ended with {done.returncode}:\n{output}")
        return done

    def start(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Process:
        """Start a program and return at once; it ends with the lab at the latest. `env`: as for run()."""
        command = [str(word) for word in argv]
        stem = f"{self.name}-{len(self._processes)}-{Path(command[0]).name}"
        out, err = self._directory / f"{stem}.out", self._directory / f"{stem}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            popen = subprocess.Popen(
                self._inside(command),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **(env or {})},
            )
        process = Process(command, popen, out, err)
        self._processes.append(process)
        return process

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call `function(*arguments)` in a thread inside the namespace; returns or raises what it does."""

        def inside() -> T:
            _enter(self.path)
            return function(*arguments)

        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(inside).result()

    def socket(
        self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM, proto: int = 0
    ) -> socket.socket:
        """A socket of this process that lives in the namespace; the caller closes it."""
        return self.call(socket.socket, family, type, proto)

    def write_sysctl(self, key: str, value: int | str) -> None:
        """Set `net.…` as sysctl(8) does; `key` with dots or slashes."""
        path = Path("/proc/sys") / key.replace(".", "/")
        self.call(path.write_text, str(value))

    def close(self) -> None:
        """End every program: those started here by SIGTERM, what remains in the namespace by SIGKILL."""
        for process in self._processes:
            if process.returncode is None:
                process.terminate(timeout_s=1.0)
        kill_all_in(self.path)

    def _inside(self, command: list[str]) -> list[str]:
        program = shutil.which("nsenter") or "nsenter"
        return [program, f"--net={self.path}", "--", *command]


def _enter(path: Path) -> None:
    """Move the calling thread into the network namespace at `path` (setns(2))."""
    with path.open() as file:
        if _libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))


def pids_in(path: Path) -> list[int]:
    """The processes whose main thread is in the network namespace at `path`, without the caller."""
    with contextlib.suppress(FileNotFoundError):
        wanted = path.stat()
        return [pid for pid in _all_pids() if pid != os.getpid() and _is_in(pid, wanted)]
    return []


def kill_all_in(path: Path, timeout_s: float = 5.0) -> None:
    """SIGKILL every process in the namespace at `path`, and wait until each is gone.

    Repeated until none is left, as a process may fork while it is being killed.
    """
    deadline = time.monotonic() + timeout_s
    while pids := pids_in(path):
        for pid in pids:
            _kill_and_wait(pid, path, max(0.0, deadline - time.monotonic()))
        if time.monotonic() > deadline:
            raise LabError(f"processes {pids} in {path} do not end")


def _kill_and_wait(pid: int, path: Path, timeout_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if _is_in(pid, path.stat()):  # the pid may be another process's by now: the handle cannot
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], timeout_s)
        finally:
            os.close(handle)


def _all_pids() -> Iterable[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _is_in(pid: int, wanted: os.stat_result) -> bool:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except OSError:  # it has ended, or is a zombie
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
