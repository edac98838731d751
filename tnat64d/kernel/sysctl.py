"""Kernel parameters (sysctl(8)) of the network namespace that this process is in.

Owns reading them. Refuses to own writing, and what they mean.
"""

from __future__ import annotations

from pathlib import Path


def read(key: str) -> int | None:
    """The number at `key`, written with dots, or with slashes where names of interfaces may have dots (sysctl(8)).

    None where this kernel does not have it.
    """
    try:
        return int(Path("/proc/sys", *key.split("/" if "/" in key else ".")).read_text())
    except (OSError, ValueError):
        return None
