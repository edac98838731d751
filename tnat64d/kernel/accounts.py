"""Users, groups and systemd units by name, as `core.scope.Lookup` asks for them, and for the [exec] table.

Owns looking up. Refuses to own what a scope means. A unit is known by the control group that it has, or will
have: systemd is asked, and where it does not answer, system.slice is where a service is.
"""

from __future__ import annotations

import grp
import pwd
import subprocess

from tnat64d.core.scope import Lookup
from tnat64d.errors import ConfigurationError
from tnat64d.kernel import cgroup

_SYSTEMCTL_TIMEOUT_S = 5.0


def lookup(filename: str, table: str = "scope") -> Lookup:
    """Looks up for `table` of the file `filename`, which its errors name."""

    def uid(name: str) -> int:
        if name.isdigit():
            return int(name)
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            raise ConfigurationError([f"{filename}: {table}: there is no user {name!r} on this host"]) from None

    def gid(name: str) -> int:
        if name.isdigit():
            return int(name)
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            raise ConfigurationError([f"{filename}: {table}: there is no group {name!r} on this host"]) from None

    return Lookup(uid, gid, cgroup_of_unit, cgroup.of_exec)


def cgroup_of_unit(name: str) -> str:
    """The path of the unit's control group, below the root."""
    command = ["systemctl", "show", "--property=ControlGroup", "--value", "--", name]
    try:
        completed = subprocess.run(
            command, capture_output=True, text=True, timeout=_SYSTEMCTL_TIMEOUT_S, check=False
        )
        if path := completed.stdout.strip().lstrip("/"):
            return path
    except (OSError, subprocess.TimeoutExpired):
        pass
    if name.endswith(".slice"):
        return _slice_path(name)
    return f"system.slice/{name}"


def _slice_path(name: str) -> str:
    """a-b.slice is a.slice/a-b.slice (systemd.slice(5))."""
    parts = name.removesuffix(".slice").split("-")
    return "/".join("-".join(parts[: count + 1]) + ".slice" for count in range(len(parts)))
