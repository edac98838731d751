"""What a finding looks like."""

from __future__ import annotations

import pytest

from tnat64d.core.findings import Found, fail, is_well, line, ok, summary, warn

WELL = Found("rules", ok("they stand"))
ILL = Found("configuration", fail("it is wrong", "mend it"))
AILING = Found("clat", warn("there is one", "stop it"))


def test_a_line_has_level_check_and_sentence_in_columns_and_the_remedy_below() -> None:
    assert line(WELL, 13) == "ok    rules          they stand"
    assert line(ILL, 13) == "fail  configuration  it is wrong\n      -> mend it"


def test_json_has_all_four_words_of_a_finding() -> None:
    assert ILL.as_json() == {
        "check": "configuration",
        "level": "fail",
        "sentence": "it is wrong",
        "remedy": "mend it",
    }
    assert WELL.as_json()["remedy"] is None


@pytest.mark.parametrize(
    ("findings", "text"),
    [
        ([WELL, WELL], "all 2 checks are ok"),
        ([WELL, AILING], "0 failed, 1 to look at, 1 ok"),
        ([ILL, AILING, WELL], "1 failed, 1 to look at, 1 ok"),
    ],
)
def test_the_summary_counts(findings: list[Found], text: str) -> None:
    assert summary(findings) == text
    assert is_well(findings) == (text.startswith("all"))
