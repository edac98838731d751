"""Which failure is told at once, how many messages a flood of them makes, and what is in these."""

from __future__ import annotations

import asyncio
import errno

from tests.proxy.peer import until
from tnat64d.core.config import Route, Way
from tnat64d.daemon.channel import Failures
from tnat64d.daemon.failure_reports import MAX_AT_ONCE, MAX_IN_MESSAGE, FailureReports
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.destination import Target


class Told:
    """The messages of a FailureReports."""

    def __init__(self) -> None:
        self.messages: list[Failures] = []
        self.reports = FailureReports(asyncio.get_running_loop(), self.messages.append)

    def fail(self, *ports: int, nat64_error: int = errno.ECONNREFUSED) -> None:
        for port in ports:
            self.reports.remember(refused(port, nat64_error))

    @property
    def ports(self) -> list[list[int]]:
        """Of each message."""
        return [[failure.port for failure in message.failures] for message in self.messages]

    async def until_messages(self, count: int) -> None:
        await until(lambda: len(self.messages) >= count)


def refused(port: int, nat64_error: int) -> Connection:
    target = Target(("192.0.2.1", port), Route(Way.NAT64, None, None, None, "a test"), None, None)
    connection = Connection(("127.0.0.1", 1), target, now=0.0)
    connection.ipv4_error, connection.nat64_error, connection.because = (
        errno.ENETUNREACH,
        nat64_error,
        "IPv4 first",
    )
    return connection


async def test_the_first_failure_of_a_destination_is_told_at_once() -> None:
    told = Told()
    told.fail(80)
    assert told.ports == [[80]]
    told.fail(443)
    assert told.ports == [[80], [443]]
    (failure,) = told.messages[0].failures
    assert (failure.address, failure.ipv4_error, failure.nat64_error, failure.because) == (
        "192.0.2.1",
        errno.ENETUNREACH,
        errno.ECONNREFUSED,
        "IPv4 first",
    )


async def test_a_flood_to_one_destination_is_one_more_message_with_the_latest() -> None:
    told = Told()
    told.fail(*[80] * 1000)
    told.fail(80, nat64_error=errno.EHOSTUNREACH)
    assert told.ports == [[80]]
    await told.until_messages(2)
    assert told.ports == [[80], [80]]
    assert told.messages[1].failures[0].nat64_error == errno.EHOSTUNREACH


async def test_of_a_flood_to_many_destinations_a_few_are_told_at_once_and_the_latest_together() -> None:
    told = Told()
    first = list(range(1, MAX_AT_ONCE + 1))
    told.fail(*first, *range(1001, 1001 + MAX_IN_MESSAGE + 100), first[0])
    assert told.ports == [[port] for port in first]
    await told.until_messages(len(first) + 1)
    assert told.ports[-1] == [*range(1102, 1001 + MAX_IN_MESSAGE + 100), first[0]]


async def test_after_a_while_a_destination_is_told_at_once_again_and_only_what_is_new() -> None:
    told = Told()
    told.fail(80, 80, 443)
    await told.until_messages(3)
    told.fail(443, 80)
    assert told.ports == [[80], [443], [80], [443], [80]]


async def test_when_nothing_followed_nothing_is_told() -> None:
    quiet, busy = Told(), Told()
    quiet.fail(80)
    busy.fail(80, 80)
    await busy.until_messages(2)
    assert quiet.ports == [[80]]
    quiet.fail(80)
    assert quiet.ports == [[80], [80]], "its time is over, too: it began before"
