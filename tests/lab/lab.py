"""Network namespaces that exist for one `with` block.

Owns names, veth pairs, the temporary directory, and taking all of it down again: on success, on an error half way
through making it, and on KeyboardInterrupt. What the namespaces are for is `nat64`'s.

A namespace is called `tnat64-PID-N-ROLE`, the directory `tnat64-PID-N-RANDOM`: unique among labs of this process
and of others, and recognisable as left over when PID is gone (a run that was killed). The first lab of a process
removes those.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.namespace import RUN_DIRECTORY, LabError, Namespace, kill_all_in

_NAME = re.compile(r"tnat64-(?P<pid>\d+)-\d+-\w+")
_numbers = itertools.count()


class Lab:
    """Base of the labs: a subclass names its roles and wires them in `build()`."""

    roles: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.name = f"tnat64-{os.getpid()}-{next(_numbers)}"
        self.directory = Path()
        self.namespaces: dict[str, Namespace] = {}

    def __enter__(self) -> Self:
        _remove_leftovers()
        try:
            self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
            self._make_namespaces()
            self.build()
        except BaseException:  # also KeyboardInterrupt: nothing of a lab may outlive its block
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def build(self) -> None:
        """Wire the namespaces. They exist, with `lo` up."""

    def close(self) -> None:
        """End the programs, delete the namespaces (their devices go with them) and the directory. Idempotent."""
        with contextlib.ExitStack() as stack:  # every step happens, whatever the one before it raised
            if self.directory != Path():
                stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for namespace in self.namespaces.values():
                stack.callback(_delete_namespace, namespace.path)
                stack.callback(namespace.close)

    def ip(self, role: str, *commands: str) -> None:
        """Run ip(8) commands, one a string and without the leading `ip`, in one go in a namespace."""
        self.namespaces[role].run(["ip", "-batch", "-"], input="\n".join(commands))

    def _make_namespaces(self) -> None:
        # Known before they are made: an interrupt in between must find them.
        self.namespaces = {role: Namespace(f"{self.name}-{role}", self.directory) for role in self.roles}
        _ip_netns(*(f"add {namespace.name}" for namespace in self.namespaces.values()))
        for role, namespace in self.namespaces.items():
            self.ip(role, "link set lo up")
            for which in ("all", "default"):
                namespace.write_sysctl(f"net.ipv6.conf.{which}.accept_dad", 0)  # addresses work at once

    def link(self, role: str, device: str, other_role: str, other_device: str) -> None:
        """Connect two namespaces by a veth pair. Both ends are made in place: nothing appears on the host."""
        peer = self.namespaces[other_role].name
        self.ip(role, f"link add {device} type veth peer name {other_device} netns {peer}")


def _ip_netns(*commands: str) -> None:
    """`ip netns COMMAND` for each, in one go. Raises LabError with ip's own words when one fails."""
    batch = "\n".join(f"netns {command}" for command in commands)
    done = subprocess.run(["ip", "-batch", "-"], input=batch, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{batch}:\n{done.stderr}")


def _delete_namespace(path: Path) -> None:
    if path.exists():
        _ip_netns(f"del {path.name}")


@functools.cache
def _remove_leftovers() -> None:
    """Remove the labs of processes that no longer exist. Once per process is enough."""
    for path in _leftovers(RUN_DIRECTORY):
        # Another run may be removing the same ones.
        with contextlib.suppress(LabError, FileNotFoundError):
            kill_all_in(path)
            _delete_namespace(path)
    for path in _leftovers(Path(tempfile.gettempdir())):
        shutil.rmtree(path, ignore_errors=True)


def _leftovers(directory: Path) -> list[Path]:
    entries = list(directory.iterdir()) if directory.is_dir() else []
    matches = ((path, _NAME.fullmatch(path.name)) for path in entries)
    return [path for path, match in matches if match and not Path(f"/proc/{match['pid']}").exists()]
