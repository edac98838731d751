"""Processes, as proc(5) shows them.

Owns names, users, open files, and which share our network namespace. Refuses to own what they are for.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def names_in_this_network() -> dict[str, int]:
    """The name of each process of our network namespace, and the pid of one that has it.

    Without root those of other users are missing.
    """
    own = os.stat("/proc/self/ns/net")
    found: dict[str, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):  # it has ended, or is somebody else's
            network = os.stat(f"/proc/{entry}/ns/net")
            if (network.st_dev, network.st_ino) == (own.st_dev, own.st_ino):
                found[Path(f"/proc/{entry}/comm").read_text().strip()] = int(entry)
    return found


def uid(pid: int) -> int:
    """The user whose rights the process has (its effective one). Raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[2])
    raise OSError(f"/proc/{pid}/status has no user")


def open_files(pid: int) -> tuple[int, int]:
    """How many files the process has open, and its soft limit. Raises OSError."""
    used = len(os.listdir(f"/proc/{pid}/fd"))
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            return used, int(line.split()[3])
    raise OSError(f"/proc/{pid}/limits has no limit of open files")
