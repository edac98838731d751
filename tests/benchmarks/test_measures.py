"""Results of the load programs, and the plan."""

from __future__ import annotations

import pytest

from benchmarks.measures import Plan, last_object
from benchmarks.metrics import BUSY_LEVELS, IDLE_LEVELS
from tests.lab import LabError


def test_the_result_is_the_last_line() -> None:
    assert last_object('Running 1s test\n  {"no": 1}\n{"requests": 5}\n') == {"requests": 5}


@pytest.mark.parametrize("output", ["", "busy\n", '{"requests": 5}\nunable to connect\n'])
def test_no_result_is_an_error_that_shows_the_output(output: str) -> None:
    with pytest.raises(LabError, match="no result in"):
        last_object(output)


def test_the_levels_of_the_full_plan_are_those_of_the_tables() -> None:
    assert (Plan().idle_levels, Plan().busy_levels) == (IDLE_LEVELS, BUSY_LEVELS)
