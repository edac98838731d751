"""Reactors that tests can look into."""

from __future__ import annotations

from typing import Any, cast

from tnat64d.proxy import reactor
from tnat64d.proxy.reactor import Reactor

IS_COMPILED = not str(reactor.__file__).endswith(".py")
"""Then no class of the data plane can be inherited from; tests that need that are marked `interpreted`."""


class CountedReactor(Reactor):
    """Knows in how many turns it had anything to tell."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0
        self._epoll = cast(Any, _CountedEpoll(self, self._epoll))

    def turn(self, timeout_s: float) -> None:
        self.turns += bool(self._queue)
        super().turn(timeout_s)


class _CountedEpoll:
    """An epoll that counts the waits at whose end there was news."""

    def __init__(self, reactor: CountedReactor, epoll: Any) -> None:
        self._reactor = reactor
        self._epoll = epoll

    def poll(self, timeout_s: float, most: int) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = self._epoll.poll(timeout_s, most)
        self._reactor.turns += bool(events)
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


def new_reactor() -> Reactor:
    """A counted one, where that can be."""
    return Reactor() if IS_COMPILED else CountedReactor()
