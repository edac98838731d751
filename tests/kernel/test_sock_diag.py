"""Whether a program still waits in connect(), asked of a real kernel."""

from __future__ import annotations

import pytest

from tests.kernel.bare_host import ip
from tests.lab import Namespace
from tnat64d.kernel.sock_diag import SocketTable

pytestmark = pytest.mark.netns

NOWHERE = ("198.51.100.10", 443)


@pytest.fixture
def silent(host: Namespace) -> Namespace:
    """Its SYNs to NOWHERE get lost."""
    ip(host, "addr add 192.0.0.2/32 dev lo", "route add default dev lo src 192.0.0.2")
    return host


@pytest.mark.parametrize("device", [0, 1])
def test_a_socket_that_connects_is_seen_until_it_is_closed(silent: Namespace, device: int) -> None:
    table = silent.call(SocketTable)
    with silent.socket() as client:
        client.setblocking(False)
        client.connect_ex(NOWHERE)
        address = client.getsockname()
        assert table.is_connecting(address, NOWHERE, device)
        assert not table.is_connecting((address[0], address[1] ^ 1), NOWHERE, device)
        assert not table.is_connecting(address, ("198.51.100.10", 444), device)
    assert not table.is_connecting(address, NOWHERE, device)
    table.close()


def test_a_socket_that_is_bound_to_an_interface_is_seen_by_it(silent: Namespace) -> None:
    table = silent.call(SocketTable)
    with silent.socket() as client:
        client.setsockopt(1, 25, b"lo\0")  # SO_BINDTODEVICE
        client.setblocking(False)
        client.connect_ex(NOWHERE)
        assert table.is_connecting(client.getsockname(), NOWHERE, 1)
    table.close()


def test_a_connected_socket_does_not_connect_any_more(silent: Namespace) -> None:
    table = silent.call(SocketTable)
    with silent.socket() as server, silent.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        assert not table.is_connecting(client.getsockname(), server.getsockname(), 0)
    table.close()


def test_a_listener_on_the_port_of_a_socket_that_is_gone_is_not_taken_for_it(silent: Namespace) -> None:
    table = silent.call(SocketTable)
    with silent.socket() as server:
        server.bind(("192.0.0.2", 0))
        server.listen()
        assert not table.is_connecting(server.getsockname(), NOWHERE, 0)
    table.close()


def test_the_other_end_of_a_connection_is_there_before_anybody_accepts_it(silent: Namespace) -> None:
    table = silent.call(SocketTable)
    with silent.socket() as server, silent.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert not table.has(server.getsockname(), ("127.0.0.1", 9))
        client.connect(server.getsockname())
        assert table.has(server.getsockname(), client.getsockname())
        assert not table.has(("127.0.0.1", 9), client.getsockname())
    table.close()


def test_the_answer_to_another_question_is_not_taken_for_this_ones(silent: Namespace) -> None:
    table = silent.call(SocketTable)
    with silent.socket() as client:
        client.setblocking(False)
        client.connect_ex(NOWHERE)
        address = client.getsockname()
        table._ask(address, NOWHERE, 0)
        client.close()
        assert not table.is_connecting(address, NOWHERE, 0)
    table.close()


def test_without_an_answer_it_does_not_wait(silent: Namespace) -> None:
    table = silent.call(SocketTable)
    with pytest.raises(BlockingIOError):
        table._answer()
    table.close()
