"""What programs use, from proc(5)."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks import processes


def test_a_process_name_may_hold_blanks_and_parentheses() -> None:
    assert processes.parse_stat("12 (a) (b c) S 1 12\n") == ["S", "1", "12"]


def test_numbers_of_proc_files_are_found_by_name_and_missing_ones_are_zero() -> None:
    text = (
        "55d0-7ffe ---p 00000000 00:00 0   [rollup]\nRss:    1234 kB\nGroups:\t \nnonvoluntary_ctxt_switches:\t3\n"
    )
    assert processes.parse_numbers(text, ("Rss", "nonvoluntary_ctxt_switches", "Pss")) == [1234, 3, 0]


def test_the_usage_of_a_program_includes_its_children() -> None:
    child = "import sys; print('ready', flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        found = processes.usage(program.pid)
        members = processes.family(program.pid)
        program.communicate()
    assert found.processes == len(members) == 2
    assert found.rss_bytes >= found.pss_bytes > 1 << 20
    assert found.wakeups > 0


def test_the_time_of_children_that_have_ended_counts() -> None:
    before_s = processes.cpu_s(os.getpid())
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert processes.cpu_s(os.getpid()) - before_s >= 0.2  # each of four times is cut to hundredths


def test_what_has_ended_uses_nothing() -> None:
    program = subprocess.Popen(["true"])
    program.wait()
    assert processes.usage(program.pid) == processes.Usage(processes=1)
