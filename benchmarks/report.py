"""Markdown of a run: targets, and a table for each group of figures with the ratio to every peer.

    python -m benchmarks.report RESULTS.json [DIRECTORY]      writes report.md and the pictures anew

Owns the text. Rendering is pure; only main() touches files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.metrics import ADDED, GROUPS, METRICS, Group, Metric
from benchmarks.samples import DIRECT, PeerInfo, Run, Statistics, Verdict, from_json, is_higher_better

OVERVIEW = Group(
    "overview",
    "Overview",
    tuple(
        METRICS[key]
        for key in (
            "flow1_up_gbit_s",
            "flow1_down_gbit_s",
            "connections_per_s",
            "requests_per_s",
            f"{ADDED}ping_p50_us",
            f"{ADDED}first_byte_p50_us",
            "idle_rss_kib_9000",
        )
    ),
)
_OVERVIEW_TITLES = {
    f"{ADDED}ping_p50_us": "added round trip p50",
    f"{ADDED}first_byte_p50_us": "added to first byte p50",
    "idle_rss_kib_9000": "memory per idle connection",
}
_LEGEND = (
    "Medians. Behind each figure, ×: that of tnat64d with as many processes, divided by this one "
    "(the median of the ratios round by round)."
)


def render(run: Run) -> str:
    """The whole report."""
    statistics = Statistics(run)
    sections = [
        "# Benchmark",
        _about(run),
        _LEGEND,
        overview(run),
        f"## Targets\n\n{_targets(statistics)}",
        *(_section(group, run.peers, statistics) for group in GROUPS if _measured(group, run.peers, statistics)),
    ]
    if absent := _absent(run):
        sections.append(f"## Not measured\n\n{absent}")
    return "\n\n".join(section for section in sections if section) + "\n"


def overview(run: Run) -> str:
    """One table of the most telling figures."""
    return _table(OVERVIEW, run.peers, Statistics(run), _OVERVIEW_TITLES)


def _about(run: Run) -> str:
    about = run.about
    lines = [
        f"- {about['date']}, commit {about['commit']}: `{about['command']}`",
        f"- {about['cpus']} × {about['cpu']}, {about['memory_gib']} GiB, Linux {about['kernel']}, "
        f"{about['system']}, Python {about['python']}",
        f"- rounds: {about['plan']['rounds']}, every peer in turn in each; "
        f"one measurement: {about['plan']['duration_s']} s",
        "- " + ", ".join(_versions(run.peers)),
    ]
    if not run.complete:
        lines.append("- **interrupted**: not every round is there")
    return "\n".join(lines)


def _versions(peers: Iterable[PeerInfo]) -> dict[str, None]:
    """Each program once: the variants of one are called NAME-VARIANT."""
    return dict.fromkeys(f"{peer.name.partition('-')[0]} {peer.version}" for peer in peers if peer.version)


def _section(group: Group, peers: Sequence[PeerInfo], statistics: Statistics) -> str:
    better = {metric.better.value for metric in group.metrics}
    remarks = [group.note, f"{better.pop().capitalize()}." if len(better) == 1 else ""]
    text = " ".join(remark for remark in remarks if remark)
    return "\n\n".join(part for part in (f"## {group.title}", text, _table(group, peers, statistics, {})) if part)


def _table(group: Group, peers: Sequence[PeerInfo], statistics: Statistics, titles: dict[str, str]) -> str:
    metrics = [metric for metric in group.metrics if any(statistics.series(p.name, metric.key) for p in peers)]
    if not metrics:
        return ""
    rows = [["", *(f"{titles.get(metric.key, metric.title)}, {metric.unit}" for metric in metrics)]]
    for peer in peers:
        cells = [_cell(peer, metric, statistics) for metric in metrics]
        if any(cells):
            title = f"**{peer.title}**" if peer.name == peer.compared_with else peer.title
            rows.append([title, *cells])
    return markdown_table(rows)


def _cell(peer: PeerInfo, metric: Metric, statistics: Statistics) -> str:
    value = statistics.median(peer.name, metric.key)
    if value is None:
        return ""
    shown = metric.show(value)
    if peer.name == peer.compared_with:
        return f"**{shown}**"
    ratio = statistics.ratio(peer.compared_with, peer.name, metric.key)
    return shown if ratio is None else f"{shown} ×{short(ratio)}"


def _targets(statistics: Statistics) -> str:
    rows = [["figure", "wanted", "measured", ""]]
    rows += [_target_row(verdict) for verdict in statistics.verdicts()]
    return markdown_table(rows)


def _target_row(verdict: Verdict) -> list[str]:
    target, metric = verdict.target, METRICS[verdict.target.key]
    bound = "at least" if is_higher_better(target.key) else "at most"
    wanted = f"{bound} {short(target.factor)}"
    if target.beyond:
        wanted += f" {metric.unit} beyond {target.peer}"
    else:
        wanted += f" × {target.peer}" if target.peer else f" {metric.unit}"
    ours = "" if target.ours == "tnat64d" else f" ({target.ours})"
    measured = "" if verdict.measured is None else short(verdict.measured)
    return [f"{_group_title(metric)}: {metric.title}{ours}", wanted, measured, verdict.outcome.value]


def _group_title(metric: Metric) -> str:
    return next(group.title for group in GROUPS if metric in group.metrics)


def _absent(run: Run) -> str:
    lines = [f"- {peer.title}: {peer.missing}" for peer in run.peers if peer.missing]
    titles = {peer.name: peer.title for peer in run.peers}
    lines += dict.fromkeys(
        f"- {titles[sample.peer]}, {sample.measure}: {_one_line(sample.problem)}"
        for sample in run.samples
        if sample.problem
    )
    return "\n".join(lines)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


def _measured(group: Group, peers: Iterable[PeerInfo], statistics: Statistics) -> bool:
    return any(statistics.series(peer.name, metric.key) for peer in peers for metric in group.metrics)


def short(number: float) -> str:
    """Three significant digits, without an exponent."""
    if number == 0 or abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if abs(number) >= 0.001 else f"{number:.4f}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them the heading; all columns but the first are aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_padded(row, widths) for row in rows]
    rule = ["-" * max(3, widths[0]), *("-" * (max(3, width) - 1) + ":" for width in widths[1:])]
    return "\n".join((lines[0], f"| {' | '.join(rule)} |", *lines[1:]))


def _padded(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (max(3, width) for width in widths)
    cells = [row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], rest, strict=True))]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Render a file of results once more."""
    from benchmarks import plots

    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Render results once more.")
    parser.add_argument("results", type=Path, help="a JSON file that a run wrote")
    parser.add_argument("directory", type=Path, nargs="?", help="where to write (default: beside the results)")
    arguments = parser.parse_args()
    run = from_json(arguments.results.read_text())
    directory = arguments.directory or arguments.results.parent
    directory.mkdir(parents=True, exist_ok=True)
    stem = arguments.results.stem
    (directory / f"{stem}.md").write_text(render(run))
    plots.draw(run, directory, stem)


__all__ = ["DIRECT", "markdown_table", "overview", "render", "short"]

if __name__ == "__main__":
    main()
