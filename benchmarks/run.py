"""Runs the benchmark: rounds, progress, files.

    make bench                                       five rounds of everything: the better part of an hour
    make bench QUICK=1                               a look, in under three minutes
    python -m benchmarks.run --only tnat64d,haproxy --measures connections --rounds 3

In every round every measure visits every peer (A B C, B C A, …), each time with a fresh process. Owns the order,
the progress line, and results/: NAME.json, NAME.md and NAME-*.png of each run, and the same as `latest`.
Needs root. Everything happens in network namespaces, which are gone afterwards, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import report
from benchmarks.lab import PlainLab, compiled_load
from benchmarks.measures import MEASURES, QUICK, Measure, Plan, Running
from benchmarks.metrics import ADDED, METRICS
from benchmarks.peer import Peer, running
from benchmarks.peers import PEERS
from benchmarks.samples import PeerInfo, Run, Sample, Statistics, to_json
from tests.lab import LabError
from tests.lab.needs import what_is_missing

RESULTS = Path(__file__).with_name("results")
ATTEMPTS = 2
"""A measure that failed so often on a peer is not tried on it again."""

_FIRST_GUESS_S = 3.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement to be made."""

    round: int
    measure: Measure
    peer: Peer


def cells(rounds: int, measures: Sequence[Measure], peers: Sequence[Peer]) -> Iterator[Cell]:
    """All measurements in order; each round begins with another peer."""
    for number in range(rounds):
        for measure in measures:
            turn = number % max(1, len(peers))
            for peer in (*peers[turn:], *peers[:turn]):
                if peer.only is None or measure.name in peer.only:
                    yield Cell(number, measure, peer)


class Progress:
    """A line for every measurement, with a guess of the time that is left."""

    def __init__(self, plan: Sequence[Cell], rounds: int) -> None:
        self._left = Counter(cell.measure.name for cell in plan)
        self._taken_s: dict[str, list[float]] = {}
        self._rounds = rounds
        self._total = len(plan)
        self._live = sys.stdout.isatty()

    def begin(self, cell: Cell) -> None:
        """Say what is going on, where that can be overwritten."""
        if self._live:
            print(f"\r\033[K{self._head(cell)} …", end="", flush=True)

    def end(self, cell: Cell, sample: Sample, taken_s: float) -> None:
        """Say what came of it."""
        self._left[cell.measure.name] -= 1
        self._taken_s.setdefault(cell.measure.name, []).append(taken_s)
        done = self._total - self._left.total()
        outcome = f"failed: {sample.problem.splitlines()[0][:60]}" if sample.problem else _headline(sample)
        start = "\r\033[K" if self._live else ""
        print(
            f"{start}{self._head(cell)} {outcome:<44} {done}/{self._total}, {_duration(self.left_s())} left",
            flush=True,
        )

    def left_s(self) -> float:
        """By the mean of what each measure has taken so far."""
        everything = [taken for many in self._taken_s.values() for taken in many]
        guess_s = sum(everything) / len(everything) if everything else _FIRST_GUESS_S
        means_s = {name: sum(many) / len(many) for name, many in self._taken_s.items()}
        return sum(count * means_s.get(name, guess_s) for name, count in self._left.items())

    def _head(self, cell: Cell) -> str:
        return f"round {cell.round + 1}/{self._rounds}  {cell.measure.name:<11}  {cell.peer.title:<30}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _headline(sample: Sample) -> str:
    shown = []
    for key, value in sample.figures.items():
        metric = METRICS.get(key) or METRICS.get(f"{ADDED}{key}")
        if metric is not None:
            shown.append(f"{metric.show(value)} {metric.unit}")
    return ", ".join(shown[:3]) or "no figures"


class Labs:
    """A lab of each kind that is asked for, made when it is."""

    def __init__(self, stack: ExitStack, load: Path) -> None:
        self._stack = stack
        self._load = load
        self._made: dict[type[PlainLab], PlainLab] = {}

    def of(self, peer: Peer) -> PlainLab:
        """The lab that `peer` stands in. Raises LabError."""
        if peer.lab not in self._made:
            self._made[peer.lab] = self._stack.enter_context(peer.lab(self._load))
        return self._made[peer.lab]


def measure(cell: Cell, labs: Labs, plan: Plan) -> Sample:
    """One measurement; what goes wrong is in the sample."""
    absent = [program for program in cell.measure.programs if shutil.which(program) is None]
    try:
        if absent:
            raise LabError(f"{', '.join(absent)} is not installed")
        lab = labs.of(cell.peer)
        with running(cell.peer, lab, cell.measure.service) as process:
            figures = cell.measure.run(Running(cell.peer, lab, cell.measure.service, process), plan)
    except LabError as error:
        return Sample(cell.measure.name, cell.peer.name, cell.round, problem=str(error))
    return Sample(cell.measure.name, cell.peer.name, cell.round, figures)


def run_all(plan: Plan, measures: Sequence[Measure], peers: Sequence[Peer], samples: list[Sample]) -> None:
    """All rounds, into `samples`: what is there when an interrupt comes is not lost."""
    todo = list(cells(plan.rounds, measures, peers))
    progress, failures = Progress(todo, plan.rounds), Counter[tuple[str, str]]()
    with ExitStack() as stack:
        labs = Labs(stack, stack.enter_context(compiled_load()))
        for cell in todo:
            place = (cell.measure.name, cell.peer.name)
            progress.begin(cell)
            started = time.monotonic()
            if failures[place] < ATTEMPTS:
                samples.append(measure(cell, labs, plan))
                failures[place] += bool(samples[-1].problem)
                progress.end(cell, samples[-1], time.monotonic() - started)
            else:
                progress.end(cell, Sample(*place, cell.round, problem="not tried again"), 0.0)


def about(plan: Plan) -> dict[str, Any]:
    """When, where, of what and how."""
    memory_kib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024
    system = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.run", *sys.argv[1:]]),
        "commit": _commit(),
        "kernel": platform.release(),
        "system": system.get("PRETTY_NAME", platform.system()),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 1024 / 1024),
        "python": platform.python_version(),
        "plan": asdict(plan),
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(RESULTS), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    if shutil.which("git") is None or not (commit := git("rev-parse", "--short=12", "HEAD")):
        return "unknown"
    return f"{commit} with changes" if git("status", "--porcelain", "--untracked-files=no") else commit


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def describe(peer: Peer) -> PeerInfo:
    """The peer as results show it."""
    missing = peer.missing() or ""
    return PeerInfo(peer.name, peer.title, peer.compared_with, "" if missing else peer.version(), missing)


def write(run: Run, directory: Path, name: str) -> None:
    """The files of a run under `name`, pictures where matplotlib is installed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(to_json(run))
    (directory / f"{name}.md").write_text(report.render(run))
    try:
        from benchmarks import plots
    except ImportError:
        print("no pictures: matplotlib is not installed (pip install -e .[bench])")
        return
    for old in directory.glob(f"{name}-*.png"):
        old.unlink()
    plots.draw(run, directory, name)


def _choose(wanted: str | None, known: Iterable[Any], parser: argparse.ArgumentParser, option: str) -> list[Any]:
    by_name = {item.name: item for item in known}
    names = list(by_name) if wanted is None else wanted.split(",")
    if unknown := [name for name in names if name not in by_name]:
        parser.error(f"{option}: there is no {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [item for name, item in by_name.items() if name in names]


def _arguments() -> tuple[Plan, list[Measure], list[Peer], Path]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="Compare tnat64d with its peers."
    )
    parser.add_argument("--quick", action="store_true", help="one short round with fewer connections")
    parser.add_argument("--only", metavar="PEER,…", help=", ".join(peer.name for peer in PEERS))
    parser.add_argument("--measures", metavar="MEASURE,…", help=", ".join(measure.name for measure in MEASURES))
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="of one measurement")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIRECTORY", help="where to write")
    given = parser.parse_args()
    plan = QUICK if given.quick else Plan()
    if given.rounds is not None:
        plan = replace(plan, rounds=given.rounds)
    if given.duration is not None:
        plan = replace(plan, duration_s=given.duration)
    if plan.rounds < 1 or plan.duration_s <= 0:
        parser.error("there must be a round, and it must take time")
    measures = _choose(given.measures, MEASURES, parser, "--measures")
    return plan, measures, _choose(given.only, PEERS, parser, "--only"), given.results


def main() -> int:
    """The exit code: 0, 1 where nothing can be measured, 130 after an interrupt."""
    plan, measures, peers, directory = _arguments()
    if reason := what_is_missing(("ip", "gcc", "nginx")):
        print(f"benchmark: {reason}", file=sys.stderr)
        return 1
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    infos = [describe(peer) for peer in peers]
    for info in infos:
        if info.missing:
            print(f"without {info.title}: {info.missing}")
    present = [peer for peer, info in zip(peers, infos, strict=True) if not info.missing]
    what, complete = about(plan), True
    samples: list[Sample] = []
    try:
        run_all(plan, measures, present, samples)
    except KeyboardInterrupt:
        complete = False
        print("\ninterrupted")
    run = Run(what, tuple(infos), tuple(samples), complete)
    if samples:
        write(run, directory, what["date"].replace(":", "").partition("+")[0])
        write(run, directory, "latest")
        print(f"\n{report.overview(run)}\n\n{_verdict(run)} Report: {directory / 'latest.md'}")
    return 0 if complete else 130


def _verdict(run: Run) -> str:
    counts = Counter(verdict.outcome.value for verdict in Statistics(run).verdicts())
    return "Targets: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + "."


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
