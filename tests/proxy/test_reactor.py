"""The reactor: who is told of what, and when a socket is closed."""

from __future__ import annotations

import asyncio
import fcntl
import socket
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator
from select import EPOLLERR, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import cast

import pytest

from tests.proxy.peer import raw, tcp_pair, until
from tests.proxy.reactors import IS_COMPILED, CountedReactor
from tnat64d.proxy import reactor as reactor_module
from tnat64d.proxy import relay
from tnat64d.proxy.reactor import Reactor

NOTHING_MORE_S = 0.05


class Recorder:
    """Remembers the masks that it was told."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.masks: list[int] = []
        self.crashes = 0
        self._then = then

    def ready(self, mask: int) -> None:
        self.masks.append(mask)
        self._then()

    def crashed(self) -> None:
        self.crashes += 1


class Pairs:
    """Connected sockets: the test's end, and the one to watch."""

    def __init__(self) -> None:
        self._open: list[socket.socket | RawSocket] = []

    def make(self) -> tuple[socket.socket, RawSocket]:
        far, near = tcp_pair()
        watched = raw(near)
        self._open += [far, watched]
        return far, watched

    def keep(self, sock: RawSocket) -> RawSocket:
        """Close `sock` too in the end."""
        self._open.append(sock)
        return sock

    def close(self) -> None:
        for sock in self._open:
            sock.close()


@pytest.fixture
def pairs(reactor: CountedReactor) -> Iterator[Pairs]:
    made = Pairs()
    yield made
    made.close()


async def test_a_watcher_is_told_what_is_true_already_and_what_comes(
    reactor: CountedReactor, pairs: Pairs
) -> None:
    far, near = pairs.make()
    far.send(b"early")
    watcher = Recorder()
    reactor.watch(near.fileno(), EPOLLIN | EPOLLRDHUP | EPOLLET, watcher)
    await until(lambda: watcher.masks == [EPOLLIN])
    far.shutdown(socket.SHUT_WR)
    await until(lambda: watcher.masks[1:] == [EPOLLIN | EPOLLRDHUP])
    reactor.change(near.fileno(), EPOLLOUT | EPOLLET)
    await until(lambda: watcher.masks[2:] == [EPOLLOUT])


async def test_a_reset_after_a_fin_is_reported(reactor: CountedReactor, pairs: Pairs) -> None:
    far, near = pairs.make()
    watcher = Recorder()
    reactor.watch(near.fileno(), relay.READS, watcher)
    far.shutdown(socket.SHUT_WR)
    await until(lambda: watcher.masks)
    relay.reset(far)
    far.close()
    await until(lambda: watcher.masks[-1] & EPOLLERR)


@pytest.mark.interpreted
async def test_without_news_there_are_no_turns(reactor: CountedReactor, pairs: Pairs) -> None:
    _, near = pairs.make()
    reactor.watch(near.fileno(), EPOLLIN | EPOLLOUT | EPOLLET, Recorder())
    await asyncio.sleep(NOTHING_MORE_S)
    assert reactor.turns == 1


async def test_handing_over_changes_who_is_told(reactor: CountedReactor, pairs: Pairs) -> None:
    far, near = pairs.make()
    first, second = Recorder(), Recorder()
    reactor.watch(near.fileno(), EPOLLIN | EPOLLET, first)
    reactor.hand_over(near.fileno(), second)
    far.send(b"x")
    await until(lambda: second.masks)
    assert first.masks == []


async def test_nothing_is_told_after_unwatch_and_the_socket_stays_open(
    reactor: CountedReactor, pairs: Pairs
) -> None:
    far, near = pairs.make()
    watcher = Recorder()
    reactor.watch(near.fileno(), EPOLLIN, watcher)
    reactor.unwatch(near.fileno())
    far.send(b"x")
    await asyncio.sleep(NOTHING_MORE_S)
    assert watcher.masks == []
    assert near.recv(1) == b"x"


async def test_a_socket_closed_in_a_turn_leaves_its_number_and_its_events_to_nobody(
    reactor: CountedReactor, pairs: Pairs
) -> None:
    (far, near), (other_far, other_near) = pairs.make(), pairs.make()
    newcomer = Recorder()
    _, spare = pairs.make()
    fresh: list[RawSocket] = []

    def closes(victim: RawSocket) -> Callable[[], None]:
        def close_and_open_another() -> None:
            number = victim.fileno()
            reactor.close(victim)
            # Takes the victim's number if that is free.
            duplicate = fcntl.fcntl(spare.fileno(), fcntl.F_DUPFD, number)
            fresh.append(pairs.keep(RawSocket(fileno=duplicate)))
            reactor.watch(fresh[0].fileno(), EPOLLIN | EPOLLET, newcomer)

        return close_and_open_another

    # Both have news in one turn; whoever comes first closes the other.
    watchers = [Recorder(closes(other_near)), Recorder(closes(near))]
    reactor.watch(near.fileno(), EPOLLIN | EPOLLET, watchers[0])
    reactor.watch(other_near.fileno(), EPOLLIN | EPOLLET, watchers[1])
    far.send(b"x")
    other_far.send(b"x")
    await until(lambda: fresh)
    await asyncio.sleep(NOTHING_MORE_S)
    assert sorted(watcher.masks for watcher in watchers) == [[], [EPOLLIN]]
    assert newcomer.masks == []
    assert -1 in (near.fileno(), other_near.fileno()), "closed when the turn was over"


async def test_a_socket_closed_between_turns_is_closed_at_once(reactor: CountedReactor, pairs: Pairs) -> None:
    far, near = pairs.make()
    watcher = Recorder()
    reactor.watch(near.fileno(), EPOLLIN | EPOLLET, watcher)
    far.send(b"x")
    reactor.close(near)
    assert near.fileno() == -1
    await asyncio.sleep(NOTHING_MORE_S)
    assert watcher.masks == []


class Queuing(Recorder):
    """Says when its turn has come, and queues `times` in all."""

    def __init__(self, reactor: CountedReactor, said: list[tuple[str, int]], name: str, times: int = 1) -> None:
        super().__init__()
        self._reactor, self._said, self._name, self._left = reactor, said, name, times

    def ready(self, mask: int) -> None:
        self._said.append((f"news of {self._name}", self._turn()))

    def go_on(self) -> None:
        self._said.append((self._name, self._turn()))
        self.queue()

    def _turn(self) -> int:
        return 0 if IS_COMPILED else self._reactor.turns

    def queue(self) -> None:
        if self._left:
            self._left -= 1
            self._reactor.queue(self)


@pytest.mark.interpreted
async def test_those_who_queue_go_on_in_order_one_a_turn(reactor: CountedReactor) -> None:
    said: list[tuple[str, int]] = []
    for name, times in (("a", 3), ("b", 1), ("c", 2)):
        Queuing(reactor, said, name, times).queue()
    await until(lambda: len(said) == 6)
    assert [name for name, _ in said] == ["a", "b", "c", "a", "c", "a"]
    turns = [turn for _, turn in said]
    assert turns == list(range(turns[0], turns[0] + 6))
    await asyncio.sleep(NOTHING_MORE_S)
    assert (len(said), reactor.turns) == (6, turns[-1]), "an empty queue makes no turns"


@pytest.mark.interpreted
async def test_news_goes_before_all_who_queue_but_the_first(reactor: CountedReactor, pairs: Pairs) -> None:
    far, near = pairs.make()
    said: list[tuple[str, int]] = []
    big, other = Queuing(reactor, said, "big", 3), Queuing(reactor, said, "other", 3)
    reactor.watch(near.fileno(), EPOLLIN | EPOLLET, Queuing(reactor, said, "small"))
    big.queue()
    other.queue()
    reactor.turn(0.0)
    far.send(b"x")
    reactor.turn(0.0)
    reactor.turn(0.0)
    assert [name for name, _ in said] == ["big", "news of small", "other", "big"]


@pytest.mark.interpreted
async def test_more_sockets_than_a_turn_can_take_are_all_told(
    reactor: CountedReactor, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor_module, "EVENTS_PER_TURN", 4)
    watchers = []
    for _ in range(10):
        _, near = pairs.make()
        watchers.append(Recorder())
        reactor.watch(near.fileno(), EPOLLOUT | EPOLLET, watchers[-1])
    await until(lambda: all(watcher.masks for watcher in watchers))
    assert reactor.turns >= 3


async def test_a_bug_reaches_its_own_watcher_only(
    reactor: CountedReactor, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    class Hopeless(Recorder):
        def crashed(self) -> None:
            super().crashed()
            raise ZeroDivisionError("even that")

    broken, sound = [Recorder(bug), Hopeless(bug)], [Recorder() for _ in range(3)]
    victims = []
    for watcher in (sound[0], broken[0], sound[1], broken[1], sound[2]):
        far, near = pairs.make()
        reactor.watch(near.fileno(), EPOLLIN | EPOLLET, watcher)
        far.send(b"x")
        victims.append(near)
    await until(lambda: all(watcher.masks for watcher in sound))
    assert [watcher.crashes for watcher in broken] == [1, 1]
    assert [watcher.crashes for watcher in sound] == [0, 0, 0]
    assert "a connection was given up because of a bug" in caplog.text
    reactor.close(victims[0])
    assert victims[0].fileno() == -1, "the turn is over"


async def test_a_bug_of_one_who_queues_reaches_nobody_else(
    reactor: CountedReactor, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Queuing):
        def go_on(self) -> None:
            raise ZeroDivisionError

    said: list[tuple[str, int]] = []
    broken, sound = Broken(reactor, said, "broken"), Queuing(reactor, said, "sound")
    broken.queue()
    sound.queue()
    await until(lambda: said)
    assert (broken.crashes, sound.crashes) == (1, 0)
    assert "a connection was given up because of a bug" in caplog.text


async def test_what_shall_be_done_late_is_done_once_when_all_have_been_told(
    reactor: CountedReactor, pairs: Pairs
) -> None:
    told: list[str] = []

    def asks_for(name: str) -> Callable[[], None]:
        def ask() -> None:
            told.append(name)
            reactor.late(lambda: told.append(f"late {name}"))

        return ask

    for name in ("one", "two"):
        far, near = pairs.make()
        far.send(b"x")
        reactor.watch(near.fileno(), EPOLLIN | EPOLLET, Recorder(asks_for(name)))
    await until(lambda: len(told) == 4)
    assert sorted(told[:2]) == ["one", "two"]
    assert told[2:] == [f"late {name}" for name in told[:2]]


async def test_what_fails_late_keeps_nothing_else_from_being_done(
    reactor: CountedReactor, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def ask() -> None:
        reactor.late(lambda: [][0])
        reactor.late(lambda: told.append("late"))
        reactor.close(near)

    far, near = pairs.make()
    far.send(b"x")
    reactor.watch(near.fileno(), EPOLLIN | EPOLLET, Recorder(ask))
    await until(lambda: told)
    await until(lambda: near.fileno() == -1)
    assert "because of a bug" in caplog.text


async def test_what_shall_be_done_late_is_done_at_once_between_turns(reactor: CountedReactor) -> None:
    told: list[str] = []
    reactor.late(lambda: told.append("now"))
    assert told == ["now"]


async def test_after_the_end_of_nesting_nobody_is_told_anything(pairs: Pairs) -> None:
    reactor = Reactor()
    reactor.nest(asyncio.get_running_loop())
    far, near = pairs.make()
    said: list[tuple[str, int]] = []
    watcher = Queuing(cast(CountedReactor, reactor), said, "anything")
    reactor.watch(near.fileno(), EPOLLIN | EPOLLET, watcher)
    watcher.queue()
    far.send(b"x")
    reactor.unnest()
    reactor.unnest()
    await asyncio.sleep(NOTHING_MORE_S)
    assert said == []
