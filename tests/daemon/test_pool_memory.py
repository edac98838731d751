"""What workers learn reaches all of them, in whatever order messages cross; without processes."""

from __future__ import annotations

import os
from collections import deque
from contextlib import closing
from socket import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnat64d.core.config import Config
from tnat64d.core.policy import ScopeState, StickyMemory
from tnat64d.core.settings import Settings
from tnat64d.daemon.channel import Learned, Message, RoutesChanged
from tnat64d.daemon.pool import WorkerPool

STICKY, DISABLED = ScopeState.NAT64_STICKY, ScopeState.IPV4_FIRST


class Replica:
    """A worker's memory, and the messages on their way to and from it."""

    def __init__(self) -> None:
        self.memory = StickyMemory(10)
        self.down: deque[Message] = deque()
        self.up: deque[Learned] = deque()

    def send(self, message: Message) -> None:
        """See `Channel.send`."""
        self.down.append(message)

    def learn(self, state: ScopeState) -> None:
        if self.memory.learn(None, state):
            self.up.append(Learned(None, state, self.memory.epoch))

    def receive(self) -> None:
        match self.down.popleft():
            case Learned(scope, state):
                self.memory.learn(scope, state)
            case RoutesChanged():
                self.memory.forget_all()


class Workers:
    def __init__(self, count: int) -> None:
        sockets = [socket() for _ in range(count)]
        self.pool = WorkerPool(Settings(), Config(), sockets, verbose=False)
        self.replicas = [Replica() for _ in range(count)]
        for slot, replica in zip(self.pool._slots, self.replicas, strict=True):
            slot.channel = replica  # type: ignore[assignment]
        for sock in sockets:
            sock.close()

    def close(self) -> None:
        for slot in self.pool._slots:
            os.close(slot.counters_fd)

    def deliver(self, number: int, upwards: bool) -> None:
        replica = self.replicas[number]
        if upwards and replica.up:
            self.pool._handle(self.pool._slots[number], replica.up.popleft())
        elif not upwards and replica.down:
            replica.receive()

    def deliver_all(self) -> None:
        while any(replica.up or replica.down for replica in self.replicas):
            for number in range(len(self.replicas)):
                self.deliver(number, True)
                self.deliver(number, False)

    def agree(self) -> bool:
        return all(set(r.memory.sticky_scopes()) == set(self.pool.sticky_scopes()) for r in self.replicas)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), st.integers(0, 2), st.sampled_from((STICKY, DISABLED))),
        st.tuples(st.just("deliver"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("routes"), st.just(0), st.just(False)),
    ),
    max_size=40,
)


@given(STEPS)
def test_all_workers_agree_when_every_message_has_arrived(steps: list[tuple[str, int, ScopeState | bool]]) -> None:
    with closing(Workers(3)) as workers:
        follow(workers, steps)
        workers.deliver_all()
        assert workers.agree()


def follow(workers: Workers, steps: list[tuple[str, int, ScopeState | bool]]) -> None:
    for kind, number, value in steps:
        if kind == "learn":
            assert isinstance(value, ScopeState)
            workers.replicas[number].learn(value)
        elif kind == "deliver":
            workers.deliver(number, bool(value))
        else:
            workers.pool.forget_sticky()


@pytest.mark.parametrize("changes", [1, 3])
def test_what_was_learned_before_the_routes_changed_is_not_known_after(changes: int) -> None:
    with closing(Workers(2)) as workers:
        workers.replicas[0].learn(STICKY)
        for _ in range(changes):
            workers.pool.forget_sticky()
        workers.deliver_all()
        assert workers.pool.sticky_scopes() == []
        assert workers.agree()
        workers.replicas[1].learn(STICKY)
        workers.deliver_all()
        assert workers.pool.sticky_scopes() == [None]
        assert workers.agree()
