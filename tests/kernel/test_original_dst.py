"""The destination that a program meant, from real rules of both modes; and the rights that capture needs."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.bare_host import PORT, ruleset, run_python
from tests.lab import Namespace
from tnat64d.core.settings import Mode
from tnat64d.kernel import original_dst
from tnat64d.kernel.installation import Installation
from tnat64d.kernel.iptables import Iptables

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "setpriv")

DESTINATION = ("198.51.100.10", 443)


@contextmanager
def accepted(host: Namespace, destination: tuple[str, int], mode: Mode) -> Iterator[socket.socket]:
    """What the daemon's listener accepts when a program on `host` connects to `destination`."""
    with host.socket() as listener, host.socket() as client:
        if mode is Mode.TPROXY:
            original_dst.allow_foreign_addresses(listener)
        for sock in (listener, client):
            sock.settimeout(5)
        listener.bind(("127.0.0.1", PORT))
        listener.listen()
        client.connect(destination)
        assert client.getpeername() == destination
        with listener.accept()[0] as server:
            server.sendall(b"hello")
            assert client.recv(5) == b"hello"
            yield server


def test_a_redirected_connection_tells_its_destination(host: Namespace, program: str) -> None:
    host.call(Installation(Iptables(program)).install, ruleset(Mode.REDIRECT))
    with accepted(host, DESTINATION, Mode.REDIRECT) as server:
        told = original_dst.redirected(server)
        assert told is not None
        assert original_dst.parse(told) == DESTINATION


def test_a_diverted_connection_tells_its_destination(host: Namespace, program: str) -> None:
    host.call(Installation(Iptables(program)).install, ruleset(Mode.TPROXY))
    with accepted(host, DESTINATION, Mode.TPROXY) as server:
        told = original_dst.diverted(server)
        assert told is not None
        assert original_dst.parse(told) == DESTINATION


def test_without_conntrack_nothing_is_told(host: Namespace) -> None:
    with accepted(host, ("127.0.0.1", PORT), Mode.REDIRECT) as server:
        assert original_dst.redirected(server) is None


@pytest.mark.parametrize("mode", Mode)
def test_a_connection_to_the_listener_itself_tells_the_listener(host: Namespace, mode: Mode) -> None:
    host.call(Installation(Iptables("iptables-nft")).install, ruleset(mode))
    ask: original_dst.DestinationOf = original_dst.diverted if mode is Mode.TPROXY else original_dst.redirected
    with accepted(host, ("127.0.0.1", PORT), mode) as server:
        told = ask(server)
        assert told is not None
        assert original_dst.parse(told) == ("127.0.0.1", PORT)


def test_a_socket_that_is_gone_tells_nothing(host: Namespace) -> None:
    sock = host.socket()
    sock.close()
    assert original_dst.redirected(sock) is None
    assert original_dst.diverted(sock) is None


def test_a_sockaddr_is_read_in_network_byte_order() -> None:
    raw = struct.pack("=H", socket.AF_INET) + bytes([0x01, 0xBB, 198, 51, 100, 10]) + bytes(8)
    assert original_dst.parse(raw) == ("198.51.100.10", 443)


def test_root_may_mark_and_accept_for_foreign_addresses(host: Namespace) -> None:
    host.call(original_dst.require_marking, 0x6464)
    with host.socket() as listener:
        original_dst.allow_foreign_addresses(listener)
        assert listener.getsockopt(socket.SOL_IP, original_dst.IP_TRANSPARENT) == 1


@pytest.mark.netns
@pytest.mark.parametrize("mark", [1, 0x6464, 0x80000000, 0xFFFFFFFF])
def test_every_mark_of_32_bits_can_be_set(mark: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        original_dst.set_mark(sock, mark)
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK, 4), sys.byteorder) == mark


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("require_marking(0x6464)", "marking the daemon's own IPv4 connections (SO_MARK) needs CAP_NET_RAW"),
        ("allow_foreign_addresses(socket.socket())", "TPROXY mode needs CAP_NET_RAW"),
    ],
)
def test_without_either_capability_it_says_which(host: Namespace, call: str, expected: str) -> None:
    code = f"""
import socket
from tnat64d.errors import PrivilegeError
from tnat64d.kernel.original_dst import allow_foreign_addresses, require_marking
try:
    {call}
except PrivilegeError as error:
    print(error)
"""
    assert expected in run_python(host, code, wrapper=["setpriv", "--bounding-set=-net_admin,-net_raw", "--"])


@pytest.mark.parametrize("capability", ["net_raw", "net_admin"])
def test_either_capability_is_enough(host: Namespace, capability: str) -> None:
    code = """
import socket
from tnat64d.kernel.original_dst import allow_foreign_addresses, require_marking
require_marking(0x6464)
allow_foreign_addresses(socket.socket())
"""
    run_python(host, code, wrapper=["setpriv", f"--bounding-set=-all,+{capability}", "--"])
