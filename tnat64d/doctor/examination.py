"""The table of checks, and carrying them out one after the other.

Owns what each check needs and that none can hide another: one that crashes is a finding of its own. A check is
a generator of findings; its docstring is the fault that it looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from tnat64d.core.findings import Found, Level, fail, warn
from tnat64d.doctor import gateway, network, rules, service
from tnat64d.doctor.subject import Findings, Subject


class Need(Enum):
    """What a check cannot do without. Without root it is a warning, without the others the check is left out."""

    ROOT = auto()
    DAEMON = auto()
    CONFIG = auto()
    NO_FAILURE = auto()  # of the checks before: one fault shall be one finding


@dataclass(frozen=True, slots=True)
class Check:
    """`look` yields a finding for each thing that is wrong, or one that says what is well."""

    name: str
    look: Callable[[Subject], Findings]
    needs: frozenset[Need] = frozenset()


def _check(name: str, look: Callable[[Subject], Findings], *needs: Need) -> Check:
    return Check(name, look, frozenset(needs))


CHECKS = (
    _check("configuration", service.configuration),
    _check("privileges", service.privileges),
    _check("kernel", service.kernel),
    _check("daemon", service.daemon),
    _check("reload", service.reload, Need.DAEMON),
    _check("files", service.files, Need.ROOT, Need.DAEMON),
    _check("rules", rules.rules, Need.ROOT),
    _check("backends", rules.backends, Need.ROOT),
    _check("marks", rules.marks, Need.ROOT),
    _check("default", rules.default),
    _check("gateway", gateway.gateway, Need.ROOT),
    _check("address", network.address, Need.DAEMON),
    _check("clat", network.clat),
    _check("conntrack", network.conntrack),
    _check("prefix", network.prefix, Need.CONFIG),
    _check("dns64", network.dns64, Need.CONFIG),
    _check("connection", network.connection, Need.CONFIG, Need.DAEMON, Need.NO_FAILURE),
)


def examine(subject: Subject) -> Iterator[Found]:
    """Every check's findings, as they come."""
    has_failed = False
    for check in CHECKS:
        for found in _outcome(check, subject, has_failed):
            has_failed = has_failed or found.finding.level is Level.FAIL
            yield found


def _outcome(check: Check, subject: Subject, has_failed: bool) -> Iterator[Found]:
    absent = {
        need
        for need, is_there in (
            (Need.DAEMON, subject.daemon is not None),
            (Need.CONFIG, subject.config is not None),
            (Need.NO_FAILURE, not has_failed),
        )
        if not is_there
    }
    if check.needs & absent:
        return
    if Need.ROOT in check.needs and not subject.is_root:
        yield Found(check.name, warn("not looked at: needs root", f"sudo {subject.command('doctor')}"))
        return
    try:
        for finding in check.look(subject):
            yield Found(check.name, finding)
    except Exception as error:  # the others shall have their turn
        sentence = f"cannot be examined: {type(error).__name__}: {error}"
        yield Found(check.name, fail(sentence, f"sudo {subject.command('doctor')}"))
