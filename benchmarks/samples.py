"""Samples of a run, and what follows from them: medians, ratios, whether targets are met. JSON.

Owns the statistics and the file format. Pure: no clock, no file, no process.

A sample is what one measure gave for one peer in one round. A ratio is the median of the ratios round by round,
ours over theirs: what slows a whole round down does not touch it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from statistics import median
from typing import Any

from benchmarks.metrics import ADDED, METRICS, TARGETS, Better, Target

FORMAT = 1
DIRECT = "direct"
LEAST_ADDED_US = 1.0
"""An added latency below this is noise."""

Series = dict[int, float]
"""Values of one figure of one peer, by round."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one measurement; `problem` where it failed."""

    measure: str
    peer: str
    round: int
    figures: dict[str, float] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer as the tables show it. `missing`: why it took no part."""

    name: str
    title: str
    compared_with: str
    version: str = ""
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run. `about`: when, where, of what, how (texts and numbers). `complete`: not interrupted."""

    about: dict[str, Any]
    peers: tuple[PeerInfo, ...]
    samples: tuple[Sample, ...]
    complete: bool = True


class Outcome(Enum):
    """What became of a target."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, what was measured against its `factor` (None: nothing), and the outcome."""

    target: Target
    measured: float | None
    outcome: Outcome


class Statistics:
    """Everything that tables and pictures show of a run."""

    def __init__(self, run: Run) -> None:
        self._series: dict[tuple[str, str], Series] = {}
        for sample in run.samples:
            for key, value in sample.figures.items():
                self._series.setdefault((sample.peer, key), {})[sample.round] = value
        for (peer, key), series in list(self._series.items()):
            if f"{ADDED}{key}" in METRICS and peer != DIRECT:
                self._series[peer, f"{ADDED}{key}"] = _beyond(series, self._series.get((DIRECT, key), {}))

    def series(self, peer: str, key: str) -> Series:
        """The values round by round; empty if there are none."""
        return self._series.get((peer, key), {})

    def median(self, peer: str, key: str) -> float | None:
        """None if nothing was measured."""
        return _median(self.series(peer, key).values())

    def spread(self, peer: str, key: str) -> tuple[float, float] | None:
        """The least and the greatest value."""
        values = self.series(peer, key).values()
        return (min(values), max(values)) if values else None

    def ratio(self, ours: str, theirs: str, key: str) -> float | None:
        """Ours over theirs; None where no round has both, or theirs is too near to zero to divide by."""
        mine, other = self.series(ours, key), self.series(theirs, key)
        least = LEAST_ADDED_US if key.startswith(ADDED) else 0.0
        return _median(mine[n] / other[n] for n in mine if other.get(n, 0.0) > least)

    def verdict(self, target: Target) -> Verdict:
        """Whether a target was met."""
        if target.peer is None:
            measured = self.median(target.ours, target.key)
        elif target.beyond:
            peers = self.series(target.peer, target.key)
            measured = _median(_beyond(self.series(target.ours, target.key), peers).values())
        else:
            measured = self.ratio(target.ours, target.peer, target.key)
        if measured is None:
            return Verdict(target, None, Outcome.UNKNOWN)
        met = measured >= target.factor if is_higher_better(target.key) else measured <= target.factor
        return Verdict(target, measured, Outcome.MET if met else Outcome.MISSED)

    def verdicts(self) -> list[Verdict]:
        """Of every target."""
        return [self.verdict(target) for target in TARGETS]


def is_higher_better(key: str) -> bool:
    """Which way a metric is good."""
    return METRICS[key].better is Better.HIGHER


def to_json(run: Run) -> str:
    """The file: all samples, and for readers without this program the medians and ratios."""
    statistics = Statistics(run)
    document = {
        "format": FORMAT,
        **asdict(run),
        "medians": {
            peer.name: _present({key: statistics.median(peer.name, key) for key in _keys(run)})
            for peer in run.peers
        },
        "ratios": {
            peer.name: _present({key: statistics.ratio(peer.compared_with, peer.name, key) for key in METRICS})
            for peer in run.peers
            if peer.name != peer.compared_with
        },
        "targets": [
            {**asdict(verdict.target), "measured": verdict.measured, "outcome": verdict.outcome.value}
            for verdict in statistics.verdicts()
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def from_json(text: str) -> Run:
    """What to_json() wrote; medians, ratios and targets are worked out anew. Raises ValueError."""
    document = json.loads(text)
    if document.get("format") != FORMAT:
        raise ValueError(f"the format of this file is {document.get('format')}, must be {FORMAT}")
    return Run(
        about=document["about"],
        peers=tuple(PeerInfo(**peer) for peer in document["peers"]),
        samples=tuple(Sample(**sample) for sample in document["samples"]),
        complete=document["complete"],
    )


def _keys(run: Run) -> list[str]:
    """Every figure of the run, those that are worked out too."""
    measured = {key for sample in run.samples for key in sample.figures}
    return sorted(measured | {key for key in METRICS if key.removeprefix(ADDED) in measured})


def _present(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None


def _beyond(series: Series, base: Series) -> Series:
    return {number: value - base[number] for number, value in series.items() if number in base}
