"""An event loop of asyncio that waits by the data plane's own epoll.

Owns the loop of a worker: the data plane's events never come up to asyncio, and what is asyncio's (the channel to
the supervisor, timers, callbacks) makes the reactor stop for as long as it takes. Refuses to own the turns
(`proxy.reactor`).

Every wake-up of the usual loop costs a callback and, as its selector has the data plane's epoll for one of its
descriptors, a second epoll_wait(2).
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING, Any, TypeVarTuple

from tnat64d.proxy.reactor import Reactor

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_Ts = TypeVarTuple("_Ts")

_MASKS = {
    selectors.EVENT_READ: EPOLLIN,
    selectors.EVENT_WRITE: EPOLLOUT,
    selectors.EVENT_READ | selectors.EVENT_WRITE: EPOLLIN | EPOLLOUT,
}


class _Registration:
    """A descriptor of asyncio's; a `reactor.Watcher`, level-triggered."""

    __slots__ = ("key", "selector")

    def __init__(self, selector: _Selector, key: selectors.SelectorKey) -> None:
        self.selector = selector
        self.key = key

    def ready(self, mask: int) -> None:
        """See `reactor.Watcher`. An error or a hang-up is news for readers and writers alike."""
        events = 0
        if mask & ~EPOLLOUT:
            events |= selectors.EVENT_READ
        if mask & ~EPOLLIN:
            events |= selectors.EVENT_WRITE
        self.selector.found(self.key, events & self.key.events)

    def crashed(self) -> None:
        """See `reactor.Watcher`."""


class _Selector(selectors.BaseSelector):
    """What asyncio asks for news; it makes the reactor's turns meanwhile."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._registrations: dict[int, _Registration] = {}
        self._found: list[tuple[selectors.SelectorKey, int]] = []

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors`."""
        fd = _number(fileobj)
        if fd in self._registrations:
            raise KeyError(f"{fileobj!r} is already registered")
        key = selectors.SelectorKey(fileobj, fd, events, data)
        registration = _Registration(self, key)
        self._reactor.watch(fd, _MASKS[events], registration)
        self._registrations[fd] = registration
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """See `selectors`."""
        registration = self._registrations.pop(_number(fileobj))
        with suppress(OSError):  # who closes first has taken it out of the epoll already
            self._reactor.unwatch(registration.key.fd)
        return registration.key

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors`."""
        registration = self._registrations[_number(fileobj)]
        key = registration.key._replace(events=events, data=data)
        if events != registration.key.events:
            self._reactor.change(key.fd, _MASKS[events])
        registration.key = key
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors`."""
        self._reactor.run(timeout)
        found, self._found = self._found, []
        return found

    def found(self, key: selectors.SelectorKey, events: int) -> None:
        """There is news of a descriptor of asyncio's."""
        self._found.append((key, events))
        self._reactor.interrupt()

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        """See `selectors`."""
        return {fd: registration.key for fd, registration in self._registrations.items()}

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """See `selectors`; asyncio asks before each change."""
        return self._registrations[_number(fileobj)].key

    def close(self) -> None:
        """See `selectors`."""
        self._registrations.clear()
        self._reactor.stop()


class ReactorLoop(asyncio.SelectorEventLoop):
    """`reactor`: whose epoll it waits by."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        super().__init__(_Selector(reactor))

    time = staticmethod(time.monotonic)  # that of the base class calls it in Python

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """See asyncio."""
        self.reactor.interrupt()
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        self.reactor.interrupt()
        return super().call_at(when, callback, *args, context=context)


def reactor_of(loop: asyncio.AbstractEventLoop) -> Reactor:
    """The reactor that `loop` waits by; of any other loop a new one, nested in it."""
    if isinstance(loop, ReactorLoop):
        return loop.reactor
    reactor = Reactor()
    reactor.nest(loop)
    return reactor


def _number(fileobj: FileDescriptorLike) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()
