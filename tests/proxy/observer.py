"""An observer that remembers what it was told."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from tests.proxy.peer import until
from tnat64d.core.policy import ScopeState
from tnat64d.kernel.original_dst import Destination
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.destination import Target
from tnat64d.proxy.listener import Listener
from tnat64d.proxy.relay import Relay


@dataclass(eq=False)
class Recording:
    """A `proxy.connection.Observer`; also tells `listener`, if there is one, what a worker tells it."""

    listener: Listener | None = None
    accepted_count: int = 0
    not_captured_clients: list[Destination] = field(default_factory=list)
    refusals: list[Connection] = field(default_factory=list)
    closings: list[tuple[Connection, Relay]] = field(default_factory=list)
    lessons: list[tuple[Hashable, ScopeState]] = field(default_factory=list)
    exhaustions: int = 0
    came_back_to: list[Target] = field(default_factory=list)
    over_limit_clients: list[Destination] = field(default_factory=list)
    held_count: int = 0
    not_held_count: int = 0
    answered_count: int = 0
    unclaimed_connections: list[Connection] = field(default_factory=list)

    def accepted(self) -> None:
        self.accepted_count += 1

    def not_captured(self, client: Destination) -> None:
        self.not_captured_clients.append(client)

    def came_back(self, target: Target) -> None:
        self.came_back_to.append(target)

    def over_limit(self, client: Destination) -> None:
        self.over_limit_clients.append(client)

    def refused(self, connection: Connection) -> None:
        self.refusals.append(connection)
        self._one_ended()

    def closed(self, connection: Connection, relay: Relay) -> None:
        self.closings.append((connection, relay))
        self._one_ended()

    def learned(self, scope: Hashable, state: ScopeState, connection: Connection) -> None:
        self.lessons.append((scope, state))

    def held(self) -> None:
        self.held_count += 1

    def not_held(self, count: int) -> None:
        self.not_held_count += count

    def answered(self) -> None:
        self.answered_count += 1
        self._one_ended()

    def unclaimed(self, connection: Connection) -> None:
        self.unclaimed_connections.append(connection)

    def exhausted(self) -> None:
        self.exhaustions += 1
        if self.listener is not None:
            self.listener.pause()

    async def refusal(self) -> Connection:
        """Wait for the first connection that was refused."""
        await until(lambda: self.refusals)
        return self.refusals[0]

    async def closing(self) -> tuple[Connection, Relay]:
        """Wait for the first relay that ended."""
        await until(lambda: self.closings)
        return self.closings[0]

    def _one_ended(self) -> None:
        if self.listener is not None:
            self.listener.connection_ended()
