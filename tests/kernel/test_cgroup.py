"""Control groups: where they are and what identifies one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import IdealNat64Lab
from tnat64d.errors import Tnat64Error, UnavailableError
from tnat64d.kernel.cgroup import (
    exists,
    identities,
    identity,
    made,
    move,
    of_exec,
    open_door,
    path_for_nft,
    remove,
    root,
)


def test_the_root_is_where_version_2_is_mounted(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\nnone /my\\040groups cgroup2 rw 0 0\n", encoding="ascii"
    )
    assert root(str(mounts)) == Path("/my groups")


def test_without_version_2_it_says_what_needs_it(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n")
    with pytest.raises(UnavailableError, match="cgroup version 2 is not mounted"):
        root(str(mounts))


@pytest.mark.netns
def test_a_group_is_known_by_its_inode(cgroup: Path) -> None:
    path = f"{cgroup.parent.name}/{cgroup.name}"
    assert identity(path) == cgroup.stat().st_ino
    assert identity(path) != identity(cgroup.parent.name)
    assert Path("/sys/fs/cgroup") / path_for_nft(path) == cgroup


@pytest.mark.netns
def test_of_several_groups_those_that_exist_are_identified(cgroup: Path) -> None:
    path = f"{cgroup.parent.name}/{cgroup.name}"
    before = identities([path, "no/such.slice"])
    assert before == {path: identity(path)}
    cgroup.rmdir()
    assert identities([path]) == {}
    cgroup.mkdir()
    assert identities([path]) not in ({}, before)


def test_a_group_that_does_not_exist_is_named() -> None:
    with pytest.raises(
        Tnat64Error, match=r"control group 'no/such\.slice': No such file or directory; it must exist"
    ):
        identity("no/such.slice")


@pytest.mark.netns
def test_the_group_of_this_process_is_a_path_below_the_root(cgroup: Path) -> None:
    code = "from tnat64d.kernel.cgroup import of_this_process; print(of_this_process())"
    enter = f'echo $$ >{cgroup}/cgroup.procs; exec "$@"'
    command = ["sh", "-ec", enter, "sh", sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert shown == f"{cgroup.parent.name}/{cgroup.name}\n"


@pytest.fixture
def path() -> Iterator[str]:
    """The path of a group that is not there."""
    path = f"tnat64d-test-made-{os.getpid()}"
    yield path
    remove(path)


@pytest.mark.netns
def test_a_group_that_is_made_stays_unless_the_block_fails_or_says_so(path: str) -> None:
    with made(path, stays=False):
        assert exists(path)
    assert not exists(path)
    with pytest.raises(ZeroDivisionError), made(path):
        raise ZeroDivisionError
    assert not exists(path)
    with made(path):
        pass
    assert exists(path)
    with made(path, stays=False):  # it was there before
        pass
    assert exists(path)
    remove(path)
    assert not exists(path)


@pytest.mark.netns
def test_a_process_is_moved_and_its_group_stays_as_long_as_it_is_there(path: str) -> None:
    with made(path), subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        door = open_door(path)
        move(process.pid, door)
        assert f"0::/{path}\n" in Path(f"/proc/{process.pid}/cgroup").read_text()
        remove(path)
        assert exists(path)
        process.communicate()
        with pytest.raises(UnavailableError, match=f"process {process.pid} cannot be moved .*: No such process"):
            move(process.pid, door)
        with pytest.raises(UnavailableError, match="PID namespace"):
            move(0, door)  # would be this very process
        os.close(door)


@pytest.mark.netns
def test_a_group_that_is_not_there_cannot_be_entered(path: str) -> None:
    with pytest.raises(UnavailableError, match=f"{path} cannot be entered: No such file .*; tnat64d setup or up"):
        open_door(path)


def test_each_network_namespace_has_a_group_for_its_commands(ideal_lab: IdealNat64Lab) -> None:
    here, client, server = of_exec(), ideal_lab.client.call(of_exec), ideal_lab.server.call(of_exec)
    assert len({here, client, server}) == 3
    assert client == ideal_lab.client.call(of_exec)
