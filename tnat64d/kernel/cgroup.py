"""Control groups, version 2: where they are, what identifies one, who is in it.

Owns the paths below the hierarchy's root. Refuses to own why a program is put into one.
"""

from __future__ import annotations

import os
from pathlib import Path

from tnat64d.errors import Tnat64Error, UnavailableError


def root(mounts: str = "/proc/self/mounts") -> Path:
    """Where version 2 is mounted. Raises UnavailableError where it is not."""
    for line in Path(mounts).read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1].encode().decode("unicode_escape"))
    raise UnavailableError("cgroup version 2 is not mounted: a scope by cgroup, unit or exec needs it")


_NFT_ROOT = Path("/sys/fs/cgroup")
"""Where nft(8) looks for control groups (nftables, src/datatype.c), also if version 2 is mounted below it."""


def path_for_nft(path: str) -> str:
    """The group `path` (below the root) as nft(8) writes it. Raises UnavailableError as `root`."""
    full = root() / path
    return str(full.relative_to(_NFT_ROOT)) if full.is_relative_to(_NFT_ROOT) else path


def identity(path: str) -> int:
    """What the kernel knows the group `path` (below the root) by: its inode number.

    Raises Tnat64Error where there is no such group.
    """
    try:
        return os.stat(root() / path).st_ino
    except OSError as error:
        raise Tnat64Error(
            f"control group {path!r}: {error.strerror}; it must exist when the rules are made"
        ) from None


def of_this_process() -> str:
    """The path below the root of the group that this process is in; empty for the root, or without version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):  # cgroups(7)
            return line[3:].strip("/")
    return ""
