"""Which listening socket a connection comes to."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.lab import Namespace
from tnat64d.core.marks import Mark, worker_marks
from tnat64d.core.ruleset import HOLD_BITS
from tnat64d.core.settings import Rules
from tnat64d.kernel.reuseport import follow_worker

pytestmark = pytest.mark.netns

MARKS = worker_marks(Rules())


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("marks", [MARKS, ()])
def test_the_source_port_tells_the_socket_in_the_order_of_listening(
    host: Namespace, count: int, marks: tuple[Mark, ...]
) -> None:
    listeners = [host.socket() for _ in range(count)]
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 5000))
        listener.listen()
        listener.settimeout(5)
    follow_worker(listeners[0], count, marks)
    for port in range(40000, 40032):
        with host.socket() as client:
            client.bind(("127.0.0.1", port))
            client.connect(("127.0.0.1", 5000))
            accepted, address = listeners[((port & HOLD_BITS) >> 1) % count].accept()
            accepted.close()
            assert address[1] == port
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("mask", [0xFFFF, 0xFFFFFF00])
def test_a_worker_that_the_mark_tells_comes_before_the_port(host: Namespace, mask: int) -> None:
    marks = worker_marks(Rules(mark=mask & -mask, mark_mask=mask))
    listeners = [host.socket() for _ in range(3)]
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 5000))
        listener.listen()
        listener.settimeout(5)
    follow_worker(listeners[0], 3, marks)
    workers = [(mark.value | mask, number) for number, mark in enumerate(marks[:3])]
    nobodys = [(mark, 1) for mark in (marks[3].value, marks[0].mask, marks[0].mask & -marks[0].mask)]
    for turn, (mark, expected) in enumerate(workers + nobodys):
        with host.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
            client.bind(("127.0.0.1", 40002 + 16 * turn))
            client.connect(("127.0.0.1", 5000))
            listeners[expected].accept()[0].close()
    for listener in listeners:
        listener.close()


def test_a_socket_that_shares_its_port_with_nobody_cannot_be_told(host: Namespace) -> None:
    with host.socket() as listener:
        listener.bind(("127.0.0.1", 5000))
        listener.listen()
        with pytest.raises(OSError, match="Invalid argument"):
            follow_worker(listener, 2, MARKS)
