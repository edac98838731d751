"""`exec`: a command whose connections, and those of all that it starts, are carried.

Owns becoming the command: exit code, signals, terminal and job control are then its own, and nothing is wrapped
around it. Refuses to own who may (`daemon.admission`). What Python has changed of the process is put back.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
from pathlib import Path
from typing import NoReturn

from tnat64d.cli import inputs
from tnat64d.cli.arguments import Commands, command
from tnat64d.errors import NotExecutableError, NotFoundError, NotStartedError, Tnat64Error

_DETAILS = """\
The command takes the place of tnat64d: its exit code, and its end by a signal, are seen as they are. 125 is a
failure of tnat64d itself, 126 a command that cannot be run, 127 one that is not found.
"""


def add_to(commands: Commands) -> None:
    """Add `exec`."""
    run = command(commands, "exec", _exec, "run a command, and all that it starts, through NAT64", _DETAILS)
    run.usage_exit_code = 125
    run.usage = "tnat64d exec [-h] [-c FILE] [--] COMMAND [ARGUMENT ...]"
    inputs.take_settings(run)
    run.add_argument("argv", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _exec(arguments: argparse.Namespace) -> int:
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise NotStartedError("exec needs a command: tnat64d exec [--] COMMAND [ARGUMENT ...]")
    try:
        _enter(inputs.load_settings(arguments.settings).control.socket)
    except Tnat64Error as error:
        raise NotStartedError(str(error)) from None
    _become(argv)


def _enter(control_socket: str) -> None:
    """Get into the group whose connections are carried. Raises Tnat64Error."""
    from tnat64d.daemon import control
    from tnat64d.kernel import cgroup

    group = cgroup.of_exec()
    answer = control.ask(control_socket, "exec", control.CONNECT_TIMEOUT_S, group=group)
    if answer["enter"]:
        door = cgroup.open_door(group)
        cgroup.move(os.getpid(), door)
        os.close(door)


def _become(argv: list[str]) -> NoReturn:
    """Raises NotFoundError, NotExecutableError."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python (Python/pylifecycle.c)
        signal.signal(number, signal.SIG_DFL)
    environment = _environment()
    try:
        os.execvpe(argv[0], argv, environment)
    except FileNotFoundError:
        raise NotFoundError(f"{argv[0]}: no such command") from None
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
        raise NotExecutableError(f"{argv[0]}: cannot be run: {os.strerror(code)}") from None


def _environment() -> dict[bytes, bytes]:
    """As it was given: Python itself adds LC_CTYPE in the C locale (PEP 538)."""
    try:
        given = Path("/proc/self/environ").read_bytes()
    except OSError:
        return dict(os.environb)
    pairs = (entry.partition(b"=") for entry in given.split(b"\0") if entry)
    return {name: value for name, _, value in pairs if name}
