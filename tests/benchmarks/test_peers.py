"""Who takes part, under which name."""

from __future__ import annotations

from benchmarks.measures import MEASURES
from benchmarks.peer import Peer
from benchmarks.peers import PEERS, Tnat64d


def test_peers_and_measures_have_names_of_their_own() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    assert {peer.compared_with for peer in PEERS} <= {peer.name for peer in PEERS}


def test_a_peer_that_is_not_installed_says_what_is_missing() -> None:
    peer = Peer("name", "Title")
    assert peer.missing() is None
    peer.programs = ("sh", "no-such-program")
    assert peer.missing() == "no-such-program is not installed"


def test_a_way_to_connect_that_this_version_does_not_know_is_missing() -> None:
    assert Tnat64d("name", "Title").missing() is None
    assert Tnat64d("name", "Title", connect="telepathy").missing() == 'this version has no connect = "telepathy"'
