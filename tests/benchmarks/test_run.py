"""The order of a run, and the guess of how long it takes."""

from __future__ import annotations

from benchmarks.measures import MEASURES
from benchmarks.peers import PEERS
from benchmarks.run import Progress, cells
from benchmarks.samples import Sample


def test_every_round_visits_every_peer_and_begins_with_another() -> None:
    measure = MEASURES[0]
    peers = [peer for peer in PEERS if peer.only is None][:3]
    first, second, third = peers
    order = [cell.peer for cell in cells(3, [measure], peers)]
    assert order == [first, second, third, second, third, first, third, first, second]


def test_a_peer_is_asked_only_for_the_measures_it_takes_part_in() -> None:
    logging = next(peer for peer in PEERS if peer.name == "tnat64d-log")
    assert [cell.measure.name for cell in cells(1, MEASURES, [logging])] == ["connections"]


def test_the_time_left_is_guessed_from_what_each_measure_took() -> None:
    peers = [peer for peer in PEERS if peer.only is None][:2]
    plan = list(cells(1, MEASURES[:2], peers))
    progress = Progress(plan, 1)
    for cell, taken_s in zip(plan, (4.0, 6.0, 1.0), strict=False):
        progress.end(cell, Sample(cell.measure.name, cell.peer.name, 0), taken_s)
    assert progress.left_s() == 1.0
