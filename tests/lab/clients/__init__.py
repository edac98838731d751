"""IPv4-only programs that no preloaded library can reach, and one that is set up to be awkward.

    static_connect   statically linked                        raw_syscalls   no C library at all (stands for Go)
    mapped_inet6     AF_INET6 socket to ::ffff:A.B.C.D        nonblocking    O_NONBLOCK, poll(2), SO_ERROR
    setuid_root      static_connect, setuid root, run by nobody

Owns compiling them and how each is called; `client.h` says what they do and how they end.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.namespace import LabError

_SOURCES = Path(__file__).parent
_COMPILE = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static")
_EXTRA_OPTIONS = {"raw_syscalls": ("-nostdlib", "-ffreestanding", "-fno-stack-protector")}
_PROGRAMS = ("static_connect", "raw_syscalls", "mapped_inet6", "nonblocking")
_AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")

NAMES = (*_PROGRAMS, "setuid_root")


@dataclass(frozen=True, slots=True)
class Clients:
    """Compiled clients in one directory."""

    directory: Path

    def command(self, name: str, address: str, port: int, *, banner: bool = False) -> list[str]:
        """The command line that makes client `name` (of `NAMES`) talk to `address` (IPv4) and `port`."""
        flags = ["-b"] if banner else []
        target = [*flags, address, str(port)]
        if name == "setuid_root":
            return [*_AS_NOBODY, str(self.directory / name), "-s", *target]
        return [str(self.directory / name), *target]


@contextmanager
def compiled_clients() -> Iterator[Clients]:
    """Compile every client into a directory of its own, removed afterwards. Raises LabError with gcc's words."""
    with tempfile.TemporaryDirectory(prefix="tnat64-clients-", dir=_setuid_directory()) as name:
        directory = Path(name)
        directory.chmod(0o755)  # nobody must get at the setuid client
        for program in _PROGRAMS:
            _compile(program, directory / program, _EXTRA_OPTIONS.get(program, ()))
        _compile("static_connect", directory / "setuid_root", ())
        (directory / "setuid_root").chmod(0o4755)
        yield Clients(directory)


def _compile(program: str, to: Path, options: tuple[str, ...]) -> None:
    command = [*_COMPILE, *options, "-o", str(to), str(_SOURCES / f"{program}.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}:\n{done.stderr}")


def _setuid_directory() -> str:
    """A temporary directory on a filesystem that honours the setuid bit."""
    for directory in (tempfile.gettempdir(), "/var/tmp"):
        if not os.statvfs(directory).f_flag & os.ST_NOSUID:
            return directory
    raise LabError(f"{tempfile.gettempdir()} and /var/tmp are mounted nosuid: set TMPDIR to a place that is not")
