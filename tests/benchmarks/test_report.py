"""The Markdown of a run."""

from __future__ import annotations

import pytest

from benchmarks.report import markdown_table, overview, render, short
from benchmarks.samples import PeerInfo, Run, Sample

ABOUT = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m benchmarks.run",
    "commit": "abc",
    "kernel": "6.18",
    "system": "Debian",
    "cpu": "Some CPU",
    "cpus": 2,
    "memory_gib": 24,
    "python": "3.11",
    "plan": {"rounds": 5, "duration_s": 2.0},
}
PEERS = (
    PeerInfo("tnat64d", "tnat64d", "tnat64d", "1.0"),
    PeerInfo("haproxy", "HAProxy", "tnat64d", "2.6"),
    PeerInfo("pproxy", "pproxy", "tnat64d", missing="pproxy is not installed"),
)
SAMPLES = (
    Sample("connections", "tnat64d", 0, {"connections_per_s": 9000.0, "cpu_s_per_1000_connections": 0.05}),
    Sample("connections", "haproxy", 0, {"connections_per_s": 8000.0, "cpu_s_per_1000_connections": 0.04}),
    Sample("idle", "haproxy", 0, problem="it ended\nwith 1"),
)


def lines_with(text: str, word: str) -> list[list[str]]:
    """The cells of table lines that contain `word`."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and word in line
    ]


def test_each_figure_of_a_peer_stands_beside_our_ratio_to_it() -> None:
    assert ["HAProxy", "8,000 ×1.12", "0.040 ×1.25"] in lines_with(render(Run(ABOUT, PEERS, SAMPLES)), "HAProxy")


def test_a_missing_peer_is_named_with_the_reason() -> None:
    assert "- pproxy: pproxy is not installed" in render(Run(ABOUT, PEERS, SAMPLES)).splitlines()


def test_a_failed_measure_is_named_with_the_reason_once() -> None:
    again = Sample("idle", "haproxy", 1, problem="it ended\nwith 1")
    report = render(Run(ABOUT, PEERS, (*SAMPLES, again)))
    assert report.splitlines().count("- HAProxy, idle: it ended with 1") == 1


def test_targets_say_what_was_wanted_what_was_measured_and_the_outcome() -> None:
    rows = lines_with(render(Run(ABOUT, PEERS, SAMPLES)), "× haproxy")
    assert [row[1:] for row in rows if row[2]] == [["at least 1 × haproxy", "1.12", "met"]]


def test_figures_that_nobody_has_are_left_out() -> None:
    report = render(Run(ABOUT, PEERS, SAMPLES))
    assert "## New connections" in report
    assert "## Throughput" not in report
    assert "added" not in overview(Run(ABOUT, PEERS, SAMPLES))


def test_the_head_says_when_where_and_how() -> None:
    report = render(Run(ABOUT, PEERS, SAMPLES))
    for text in ("2026-01-02", "`python -m benchmarks.run`", "2 × Some CPU", "Linux 6.18", "haproxy 2.6"):
        assert text in report
    assert "interrupted" not in report
    assert "interrupted" in render(Run(ABOUT, PEERS, SAMPLES, complete=False))


def test_columns_are_padded_to_the_widest_cell() -> None:
    assert markdown_table([["", "head"], ["name", "1"]]).splitlines() == [
        "|      | head |",
        "| ---- | ---: |",
        "| name |    1 |",
    ]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (1.2345, "1.23"), (0.0456, "0.0456"), (12345.6, "12,346"), (0.0001, "0.0001")]
)
def test_numbers_have_three_digits_and_no_exponent(number: float, text: str) -> None:
    assert short(number) == text
