"""What a program and its descendants use: CPU time, memory, wake-ups, from proc(5).

Owns reading /proc. Processes come and go while it is read (a peer may fork per connection): what has vanished
counts nothing, and its CPU time is in its parent's time of waited-for children.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over a program and its descendants. `wakeups`: voluntary context switches since their start."""

    cpu_s: float = 0.0
    rss_bytes: int = 0
    pss_bytes: int = 0
    wakeups: int = 0
    processes: int = 0


def family(pid: int) -> list[int]:
    """`pid` and all its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir(_PROC):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid]
    for member in found:  # grows while it is walked
        found += children.get(member, [])
    return found


def cpu_s(pid: int) -> float:
    """User and system time of `pid`, its descendants, and those of them that have ended. Resolution: 10 ms."""
    return sum(_cpu_ticks(member) for member in family(pid)) / _TICKS_PER_S


def usage(pid: int) -> Usage:
    """All of it. Slower than cpu_s(): the kernel walks every page table for the proportional set size."""
    members = family(pid)
    memory = [_memory_kib(member) for member in members]
    return Usage(
        cpu_s=sum(_cpu_ticks(member) for member in members) / _TICKS_PER_S,
        rss_bytes=sum(rss for rss, _ in memory) * _KIB,
        pss_bytes=sum(pss for _, pss in memory) * _KIB,
        wakeups=sum(_wakeups(member) for member in members),
        processes=len(members),
    )


def pin(pid: int, cpus: Iterable[int]) -> None:
    """Let every thread of `pid` and its descendants run on `cpus` only."""
    chosen = set(cpus)
    for member in family(pid):
        for thread in (_PROC / str(member) / "task").glob("*"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), chosen)


def parse_stat(text: str) -> list[str]:
    """The fields of /proc/PID/stat from the state (the third) on: a name may hold blanks and parentheses."""
    return text[text.rindex(")") + 2 :].split()


def parse_numbers(text: str, keys: Iterable[str]) -> list[int]:
    """The numbers N of lines `Key:  N` or `Key:  N kB`, 0 for what is not there."""
    found = dict(re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE))
    return [int(found.get(key, 0)) for key in keys]


def _stat(pid: int) -> list[str]:
    text = _read(_PROC / str(pid) / "stat")
    return parse_stat(text) if text else []


def _cpu_ticks(pid: int) -> int:
    fields = _stat(pid)
    # utime, stime, cutime, cstime: fields 14 to 17 of proc(5)
    return sum(int(field) for field in fields[11:15]) if fields else 0


def _memory_kib(pid: int) -> tuple[int, int]:
    rss, pss = parse_numbers(_read(_PROC / str(pid) / "smaps_rollup"), ("Rss", "Pss"))
    return rss, pss


def _wakeups(pid: int) -> int:
    threads = (_PROC / str(pid) / "task").glob("*/status")
    return sum(parse_numbers(_read(thread), ("voluntary_ctxt_switches",))[0] for thread in threads)


def _read(path: Path) -> str:
    """The content, empty when the process has gone."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
