"""A dialer at work where both ways lead to servers of the test's; fixtures that make it are in conftest.py."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

from tests.proxy.observer import Recording
from tests.proxy.peer import Peer, descriptors_left, raw, tcp_pair
from tnat64d.core.policy import StickyMemory
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.destination import Destinations
from tnat64d.proxy.dialer import Dialer

PORT = 7000
MARK = 0x6464
SOON_S = 0.05
LONG_S = 30.0


@dataclass(eq=False)
class Office:
    """A dialer, and the servers at the ends of both ways."""

    dialer: Dialer
    memory: StickyMemory
    observer: Recording
    destinations: Destinations
    servers: dict[str, socket.socket] = field(default_factory=dict)
    peers: list[Peer] = field(default_factory=list)

    def serve(self, *ways: str, backlog: int = 16) -> None:
        """Listen at the end of these ways; the others refuse."""
        for way in ways:
            family = socket.AF_INET if way == "ipv4" else socket.AF_INET6
            server = socket.create_server(("", PORT), family=family, backlog=backlog)
            server.setblocking(False)
            self.servers[way] = server

    def call(self, address: str, descriptors: int | None = None) -> tuple[Peer, Connection]:
        """A client whose connection to `address` was captured; only so many `descriptors` are left then."""
        client, captured = tcp_pair()
        self.peers.append(Peer(client))
        target = self.destinations.resolve((address, PORT))
        assert target is not None
        connection = Connection(client.getsockname(), target, asyncio.get_running_loop().time())
        with nullcontext() if descriptors is None else descriptors_left(descriptors):
            self.dialer.begin(raw(captured), connection)
        return self.peers[-1], connection

    async def accept(self, way: str) -> Peer:
        """The server's end of a connection that came by `way`."""
        async with asyncio.timeout(5):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.servers[way])
        self.peers.append(Peer(sock))
        return self.peers[-1]

    def nobody_came(self, way: str) -> bool:
        """Whether no connection waits at the server at the end of `way`."""
        try:
            sock, _ = self.servers[way].accept()
        except BlockingIOError:
            return True
        sock.close()
        return False


MakeOffice = Callable[..., Office]
