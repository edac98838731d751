"""Control groups: where they are and what identifies one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tnat64d.errors import Tnat64Error, UnavailableError
from tnat64d.kernel.cgroup import identity, path_for_nft, root


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
