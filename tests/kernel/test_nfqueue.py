"""Packets in a real queue: what is told of them, and what a verdict does."""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.kernel.bare_host import ip, run_python
from tests.lab import Namespace
from tnat64d.core.marks import Mark
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.nfqueue import Syn, SynQueue, require_free

pytestmark = pytest.mark.netns("iptables-nft", "setpriv")

QUEUE = 40
DESTINATION = ("198.51.100.10", 443)
OPTIONS = "-p tcp --syn -d 198.51.100.0/24 -j NFQUEUE --queue-bypass --queue-num"


@pytest.fixture
def queueing(host: Namespace) -> Namespace:
    """Its SYNs to DESTINATION are queued, then redirected to port 5000."""
    ip(host, "addr add 192.0.0.2/32 dev lo", "route add default dev lo src 192.0.0.2")
    for table, rule in (("mangle", f"{OPTIONS} {QUEUE}"), ("nat", "-p tcp -j REDIRECT --to-ports 5000")):
        host.run(["iptables-nft", "-t", table, "-A", "OUTPUT", *rule.split()])
    return host


@contextmanager
def connecting(host: Namespace, fast_open: bytes = b"") -> Iterator[socket.socket]:
    """A program in connect()."""
    with host.socket() as sock:
        sock.setblocking(False)
        if fast_open:
            sock.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
        assert sock.connect_ex(DESTINATION) in (errno.EINPROGRESS, 0)
        if fast_open:
            sock.send(fast_open)
        yield sock


def connect_error(sock: socket.socket, within_s: float = 5.0) -> int | None:
    """What connect() came to; None if it still waits."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if poll.poll(within_s * 1000) else None


def read_one(queue: SynQueue) -> Syn:
    syns: list[Syn] = []
    while not syns:  # what the kernel says of a verdict is no packet
        assert select.select([queue], [], [], 5)[0]
        syns = list(queue.read())
    (syn,) = syns
    return syn


def test_a_syn_tells_who_connects_where(queueing: Namespace) -> None:
    queue = queueing.call(SynQueue, [QUEUE], 10)
    with connecting(queueing) as client:
        syn = read_one(queue)
        assert (syn.queue, syn.destination, syn.client) == (QUEUE, DESTINATION, client.getsockname())
        assert (syn.in_device, syn.out_device) == (0, 1)
        assert syn.is_bare
        assert (syn.quote[0], len(syn.quote)) == (0x45, 28)
        assert int.from_bytes(syn.quote[20:22]) == client.getsockname()[1]
        assert int.from_bytes(syn.quote[24:28]) == syn.sequence
    queue.close()


def test_an_accepted_syn_goes_on_through_the_rules_that_follow(queueing: Namespace) -> None:
    queue = queueing.call(SynQueue, [QUEUE], 10)
    with queueing.socket() as listener, connecting(queueing) as client:
        listener.bind(("127.0.0.1", 5000))
        listener.listen()
        assert connect_error(client, 0.1) is None
        queue.accept(read_one(queue))
        assert connect_error(client, 0.1) is None, "its verdict was not sent yet"
        queue.send()
        assert connect_error(client) == 0
    queue.close()


@pytest.mark.parametrize(("mark", "marked"), [(0, 0x20000000), (0x5, 0x20000005), (0x10000000, 0x10000000)])
def test_an_accepted_syn_is_marked_unless_somebody_else_has(queueing: Namespace, mark: int, marked: int) -> None:
    counting = f"-t nat -I OUTPUT -p tcp -m mark --mark {marked} -j DNAT --to-destination 127.0.0.1:5001"
    queueing.run(["iptables-nft", *counting.split()])
    queue = queueing.call(SynQueue, [QUEUE], 10)
    with queueing.socket() as listener, queueing.socket() as client:
        listener.bind(("127.0.0.1", 5001))
        listener.listen()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        client.setblocking(False)
        client.connect_ex(DESTINATION)
        syn = read_one(queue)
        assert syn.mark == mark
        queue.accept(syn, Mark(0x20000000, 0xF0000000))
        queue.send()
        assert connect_error(client) == 0
    queue.close()


def test_a_dropped_syn_was_never_there_and_the_next_one_comes(queueing: Namespace) -> None:
    queue = queueing.call(SynQueue, [QUEUE], 10)
    with connecting(queueing):
        first = read_one(queue)
        queue.drop(first)
        queue.send()
        again = read_one(queue)
        assert (again.client, again.sequence) == (first.client, first.sequence)
        assert again.packet != first.packet
    queue.close()


def test_verdicts_that_are_sent_together_are_each_heard(queueing: Namespace) -> None:
    queue = queueing.call(SynQueue, [QUEUE], 10)
    with queueing.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 5000))
        listener.listen()
        clients, syns = [], []
        for _ in range(4):
            clients.append(stack.enter_context(connecting(queueing)))
            syns.append(read_one(queue))
        queue.drop(syns[1])
        for syn in syns:
            queue.accept(syn, Mark(0x20000000, 0xF0000000) if syn is syns[2] else None)
        queue.send()  # for the second a verdict of which the kernel knows nothing any more, amid the others
        assert [connect_error(clients[number]) for number in (0, 2, 3)] == [0, 0, 0]
        assert read_one(queue).client == syns[1].client
    queue.close()


def test_any_number_of_verdicts_is_heard(queueing: Namespace) -> None:
    queue = queueing.call(SynQueue, [QUEUE], 10)
    with connecting(queueing) as client:
        syn = read_one(queue)
        for number in range(10_000, 20_000):
            queue.drop(syn._replace(packet=number))
        queue.accept(syn)
        queue.send()
        assert connect_error(client) == errno.ECONNREFUSED
    queue.close()


def test_a_syn_with_data_is_not_bare(queueing: Namespace) -> None:
    queueing.write_sysctl("net.ipv4.tcp_fastopen", 0x5)  # client; data without a cookie
    queue = queueing.call(SynQueue, [QUEUE], 10)
    with connecting(queueing, fast_open=b"early"):
        assert not read_one(queue).is_bare
    queue.close()


def test_without_a_reader_a_syn_passes(queueing: Namespace) -> None:
    with connecting(queueing) as client:
        assert connect_error(client) == errno.ECONNREFUSED  # nobody listens on port 5000
    queue = queueing.call(SynQueue, [QUEUE], 10)
    queue.close()
    with connecting(queueing) as client:
        assert connect_error(client) == errno.ECONNREFUSED


def test_what_a_full_queue_cannot_take_passes(queueing: Namespace) -> None:
    queue = queueing.call(SynQueue, [QUEUE], 1)
    with connecting(queueing) as first, connecting(queueing) as second:
        assert connect_error(second) == errno.ECONNREFUSED
        assert connect_error(first, 0.0) is None
    queue.close()


def test_what_passes_for_want_of_room_in_the_socket_is_counted(queueing: Namespace) -> None:
    queue = queueing.call(SynQueue, [QUEUE], 1000)
    queue._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least: room for a few
    with ExitStack() as stack:
        clients = [stack.enter_context(connecting(queueing)) for _ in range(20)]
        passed_count = [connect_error(client, 0.1) for client in clients].count(errno.ECONNREFUSED)
        held_count = len(list(queue.read()))
        assert (passed_count + held_count, queue.missed_count) == (20, 0)
        assert 0 < passed_count < 20
        stack.enter_context(connecting(queueing))
        read_one(queue)
        assert queue.missed_count == passed_count
    queue.close()


def test_a_queue_of_another_program_is_told(queueing: Namespace) -> None:
    queue = queueing.call(SynQueue, [QUEUE], 1)
    with pytest.raises(Tnat64Error, match=r"packet queue 40 is another program's .*rules\.queue in tnat64d\.toml"):
        queueing.call(SynQueue, [QUEUE - 1, QUEUE], 1)
    queue.close()
    queueing.call(SynQueue, [QUEUE - 1, QUEUE], 1).close()


def test_queues_can_be_asked_for_without_a_syn_being_lost(queueing: Namespace) -> None:
    with queueing.call(_raw_listener) as listener:
        asking = threading.Event()

        def ask() -> None:
            while not asking.is_set():
                require_free([QUEUE])

        thread = threading.Thread(target=queueing.call, args=(ask,))
        thread.start()
        try:
            for _ in range(300):
                with connecting(queueing) as client:
                    assert connect_error(client, 0.9) == 0, "it would be sent again after 1 s"
                listener.accept()[0].close()
        finally:
            asking.set()
            thread.join()


def _raw_listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 5000))


def test_a_queue_of_another_program_is_told_without_binding(queueing: Namespace) -> None:
    queueing.call(require_free, [QUEUE - 1, QUEUE])
    queue = queueing.call(SynQueue, [QUEUE], 1)
    with pytest.raises(Tnat64Error, match=r"packet queue 40 is another program's"):
        queueing.call(require_free, [QUEUE - 1, QUEUE])
    queue.close()
    queueing.call(require_free, [QUEUE - 1, QUEUE])


def test_without_the_capability_it_says_so(host: Namespace) -> None:
    code = """
from tnat64d.errors import PrivilegeError
from tnat64d.kernel.nfqueue import SynQueue
try:
    SynQueue([1], 1)
except PrivilegeError as error:
    print(error)
"""
    said = run_python(host, code, wrapper=["setpriv", "--bounding-set=-net_admin"])
    assert said == 'connect = "honest" in tnat64d.toml needs CAP_NET_ADMIN (or root), to hold packets in a queue\n'


def test_reading_an_empty_queue_returns_at_once(host: Namespace) -> None:
    queue = host.call(SynQueue, [QUEUE], 1)
    started = time.monotonic()
    assert list(queue.read()) == []
    assert time.monotonic() - started < 1
    queue.close()
