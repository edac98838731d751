"""The listening sockets, in a namespace where every port is free."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.lab import IdealNat64Lab, Namespace
from tnat64d.core.settings import Mode, Rules, Scope, Settings
from tnat64d.daemon.listening import LOOPBACK, address, listen
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.original_dst import IP_TRANSPARENT

PORT = 6464


@pytest.fixture
def host(ideal_lab: IdealNat64Lab) -> Namespace:
    """A namespace of its own."""
    return ideal_lab.client


@contextlib.contextmanager
def listening(host: Namespace, count: int, mode: Mode = Mode.REDIRECT) -> Iterator[list[socket.socket]]:
    sockets = host.call(listen, LOOPBACK, PORT, count, mode, 60)
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize(
    ("mode", "gateway", "expected"),
    [
        (Mode.REDIRECT, (), LOOPBACK),
        (Mode.REDIRECT, ("docker0",), "0.0.0.0"),
        (Mode.TPROXY, ("docker0",), LOOPBACK),
    ],
)
def test_only_what_redirect_sends_to_a_gateways_address_needs_a_listener_there(
    mode: Mode, gateway: tuple[str, ...], expected: str
) -> None:
    assert address(Settings(rules=Rules(mode=mode), scope=Scope(gateway=gateway))) == expected


def test_the_sockets_share_port_and_connections(host: Namespace) -> None:
    with listening(host, 3) as sockets:
        assert {sock.getsockname() for sock in sockets} == {("127.0.0.1", PORT)}
        clients = [host.socket() for _ in range(100)]
        for client in clients:
            client.connect(("127.0.0.1", PORT))
        for sock in sockets:
            sock.accept()[0].close()  # each has some
        for client in clients:
            client.close()


def test_what_a_connection_inherits(host: Namespace) -> None:
    with listening(host, 1) as (listener,), host.socket() as client:
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


@pytest.mark.parametrize(("mode", "transparent"), [(Mode.REDIRECT, 0), (Mode.TPROXY, 1)])
def test_only_tproxy_takes_foreign_addresses(host: Namespace, mode: Mode, transparent: int) -> None:
    with listening(host, 2, mode) as sockets:
        assert [sock.getsockopt(socket.SOL_IP, IP_TRANSPARENT) for sock in sockets] == [transparent] * 2


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_port_that_is_taken_is_named(host: Namespace, address: str, count: int) -> None:
    with host.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((address, PORT))
        other.listen()
        with pytest.raises(Tnat64Error, match=rf"port {PORT} on 127.0.0.1 is taken by another program"):
            host.call(listen, LOOPBACK, PORT, count, Mode.REDIRECT, 60)


def test_a_second_daemon_does_not_get_a_share_of_the_connections(host: Namespace) -> None:
    with listening(host, 2), pytest.raises(Tnat64Error, match="is taken"):
        host.call(listen, LOOPBACK, PORT, 2, Mode.REDIRECT, 60)


def test_the_port_can_be_taken_again_at_once(host: Namespace) -> None:
    with listening(host, 1) as (listener,), host.socket() as client:
        client.connect(listener.getsockname())
        listener.accept()[0].close()  # leaves TIME_WAIT behind
    with listening(host, 1):
        pass
