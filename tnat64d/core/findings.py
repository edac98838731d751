"""What an examination of the host finds: a level, a sentence, and the command that mends it.

Owns the values and how they are shown. Refuses to own looking (`tnat64d.doctor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """`WARN`: works now, or only for some; `FAIL`: IPv4 servers are out of reach."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence without full stop. `remedy`: a command for a shell, None only where all is well."""

    level: Level
    sentence: str
    remedy: str | None = None


def ok(sentence: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, sentence)


def warn(sentence: str, remedy: str) -> Finding:
    """Something may go wrong."""
    return Finding(Level.WARN, sentence, remedy)


def fail(sentence: str, remedy: str) -> Finding:
    """Something is wrong."""
    return Finding(Level.FAIL, sentence, remedy)


@dataclass(frozen=True, slots=True)
class Found:
    """A finding and the name of the check that it comes from."""

    check: str
    finding: Finding

    def as_json(self) -> dict[str, str | None]:
        """For programs."""
        finding = self.finding
        return {
            "check": self.check,
            "level": finding.level.value,
            "sentence": finding.sentence,
            "remedy": finding.remedy,
        }


def is_well(findings: Sequence[Found]) -> bool:
    """Whether nothing needs mending."""
    return all(found.finding.level is Level.OK for found in findings)


def line(found: Found, width: int) -> str:
    """The finding for a terminal, with its remedy below; `width`: of the longest name of a check."""
    finding = found.finding
    text = f"{finding.level.value:<4}  {found.check:<{width}}  {finding.sentence}"
    return text if finding.remedy is None else f"{text}\n      -> {finding.remedy}"


def summary(findings: Sequence[Found]) -> str:
    """The last line."""
    count = {level: sum(found.finding.level is level for found in findings) for level in Level}
    if is_well(findings):
        return f"all {count[Level.OK]} checks are ok"
    return f"{count[Level.FAIL]} failed, {count[Level.WARN]} to look at, {count[Level.OK]} ok"
