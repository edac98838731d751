"""What one peer does under load: its system calls, or its hot functions.

    python -m benchmarks.profile tnat64d                          system calls per connection, by strace -c
    python -m benchmarks.profile nginx --measure requests         the same per request
    python -m benchmarks.profile tnat64d --measure flow1-up --with perf

strace slows the peer down, so that the speed below it means nothing; its counts are right all the same. They are
divided by the work done (connections, requests, megabytes) where the measure counts any.
"""

from __future__ import annotations

import argparse
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.lab import compiled_load
from benchmarks.measures import MEASURES, WORK, Figures, Measure, Plan, Running
from benchmarks.peer import Peer, running
from benchmarks.peers import PEERS
from benchmarks.report import markdown_table
from tests.lab import LabError
from tests.lab.needs import what_is_missing

ATTACH_S = 0.7
_PERF_RECORD = ("perf", "record", "--quiet", "-F", "1999", "-g")
_PERF_REPORT = ("perf", "report", "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.7")


@dataclass(frozen=True, slots=True)
class Calls:
    """One line of strace -c."""

    name: str
    count: int
    errors: int
    seconds: float


def parse_strace(text: str) -> list[Calls]:
    """The lines of `strace -c`, the most frequent call first; the total is left out."""
    line = r"^ *[\d.]+ +([\d.]+) +\d+ +(\d+) +(\d*) *(\w+)$"
    found = [
        Calls(name, int(count), int(errors or 0), float(seconds))
        for seconds, count, errors, name in re.findall(line, text, re.MULTILINE)
        if name != "total"
    ]
    return sorted(found, key=lambda calls: -calls.count)


def table_of(calls: list[Calls], work: float, unit: str) -> str:
    """Markdown, `work` times `unit` having been done; calls that hardly occur are only in the sum."""
    rows = [["call", f"per {unit}", "of these failed", "µs each"]]
    rows += [
        [c.name, f"{c.count / work:.2f}", f"{c.errors / work:.2f}", f"{c.seconds / c.count * 1e6:.1f}"]
        for c in calls
        if c.count / work >= 0.005
    ]
    total = sum(c.count for c in calls)
    rows.append(["all", f"{total / work:.2f}", "", ""])
    return markdown_table(rows)


def profile(peer: Peer, measure: Measure, plan: Plan, command: Callable[[list[int]], list[str]]) -> Figures:
    """Run `measure` on `peer` while `command(its pids)` watches it, until that has written its result."""
    with (
        compiled_load() as load,
        peer.lab(load) as lab,
        running(peer, lab, measure.service) as process,
    ):
        if process is None:
            raise LabError(f"{peer.title} has no process to look at")
        watcher = subprocess.Popen(command(processes.family(process.pid)))
        try:
            time.sleep(ATTACH_S)
            return measure.run(Running(peer, lab, measure.service, process), plan)
        finally:
            watcher.send_signal(signal.SIGINT)
            watcher.wait()


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description="Look into one peer.")
    peers = {peer.name: peer for peer in PEERS}
    measures = {measure.name: measure for measure in MEASURES}
    parser.add_argument("peer", choices=peers)
    parser.add_argument("--measure", choices=measures, default="connections")
    parser.add_argument("--with", dest="tool", choices=("strace", "perf"), default="strace")
    parser.add_argument("--duration", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--output", type=Path, help="where to keep what the tool wrote")
    given = parser.parse_args()
    peer, measure = peers[given.peer], measures[given.measure]
    if reason := peer.missing() or what_is_missing((given.tool, "gcc", "nginx", *measure.programs)):
        print(f"profile: {reason}", file=sys.stderr)
        return 1
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    output = given.output or Path(f"/tmp/{given.tool}-{peer.name}-{measure.name}")
    show = _strace if given.tool == "strace" else _perf
    try:
        show(peer, measure, Plan(rounds=1, duration_s=given.duration), output)
    except LabError as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    return 0


def _strace(peer: Peer, measure: Measure, plan: Plan, output: Path) -> None:
    def command(pids: list[int]) -> list[str]:
        return ["strace", "-c", "-f", "-o", str(output), *(f"--attach={pid}" for pid in pids)]

    figures = profile(peer, measure, plan, command)
    calls = parse_strace(output.read_text())
    work, unit = (figures[WORK], measure.unit) if measure.unit else (1.0, "run")
    print(f"{peer.title}, {measure.name}, {work:,.2f} times {unit} ({output})\n\n{table_of(calls, work, unit)}")


def _perf(peer: Peer, measure: Measure, plan: Plan, output: Path) -> None:
    def command(pids: list[int]) -> list[str]:
        return [*_PERF_RECORD, "-o", str(output), "-p", ",".join(map(str, pids))]

    figures = profile(peer, measure, plan, command)
    print(f"{peer.title}, {measure.name}: {figures}\n", flush=True)
    subprocess.run([*_PERF_REPORT, "-i", output, "--sort", "dso,symbol"], check=False)


if __name__ == "__main__":
    sys.exit(main())
