"""Processes are seen by name in their network namespace, with the files that they have open."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.bare_host import run_python
from tests.lab import Namespace, wait_until
from tnat64d.kernel import processes

pytestmark = pytest.mark.netns

NAMES = "from tnat64d.kernel import processes; print(*processes.names_in_this_network())"


def test_only_processes_of_the_same_network_are_named(host: Namespace, tmp_path: Path) -> None:
    program = tmp_path / "lonesome"
    program.symlink_to("/bin/sleep")
    process = host.start([program, "600"])
    comm = Path(f"/proc/{process.pid}/comm")
    wait_until(lambda: comm.read_text() == "lonesome\n", "nsenter has become the program")
    assert "lonesome" in run_python(host, NAMES).split()
    assert "lonesome" not in processes.names_in_this_network()


def test_open_files_grow_by_one_with_one() -> None:
    before, limit = processes.open_files(os.getpid())
    with open(os.devnull):
        assert processes.open_files(os.getpid()) == (before + 1, limit)
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_the_user_is_the_effective_one() -> None:
    command = "import os, sys; os.seteuid(65534); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-Ic", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert processes.uid(other.pid) == 65534
        other.communicate()


def test_a_process_that_has_ended_is_an_oserror() -> None:
    with pytest.raises(OSError, match="No such file"):
        processes.open_files(2**30)
