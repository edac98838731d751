"""A flood of failures: how many messages it makes, and what is in them."""

from __future__ import annotations

import asyncio
import errno

from tests.proxy.peer import until
from tnat64d.core.config import Route, Way
from tnat64d.daemon.channel import Failures
from tnat64d.daemon.failure_reports import AT_ONCE, FailureReports
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.destination import Target


def refused(port: int, nat64_error: int = errno.ECONNREFUSED) -> Connection:
    target = Target(("192.0.2.1", port), Route(Way.NAT64, None, None, None, "a test"), None, None)
    connection = Connection(("127.0.0.1", 1), target, now=0.0)
    connection.ipv4_error, connection.nat64_error, connection.because = (
        errno.ENETUNREACH,
        nat64_error,
        "IPv4 first",
    )
    return connection


async def test_a_flood_is_one_message_with_the_latest_of_each_destination() -> None:
    told: list[Failures] = []
    reports = FailureReports(asyncio.get_running_loop(), told.append)
    for _ in range(1000):
        reports.remember(refused(80))
    reports.remember(refused(443))
    reports.remember(refused(80, errno.EHOSTUNREACH))
    assert told == []
    await until(lambda: told)
    (message,) = told
    assert [(each.port, each.nat64_error) for each in message.failures] == [
        (443, errno.ECONNREFUSED),
        (80, errno.EHOSTUNREACH),
    ]
    assert {(each.address, each.ipv4_error, each.because) for each in message.failures} == {
        ("192.0.2.1", errno.ENETUNREACH, "IPv4 first")
    }


async def test_what_was_told_is_not_told_again() -> None:
    told: list[Failures] = []
    reports = FailureReports(asyncio.get_running_loop(), told.append)
    reports.remember(refused(1))
    await until(lambda: told)
    reports.remember(refused(2))
    await until(lambda: len(told) == 2)
    assert [[failure.port for failure in message.failures] for message in told] == [[1], [2]]


async def test_a_message_is_bounded_and_holds_the_latest() -> None:
    told: list[Failures] = []
    reports = FailureReports(asyncio.get_running_loop(), told.append)
    for port in range(1, AT_ONCE + 101):
        reports.remember(refused(port))
    await until(lambda: told)
    assert [failure.port for failure in told[0].failures] == list(range(101, AT_ONCE + 101))
