"""Control groups that end and come again, as those of units do: rules follow, and that is nobody's fault."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import IdealNat64Lab, Process, wait_until
from tests.lab.daemon import Daemon, Tables
from tests.lab.units import Units
from tests.test_scopes import WAYS, Program
from tnat64d.core.healing import ATTEMPTS
from tnat64d.kernel import cgroup as cgroups

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")

SOON_S = 3.0
"""Each try is a program that takes some tenths of a second."""

INSIDE, OUTSIDE = Program(in_cgroup=True), Program()


@pytest.fixture
def group() -> Iterator[Path]:
    """The control group of a unit; not there at first."""
    path = cgroups.root() / f"tnat64dtest{os.getpid()}.slice"
    yield path
    if path.exists():
        path.rmdir()


@contextlib.contextmanager
def other_group(name: str) -> Iterator[None]:
    path = cgroups.root() / name
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()


@contextlib.contextmanager
def running(
    lab: IdealNat64Lab, way: str, keeper: str, scope: dict[str, list[str]]
) -> Iterator[tuple[Daemon, Process]]:
    """A daemon that serves, and the process that looks after the rules."""
    settings: Tables = {**WAYS[way], "scope": scope}
    if keeper == "up":
        with Daemon(lab.client, lab.directory, settings=settings) as daemon:
            yield daemon, daemon.process
    else:
        serving = Daemon(
            lab.client, lab.directory, command="serve", settings=settings, leaves_kernel_as_found=False
        )
        with Units(serving) as units:
            yield serving, units.watcher


def wait_for_telling(process: Process, group: Path, number: int) -> None:
    text = f"INFO: the control group {group.name} was made anew"
    wait_until(lambda: process.stderr.count(text) == number, f"it is told the {number}th time")


KEEPERS = [(way, "up") for way in WAYS if way != "static nftables"]  # for that is owned then
KEEPERS += [(way, "setup --watch") for way in WAYS if way != "owned"]


SELDOM, OFTEN = 2, ATTEMPTS + 1
"""The second would be a contest if something was lost."""

FOLLOWED = [(*each, key, SELDOM) for each in KEEPERS for key in ("units", "not_units")]
FOLLOWED += [("owned", "up", "units", OFTEN), ("static iptables-legacy", "setup --watch", "not_units", OFTEN)]


@pytest.mark.parametrize(("way", "keeper", "key", "times"), FOLLOWED)
def test_rules_follow_a_unit_however_often_it_starts_anew(
    ideal_lab: IdealNat64Lab, group: Path, way: str, keeper: str, key: str, times: int
) -> None:
    group.mkdir()
    refusal = "ENETUNREACH" if way == "owned" else "ECONNREFUSED"
    inside, outside = ("through", refusal) if key == "units" else (refusal, "through")

    def is_right() -> bool:
        return INSIDE.outcome(ideal_lab.client, group)[0] == inside

    with running(ideal_lab, way, keeper, {key: [group.name]}) as (daemon, process):
        assert is_right()
        for number in range(1, times + 1):
            group.rmdir()
            group.mkdir()
            wait_until(is_right, "the rules follow", timeout_s=SOON_S)
            wait_for_telling(process, group, number)
        assert OUTSIDE.outcome(ideal_lab.client, group)[0] == outside
        status = daemon.status()
        assert (status["rules"]["state"], status["rules_restored"]) == ("standing", 0)
        assert "WARNING" not in process.stderr


@pytest.mark.parametrize("keeper", ["up", "setup --watch"])
def test_a_unit_that_a_reload_has_named_is_followed(ideal_lab: IdealNat64Lab, group: Path, keeper: str) -> None:
    """Rules of iptables-legacy, which announces nothing, and sees no change in rules of the same size."""
    way = "static iptables-legacy"
    group.mkdir()
    before = f"other-{group.name}"
    with other_group(before), running(ideal_lab, way, keeper, {"units": [before]}) as (daemon, process):
        assert INSIDE.outcome(ideal_lab.client, group)[0] != "through"
        daemon.settings.write_text(daemon.settings.read_text().replace(before, group.name))
        if keeper == "up":
            assert daemon.run("reload").returncode == 0
        else:
            process.send_signal(signal.SIGHUP)
            process.wait_for_output("reloaded: the rules are made anew")
        assert INSIDE.outcome(ideal_lab.client, group)[0] == "through"
        group.rmdir()
        group.mkdir()
        wait_for_telling(process, group, 1)
        assert INSIDE.outcome(ideal_lab.client, group)[0] == "through"


@pytest.mark.parametrize(("way", "keeper"), KEEPERS)
def test_a_unit_that_starts_later_gets_its_rules_then(
    ideal_lab: IdealNat64Lab, group: Path, way: str, keeper: str
) -> None:
    with running(ideal_lab, way, keeper, {"units": [group.name]}) as (daemon, process):
        assert f"WARNING: there is no control group {group.name} now: the rules for it come" in process.stderr
        group.mkdir()
        process.wait_for_output(f"{group.name} was made anew")
        assert INSIDE.outcome(ideal_lab.client, group)[0] == "through"
        group.rmdir()
        ideal_lab.client.run(["ip", "rule", "del", "pref", "32769"])  # all but those for the group are restored
        process.wait_for_output("the routing rule 32769 was gone or changed: restored$")
        group.mkdir()
        wait_for_telling(process, group, 2)
        assert INSIDE.outcome(ideal_lab.client, group)[0] == "through"
        assert OUTSIDE.outcome(ideal_lab.client, group)[0] != "through"
        assert daemon.status()["rules_restored"] == 1
