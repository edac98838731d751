"""Which failure is remembered, for how long, and which one speaks for a destination."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tnat64d.core.failures import Failure, FailureMemory, to_refuse
from tnat64d.core.scope import Place


def failure(last_octet: int, port: int = 443, at: float = 1.0) -> Failure:
    return Failure(f"192.0.2.{last_octet}", port, at, errno.ENETUNREACH, errno.ECONNREFUSED, "IPv4 unreachable")


def test_the_latest_of_a_destination_is_the_one_that_counts() -> None:
    memory = FailureMemory()
    memory.remember([failure(1, at=1.0), failure(1, at=2.0)])
    assert memory.last("192.0.2.1", 443) == failure(1, at=2.0)


def test_another_port_is_another_destination_unless_no_port_is_asked_for() -> None:
    memory = FailureMemory()
    memory.remember([failure(1, port=80), failure(1, port=443), failure(2)])
    assert memory.last("192.0.2.1", 25) is None
    assert memory.last("192.0.2.1") == failure(1, port=443)
    memory.remember([failure(1, port=80, at=5.0)])
    assert memory.last("192.0.2.1") == failure(1, port=80, at=5.0)
    assert memory.last("192.0.2.3") is None


def test_the_destination_that_has_not_failed_for_the_longest_time_is_forgotten_first() -> None:
    memory = FailureMemory(max_entries=2)
    memory.remember([failure(1), failure(2), failure(1), failure(3)])
    assert [memory.last(f"192.0.2.{n}") is not None for n in (1, 2, 3)] == [True, False, True]


def test_draining_gives_all_and_forgets_them() -> None:
    memory = FailureMemory()
    memory.remember([failure(1), failure(2)])
    assert memory.drain() == (failure(1), failure(2))
    assert memory.drain() == ()
    assert memory.last("192.0.2.1") is None


@pytest.mark.parametrize(
    ("ipv4_error", "nat64_error", "is_answer"),
    [
        (errno.ENETUNREACH, errno.ECONNREFUSED, True),
        (errno.ENETUNREACH, errno.EHOSTUNREACH, True),
        (errno.ECONNREFUSED, 0, True),
        (0, errno.ECONNREFUSED, True),
        (errno.ENETUNREACH, errno.ETIMEDOUT, False),
        (errno.ENETUNREACH, errno.EACCES, True),
        (errno.EACCES, 0, True),
        (errno.EPERM, 0, True),
        (errno.ENETUNREACH, errno.EPERM, True),
        (errno.ETIMEDOUT, errno.ECONNREFUSED, False),
        (errno.ETIMEDOUT, errno.EACCES, False),
        (errno.ENETUNREACH, errno.EMFILE, False),
        (0, 0, False),
    ],
)
def test_only_refused_unreachable_and_prohibited_are_answers(
    ipv4_error: int, nat64_error: int, is_answer: bool
) -> None:
    failed = replace(failure(1), ipv4_error=ipv4_error, nat64_error=nat64_error)
    assert failed.is_answer is is_answer
    assert to_refuse([failed], honest=(), since=0.0) == ([("192.0.2.1", 443)] if is_answer else [])


def test_where_connects_are_honest_nothing_is_refused_unasked() -> None:
    assert to_refuse([failure(1, 80), failure(1, 443)], [Place(ports=(1, 100))], since=0.0) == [("192.0.2.1", 443)]


def test_what_failed_before_something_changed_is_not_refused_after() -> None:
    assert to_refuse([failure(1, at=1.0), failure(2, at=2.0)], honest=(), since=2.0) == [("192.0.2.2", 443)]
