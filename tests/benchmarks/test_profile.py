"""System calls per unit of work, from strace -c."""

from __future__ import annotations

from benchmarks.profile import Calls, parse_strace, table_of

STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           3       200           recvfrom
 40.00    0.000400           4       100       100 connect
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           3       300       100 total
"""


def test_system_calls_are_read_from_strace_without_the_total() -> None:
    assert parse_strace(STRACE) == [Calls("recvfrom", 200, 0, 0.0006), Calls("connect", 100, 100, 0.0004)]


def test_system_calls_are_shown_per_unit_of_work() -> None:
    table = table_of(parse_strace(STRACE), 100, "connection").splitlines()
    assert [cell.strip() for cell in table[2].strip("|").split("|")] == ["recvfrom", "2.00", "0.00", "3.0"]
    assert [cell.strip() for cell in table[-1].strip("|").split("|")][:2] == ["all", "3.00"]
