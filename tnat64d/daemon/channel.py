"""What supervisor and worker tell each other, over a socket pair.

Owns the messages and their framing: a length of four bytes, then a pickled message. Refuses to own what is done
about them. Pickle is safe here: both ends are the same program, of the same user, on an inherited socket.

    supervisor -> worker    Start, Reload, Learned, RoutesChanged, Drain, Ping
    worker -> supervisor    Ready, Learned, Unmapped, Failures, Drained, Pong

End of file means that the other process is gone. A worker ends then.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Hashable
from dataclasses import dataclass

from tnat64d.core.config import Config
from tnat64d.core.failures import Failure
from tnat64d.core.policy import ScopeState
from tnat64d.core.settings import Settings

_LENGTH = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Start:
    """Accept connections by these rules. The limits are this worker's shares; `max_per_source` 0: none.

    `queues`: the packet queues whose SYNs it holds; none where connects are plain.
    """

    config: Config
    settings: Settings
    sticky: tuple[Hashable, ...]
    epoch: int
    max_connections: int
    max_per_source: int
    verbose: bool
    queues: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker accepts connections."""


@dataclass(frozen=True, slots=True)
class Reload:
    """New connections go by these; `max_connections` is this worker's share."""

    config: Config
    settings: Settings
    max_connections: int


@dataclass(frozen=True, slots=True)
class Learned:
    """A scope changed its state in `epoch` (`core.policy.StickyMemory`); every worker shall know."""

    scope: Hashable
    state: ScopeState
    epoch: int


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A destination that no prefix carries was asked for, the first since the last Reload."""

    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class Failures:
    """Connections that were refused and not told yet, the latest of each destination."""

    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """The host's default routes have changed: every scope begins anew."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Accept nothing more; end when the last connection has ended, or after `timeout_s` without it."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Drained:
    """No connection is left, `reset` of them because time was up."""

    reset: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Is your loop alive?"""


@dataclass(frozen=True, slots=True)
class Pong:
    """It is."""


Message = Start | Ready | Reload | Learned | Unmapped | Failures | RoutesChanged | Drain | Drained | Ping | Pong


class Channel:
    """One end of the socket pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Channel:
        """A channel over `sock`, which it closes in the end."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, message: Message) -> None:
        """Queue `message`; nothing if the other process is gone."""
        data = pickle.dumps(message)
        if not self._writer.is_closing():
            self._writer.write(_LENGTH.pack(len(data)) + data)

    async def receive(self) -> Message | None:
        """The next message; None if the other process is gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            message: Message = pickle.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return message

    async def flush(self) -> None:
        """Wait until what was sent is with the kernel."""
        try:
            await self._writer.drain()
        except ConnectionError:
            pass

    def close(self) -> None:
        """Say nothing more."""
        self._writer.close()
