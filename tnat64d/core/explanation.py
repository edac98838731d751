"""The answer to `tnat64d why`: verdict and steps, for people and for programs.

Owns the form. Refuses to own the reasons (`core.reasons`).
"""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Any

from tnat64d.core.config import Route
from tnat64d.core.failures import Failure


class Outcome(StrEnum):
    """What becomes of the connection."""

    LOCAL = "local"
    NAT64 = "nat64"
    IPV4 = "ipv4"
    NONE = "none"
    NOT_CAPTURED = "not captured"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Step:
    """One reason: its name, the fact, and where the fact is from (a line of a file, a kernel object)."""

    name: str
    fact: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The verdict, its reason, and the steps that lead there."""

    address: IPv4Address
    port: int
    outcome: Outcome
    because: str
    destined: Route
    failure: Failure | None
    refused_for_s: float | None
    steps: tuple[Step, ...]

    def as_text(self) -> str:
        """For people: the verdict, then a line for each step."""
        width = max(len(step.name) for step in self.steps) + 2
        target = f"{self.address}:{self.port}" if self.port else str(self.address)
        lines = [f"{target}: {_VERDICTS[self.outcome].format(self)}, because {self.because}"]
        lines += [f"  {step.name:<{width}}{step.fact}  [{step.source}]" for step in self.steps]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For programs: the object that `tnat64d why --json` prints."""
        is_nat64 = self.outcome is Outcome.NAT64
        return {
            "address": str(self.address),
            "port": self.port or None,
            "way": self.outcome.value,
            "because": self.because,
            "prefix": str(self.destined.prefix) if is_nat64 else None,
            "nat64_address": str(self.destined.nat64_address) if is_nat64 else None,
            "refused_for_s": self.refused_for_s,
            "last_failure": None if self.failure is None else _failure_as_json(self.failure),
            "steps": [asdict(step) for step in self.steps],
        }


_VERDICTS = {
    Outcome.LOCAL: "local, left to the kernel",
    Outcome.NAT64: "NAT64 at {0.destined.nat64_address}",
    Outcome.IPV4: "IPv4",
    Outcome.NONE: "no way",
    Outcome.NOT_CAPTURED: "not captured",
    Outcome.REFUSED: "refused by the kernel for another {0.refused_for_s:.1f} s",
}


def _failure_as_json(failure: Failure) -> dict[str, Any]:
    return {
        "at": failure.at,
        "port": failure.port,
        "ipv4": error_name(failure.ipv4_error) if failure.ipv4_error else None,
        "nat64": error_name(failure.nat64_error) if failure.nat64_error else None,
        "because": failure.because,
    }


def error_name(error: int) -> str:
    """Of errno(3): ENETUNREACH."""
    return errno.errorcode.get(error, str(error))
