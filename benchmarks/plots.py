"""Pictures of a run: one per group of figures, peers side by side; curves where the figures grow with the load.

Owns the looks. Needs matplotlib (the `bench` extra), drawn without a display.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # before pyplot is imported: there may be no display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from benchmarks.metrics import GROUPS, Better, Group, Metric
from benchmarks.samples import DIRECT, PeerInfo, Run, Statistics

_OURS = ("#d9480f", "#e8702f", "#f08c5a", "#f6b48f", "#fbd5c0")
_THEIRS = "#7c93ad"
_LIMIT = "#c9ced4"
_CURVES = (
    "#1f4e79",
    "#3c8dbc",
    "#2b8a3e",
    "#82c91e",
    "#862e9c",
    "#5c5f66",
    "#099268",
    "#66d9e8",
    "#e0a800",
    "#adb5bd",
)
_MARKERS = "osD^vP*X<>"
_TEXT = "#212529"
_LOG_FROM = 20.0
"""Bars are drawn on a logarithmic axis where the longest is so many times the median."""

_LINEAR_UP_TO = 1.0

_STYLE: Any = {
    "font.size": 9,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "#adb5bd",
    "grid.color": "#e9ecef",
    "xtick.color": "#495057",
    "ytick.color": _TEXT,
    "savefig.dpi": 150,
}


def draw(run: Run, directory: Path, stem: str) -> list[Path]:
    """Write `STEM-GROUP.png` for every group with figures; the paths."""
    statistics = Statistics(run)
    written = []
    with mpl.rc_context(_STYLE):
        for group in GROUPS:
            peers = [p for p in run.peers if any(statistics.series(p.name, m.key) for m in group.metrics)]
            if not peers:
                continue
            figure = _curves(group, peers, statistics) if _is_growth(group) else _bars(group, peers, statistics)
            figure.suptitle(group.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
            figure.text(0.01, 0.005, _caption(run, group), fontsize=7, color="#868e96", va="bottom")
            path = directory / f"{stem}-{group.name}.png"
            figure.savefig(path)
            plt.close(figure)
            written.append(path)
    return written


def _is_growth(group: Group) -> bool:
    return all(metric.level is not None for metric in group.metrics) and group.name.startswith("growth")


def _caption(run: Run, group: Group) -> str:
    about = run.about
    where = f"{about['cpus']} × {about['cpu']}, Linux {about['kernel']}, {about['date'][:10]}"
    rounds = about["plan"]["rounds"]
    how = f"medians of {rounds} rounds, whiskers from least to greatest" if rounds > 1 else "one round"
    return " · ".join(part for part in (group.note.rstrip("."), how, where) if part)


def _bars(group: Group, peers: Sequence[PeerInfo], statistics: Statistics) -> Figure:
    metrics = [m for m in group.metrics if any(statistics.series(p.name, m.key) for p in peers)]
    width_in = 2.6 + 2.9 * len(metrics)
    figure: Figure
    figure, axes = plt.subplots(
        1,
        len(metrics),
        figsize=(width_in, 1.3 + 0.3 * len(peers)),
        sharey=True,
        squeeze=False,
        layout=ConstrainedLayoutEngine(rect=(0, 0.045, 1, 0.93)),
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        _bar_axis(axis, metric, peers, statistics)
    axes[0][0].set_yticks(range(len(peers)), [peer.title for peer in peers])
    axes[0][0].invert_yaxis()
    for label, peer in zip(axes[0][0].get_yticklabels(), peers, strict=True):
        label.set_fontweight("bold" if peer.name == peer.compared_with else "normal")
    return figure


def _bar_axis(axis: Axes, metric: Metric, peers: Sequence[PeerInfo], statistics: Statistics) -> None:
    values = [statistics.median(peer.name, metric.key) for peer in peers]
    present = [value for value in values if value is not None]
    if max(present) > _LOG_FROM * max(median(present), _LINEAR_UP_TO):
        axis.set_xscale("symlog", linthresh=_LINEAR_UP_TO)
        axis.set_xlim(min(0.0, min(present)), max(present) * 6)
    elif max(present) > 0:
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_xlim(min(0.0, min(present)) * 1.1, max(present) * 1.28)
    for row, (peer, value, color) in enumerate(zip(peers, values, _colors(peers), strict=True)):
        if value is None:
            continue
        spread = statistics.spread(peer.name, metric.key) or (value, value)
        axis.barh(row, value, height=0.7, color=color)
        if spread[0] != spread[1]:
            axis.plot(spread, (row, row), color="#343a40", linewidth=0.9, alpha=0.6)
        axis.annotate(
            metric.show(value),
            (max(value, spread[1], 0.0), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if peer.name == peer.compared_with else "normal",
        )
    axis.set_title(metric.title)
    axis.set_xlabel(f"{metric.unit} · {metric.better.value}")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    axis.xaxis.set_major_formatter(FuncFormatter(_tick))
    axis.xaxis.set_minor_locator(NullLocator())


def _curves(group: Group, peers: Sequence[PeerInfo], statistics: Statistics) -> Figure:
    figure: Figure
    figure, axis = plt.subplots(figsize=(9, 5.2), layout=ConstrainedLayoutEngine(rect=(0, 0.04, 1, 0.93)))
    others = iter(zip(_CURVES * 2, _MARKERS * 2, strict=True))
    ours = itertools.cycle(_OURS)
    for peer in peers:
        points = [(m.level or 0, statistics.median(peer.name, m.key)) for m in group.metrics]
        drawn = [(level, value) for level, value in points if value is not None and value > 0]
        if not drawn:
            continue
        if peer.name == peer.compared_with:
            axis.plot(
                *zip(*drawn, strict=True), color=next(ours), linewidth=2.8, marker="o", label=peer.title, zorder=3
            )
        else:
            color, marker = (_LIMIT, "o") if peer.name == DIRECT else next(others)
            axis.plot(
                *zip(*drawn, strict=True),
                color=color,
                marker=marker,
                linewidth=1.4,
                markersize=5,
                label=peer.title,
            )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("concurrent downloads")
    metric = group.metrics[0]
    axis.set_ylabel(f"{metric.unit} · {metric.better.value}")
    levels = [m.level for m in group.metrics if any(statistics.series(p.name, m.key) for p in peers)]
    axis.set_xticks([level for level in levels if level is not None])
    axis.xaxis.set_major_formatter(FuncFormatter(_tick))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(_tick))
    if metric.better is Better.HIGHER:
        axis.yaxis.set_minor_formatter(FuncFormatter(_few_ticks))
    axis.grid(which="major")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _colors(peers: Sequence[PeerInfo]) -> list[str]:
    ours = itertools.cycle(_OURS)
    return [
        next(ours) if peer.name == peer.compared_with else _LIMIT if peer.name == DIRECT else _THEIRS
        for peer in peers
    ]


def _tick(value: float, position: int) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def _few_ticks(value: float, position: int) -> str:
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""
