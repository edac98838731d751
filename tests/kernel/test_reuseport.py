"""Which listening socket a connection comes to."""

from __future__ import annotations

import socket

import pytest

from tests.lab import Namespace
from tnat64d.core.ruleset import HOLD_BITS
from tnat64d.kernel.reuseport import follow_source_port

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_source_port_tells_the_socket_in_the_order_of_listening(host: Namespace, count: int) -> None:
    listeners = [host.socket() for _ in range(count)]
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 5000))
        listener.listen()
        listener.settimeout(5)
    follow_source_port(listeners[0], count)
    for port in range(40000, 40032):
        with host.socket() as client:
            client.bind(("127.0.0.1", port))
            client.connect(("127.0.0.1", 5000))
            accepted, address = listeners[((port & HOLD_BITS) >> 1) % count].accept()
            accepted.close()
            assert address[1] == port
    for listener in listeners:
        listener.close()


def test_a_socket_that_shares_its_port_with_nobody_cannot_be_told(host: Namespace) -> None:
    with host.socket() as listener:
        listener.bind(("127.0.0.1", 5000))
        listener.listen()
        with pytest.raises(OSError, match="Invalid argument"):
            follow_source_port(listener, 2)
