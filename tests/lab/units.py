"""The shipped units, run as systemd runs them: their own commands, in its order, with its protocol.

    with Units(Daemon(lab.client, lab.directory, command="serve", leaves_kernel_as_found=False)) as units:
        units.watcher.wait_for_output("restored$")

Owns what systemd would do: READY=1 awaited, BindsTo=, ExecReload=, ExecStop=, ExecStopPost=, Restart= (see
service_enter_running() and service_enter_signal() in systemd/src/core/service.c for which of them follows an end).
Refuses to own the sandbox, but for the capabilities of the setup unit, and the daemon itself (`tests.lab.daemon`).
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.daemon import PROGRAM, Daemon, snapshot
from tests.lab.namespace import Process

UNITS = Path(__file__).parents[2] / "systemd"
DROP_INS = Path(__file__).parents[2] / "etc/examples/service"
DAEMON = "tnat64d.service"
SETUP = "tnat64d-setup.service"
INSTALLED = "/usr/local/bin/tnat64d"
TIMEOUT_S = 10.0

_WITH_CONF = ("setup", "serve", "check")


def values(unit: str | Path, key: str) -> list[str]:
    """The value of every `key=` line of a unit (or a drop-in, by its path), in order."""
    lines = [line for line in (UNITS / unit).read_text().splitlines() if line[:1] not in ("#", "")]
    return [value for name, _, value in (line.partition("=") for line in lines) if name == key]


def words(unit: str | Path, key: str) -> list[str]:
    """The words of all of them."""
    return " ".join(values(unit, key)).split()


class Units:
    """tnat64d.service and tnat64d-setup.service, from `systemctl start` to `systemctl stop`."""

    def __init__(self, daemon: Daemon, *, drop_in: str | None = None) -> None:
        """`daemon`: of `serve`, not started; `drop_in`: the name of an example, for the setup unit."""
        self.daemon = daemon
        self.namespace = daemon.namespace
        self.before = snapshot(self.namespace)
        self._capabilities = words(SETUP, "CapabilityBoundingSet")
        if drop_in is not None:
            self._capabilities += words(DROP_INS / drop_in, "CapabilityBoundingSet")
        assert words(DAEMON, "ExecStart") == [INSTALLED, "serve"]
        assert "serve" in daemon.command
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.settimeout(TIMEOUT_S)
        self._manager.bind(str(self.daemon.directory / "notify"))
        self._watcher: Process | None = None

    @property
    def watcher(self) -> Process:
        """The main process of the setup unit."""
        assert self._watcher is not None, "not started"
        return self._watcher

    def __enter__(self) -> Self:
        self.daemon.__enter__()
        self.start_setup()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.watcher.returncode is None:
            self.stop()
        elif kind is not None:
            print(self.daemon.log, self.watcher.stderr)  # pytest shows them with the failure
            self.watcher.terminate()
            self.daemon.__exit__(kind, error, trace)
        self._manager.close()
        assert "Traceback" not in self.watcher.stderr, self.watcher.stderr

    def start_setup(self) -> None:
        """`systemctl start tnat64d-setup`."""
        (command,) = values(SETUP, "ExecStart")
        environment = {"NOTIFY_SOCKET": self._manager.getsockname(), "TNAT64_DEBUG": "1"}
        self._watcher = self.namespace.start(self._argv(command), env=environment)
        self.wait_for_message("READY=1")

    def wait_for_message(self, line: str) -> list[str]:
        """The lines of the next message to the service manager that has one which matches `line`."""
        while True:
            message = self._manager.recv(8192).decode().split("\n")
            if any(re.fullmatch(line, each) for each in message):
                return message

    def reload_setup(self) -> bool:
        """`systemctl reload tnat64d-setup`; whether it succeeded."""
        return all(self._run(command).returncode == 0 for command in values(SETUP, "ExecReload"))

    def stop(self, exit_code: int = 0) -> None:
        """`systemctl stop tnat64d`, or what follows the end of the daemon by itself, with `exit_code`."""
        for command in values(SETUP, "ExecStop"):
            assert command.startswith("-")
            self._run(command.removeprefix("-"))
        self.watcher.send_signal(signal.SIGTERM)
        assert self.watcher.wait(TIMEOUT_S) == 0, self.watcher.stderr
        self.clean_up()
        assert self.daemon.process.wait(TIMEOUT_S) == exit_code, self.daemon.log

    def clean_up(self) -> None:
        """What follows any end of the main process."""
        for command in values(SETUP, "ExecStopPost"):
            done = self._run(command)
            assert done.returncode == 0, done.stderr

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        return self.namespace.run(self._argv(command), check=False)

    def _argv(self, command: str) -> list[str]:
        """`command` with the capabilities of the unit, and the files of this test."""
        argv = command.replace("$MAINPID", str(self._watcher and self._watcher.pid)).split()
        if argv[0] == INSTALLED:
            conf = ["-f", str(self.daemon.conf)] if argv[1] in _WITH_CONF else []
            argv = [*PROGRAM, *argv[1:], *conf, "-c", str(self.daemon.settings)]
        kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in self._capabilities)
        return ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--", *argv]
