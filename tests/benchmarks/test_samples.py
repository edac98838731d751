"""Medians, ratios round by round, what is added to the direct way, targets, and the file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.metrics import METRICS, TARGETS, Target
from benchmarks.samples import Outcome, PeerInfo, Run, Sample, Statistics, from_json, to_json

PEERS = (
    PeerInfo("tnat64d", "tnat64d", "tnat64d", "1.0"),
    PeerInfo("haproxy", "HAProxy", "tnat64d", "2.6"),
    PeerInfo("direct", "direct IPv6", "tnat64d"),
    PeerInfo("socat", "socat", "tnat64d", missing="socat is not installed"),
)


def run_of(key: str, **values: list[float]) -> Run:
    """A run in which each peer has these values of one figure, round by round."""
    samples = [
        Sample("measure", peer, number, {key: value})
        for peer, many in values.items()
        for number, value in enumerate(many)
    ]
    return Run({"date": "2026-01-01"}, PEERS, tuple(samples))


def test_a_median_is_not_moved_by_one_bad_round() -> None:
    statistics = Statistics(run_of("connections_per_s", tnat64d=[100.0, 3.0, 102.0]))
    assert statistics.median("tnat64d", "connections_per_s") == 100.0
    assert statistics.spread("tnat64d", "connections_per_s") == (3.0, 102.0)


def test_what_was_not_measured_has_no_median_spread_or_ratio() -> None:
    statistics = Statistics(run_of("connections_per_s", tnat64d=[1.0]))
    assert statistics.median("haproxy", "connections_per_s") is None
    assert statistics.spread("haproxy", "connections_per_s") is None
    assert statistics.ratio("tnat64d", "haproxy", "connections_per_s") is None


def test_a_ratio_is_taken_round_by_round() -> None:
    run = run_of("connections_per_s", tnat64d=[10.0, 200.0, 12.0], haproxy=[5.0, 100.0, 12.0])
    assert Statistics(run).ratio("tnat64d", "haproxy", "connections_per_s") == 2.0  # of the medians: 1.0


def test_a_ratio_uses_only_rounds_that_both_have() -> None:
    run = run_of("connections_per_s", tnat64d=[10.0, 30.0], haproxy=[5.0])
    assert Statistics(run).ratio("tnat64d", "haproxy", "connections_per_s") == 2.0


def test_nothing_is_divided_by_zero() -> None:
    run = run_of("idle_cpu_percent", tnat64d=[0.0], haproxy=[0.0])
    assert Statistics(run).ratio("tnat64d", "haproxy", "idle_cpu_percent") is None


def test_an_added_latency_is_that_beyond_the_direct_way_in_the_same_round() -> None:
    run = run_of("ping_p50_us", tnat64d=[30.0, 130.0], haproxy=[20.0, 120.0], direct=[10.0, 110.0])
    statistics = Statistics(run)
    assert statistics.series("tnat64d", "added_ping_p50_us") == {0: 20.0, 1: 20.0}
    assert statistics.ratio("tnat64d", "haproxy", "added_ping_p50_us") == 2.0
    assert not statistics.series("direct", "added_ping_p50_us")


def test_without_the_direct_way_nothing_is_known_to_be_added() -> None:
    statistics = Statistics(run_of("ping_p50_us", tnat64d=[30.0]))
    assert statistics.median("tnat64d", "added_ping_p50_us") is None


def test_no_ratio_to_an_added_latency_that_is_noise() -> None:
    run = run_of("ping_p50_us", tnat64d=[30.0], haproxy=[10.1], direct=[10.0])
    assert Statistics(run).ratio("tnat64d", "haproxy", "added_ping_p50_us") is None


@pytest.mark.parametrize(
    ("key", "ours", "factor", "outcome"),
    [
        ("connections_per_s", 90.0, 0.9, Outcome.MET),
        ("connections_per_s", 89.0, 0.9, Outcome.MISSED),
        ("idle_rss_kib_1000", 110.0, 1.1, Outcome.MET),
        ("idle_rss_kib_1000", 111.0, 1.1, Outcome.MISSED),
    ],
)
def test_a_target_is_a_floor_or_a_ceiling_as_the_figure_is_good(
    key: str, ours: float, factor: float, outcome: Outcome
) -> None:
    statistics = Statistics(run_of(key, tnat64d=[ours], haproxy=[100.0]))
    assert statistics.verdict(Target(key, "haproxy", factor)).outcome is outcome


def test_a_target_without_a_peer_is_a_bound_itself() -> None:
    statistics = Statistics(run_of("idle_rss_kib_9000", tnat64d=[2.5]))
    verdict = statistics.verdict(Target("idle_rss_kib_9000", None, 2.0))
    assert (verdict.measured, verdict.outcome) == (2.5, Outcome.MISSED)


@pytest.mark.parametrize(("honest", "outcome"), [([300.0, 340.0], Outcome.MET), ([301.0, 341.0], Outcome.MISSED)])
def test_a_target_beyond_a_peer_bounds_the_difference_of_a_round(honest: list[float], outcome: Outcome) -> None:
    times = {"tnat64d_honest": honest, "tnat64d": [100.0, 140.0], "direct": [10.0, 20.0]}
    statistics = Statistics(run_of("first_byte_p50_us", **times))
    target = Target("added_first_byte_p50_us", "tnat64d", 200.0, "tnat64d_honest", beyond=True)
    assert statistics.verdict(target).outcome is outcome


def test_a_target_that_was_not_measured_is_neither_met_nor_missed() -> None:
    verdicts = Statistics(run_of("connections_per_s", haproxy=[1.0])).verdicts()
    assert len(verdicts) == len(TARGETS)
    assert {verdict.outcome for verdict in verdicts} == {Outcome.UNKNOWN}


def test_every_target_is_about_a_known_figure() -> None:
    assert {target.key for target in TARGETS} <= METRICS.keys()


def test_a_run_survives_its_file() -> None:
    run = run_of("ping_p50_us", tnat64d=[30.0, 31.0], direct=[10.0, 12.0])
    failed = Sample("idle", "haproxy", 0, problem="it ended")
    run = replace(run, samples=(*run.samples, failed), complete=False)
    assert from_json(to_json(run)) == run


def test_the_file_has_medians_ratios_and_targets_for_readers_without_this_program() -> None:
    run = run_of("ping_p50_us", tnat64d=[40.0], haproxy=[20.0], direct=[10.0])
    document = json.loads(to_json(run))
    assert document["medians"]["tnat64d"] == {"ping_p50_us": 40.0, "added_ping_p50_us": 30.0}
    assert document["ratios"]["haproxy"] == {"added_ping_p50_us": 3.0}
    assert {"key": "added_ping_p50_us", "peer": "haproxy", "outcome": "missed"}.items() <= next(
        target for target in document["targets"] if target["measured"] is not None
    ).items()


def test_a_file_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="is 99, must be 1"):
        from_json('{"format": 99}')
