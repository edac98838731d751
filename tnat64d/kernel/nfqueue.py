"""Packets that a rule hands to this process before they go on: NFQUEUE, for SYNs.

Owns the netlink socket to the queues, what is read of a packet, and the verdict. Refuses to own which packets
come (`core.description`) and what becomes of them (`proxy.syn_gate`).

A packet stays in the kernel, by its number in its queue, until its verdict. When this socket is closed, those
without one are dropped, and rules find no listener. Formats: linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tnat64d.core.marks import Mark
from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError
from tnat64d.kernel import capabilities
from tnat64d.kernel.nfnetlink import NETLINK_NETFILTER, attribute, frame, number
from tnat64d.kernel.original_dst import Destination
from tnat64d.kernel.rtnetlink import HEADER, NLMSG_ERROR

READS_PER_TURN = 64

_SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG = _SUBSYSTEM | 0, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_NLM_F_REQUEST, _NLM_F_ACK = 0x1, 0x4
_CFG_CMD, _CFG_PARAMS, _CFG_QUEUE_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_CMD_BIND = 1
_COPY_PACKET = 2
_FLAG_FAIL_OPEN = 0x1
_FLAG_GSO = 0x4
"""Nothing is checksummed before it is copied."""

_TAKEN = frozenset({errno.EBUSY, errno.EPERM})
"""The second: of another process (nfqnl_recv_config)."""

_NF_DROP, _NF_ACCEPT = 0, 1
_NFQA_VERDICT_HDR, _NFQA_MARK, _NFQA_IFINDEX_INDEV, _NFQA_IFINDEX_OUTDEV, _NFQA_PAYLOAD = (
    2,
    3,
    5,
    6,
    10,
)

_COPIED_BYTES = 128
"""The longest IP header and TCP header are 60 bytes each."""

_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER_BYTES = 4 << 20
_MESSAGE_BYTES = 4096
_SECOND_ATTRIBUTE = 32
_BEGINNING = struct.Struct("!18xH4xI")
_ATTRIBUTE = struct.Struct("=HH")
_INTEGER = struct.Struct("!I")
_TWO_INTEGERS = struct.Struct("!II")
_IP = struct.Struct("!BxHxxxxxxxx4s4s")
_TCP = struct.Struct("!HHI4xBB")
_LAST_NUMBER = 0xFFFFFFFF  # of a packet; after it they begin anew
_VERDICTS_PER_CALL = 512  # of 44 bytes at most; EMSGSIZE would be the end of all (netlink_sendmsg)
_SYN, _FLAGS = 0x02, 0x17  # of these: SYN, ACK, RST, FIN
_inet_ntoa = socket.inet_ntoa

_VERDICT_BODY = attribute(_NFQA_VERDICT_HDR, bytes(_TWO_INTEGERS.size))
_MARK_ATTRIBUTE = number(_NFQA_MARK, 0)
_MARKING_BODY = _VERDICT_BODY + _MARK_ATTRIBUTE
_MARK_HEADER = _MARK_ATTRIBUTE[:-4]
_VERDICT_AND_MARK = struct.Struct("!II4sI")


class Syn(NamedTuple):
    """A packet that waits for its verdict. A tuple, as it takes a third of the time to make, for each connection.

    `quote`: its IP header and the eight bytes after that, as an ICMP error shows them. `sequence`: the initial
    sequence number. `in_device`, `out_device`: interface indexes, 0 for none: a host's own program has no
    `in_device`. `mark`: its fwmark. `is_bare`: a SYN without data (TCP Fast Open, RFC 7413, sends some).
    """

    queue: int
    packet: int
    client: Destination
    destination: Destination
    sequence: int
    quote: bytes
    in_device: int
    out_device: int
    mark: int
    is_bare: bool


class SynQueue:
    """Some queues, read by one socket. Verdicts are collected until `send`.

    `missed_count`: packets that passed unseen because the socket had no room, as far as those after them tell.
    """

    def __init__(self, numbers: Sequence[int], room: int) -> None:
        """Bind the queues `numbers`, each for `room` packets; what comes when one is full passes.

        Raises PrivilegeError without CAP_NET_ADMIN, UnavailableError where the kernel has no NFQUEUE, Tnat64Error
        where another program has one of them.
        """
        self._socket = _netlink_socket()
        self._verdicts: list[bytes] = []
        self._last_packets = dict.fromkeys(numbers, 0)
        self.missed_count = 0
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            self._verdict_to = {queue: _before_verdict(queue, _VERDICT_BODY) for queue in numbers}
            self._marking_verdict_to = {queue: _before_verdict(queue, _MARKING_BODY) for queue in numbers}
            for queue in numbers:
                self._bind(queue, room)
            self._socket.setblocking(False)
            self.send()
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The socket's descriptor, readable when packets have come."""
        return self._socket.fileno()

    def close(self) -> None:
        """Drop the packets without a verdict; those that come now pass."""
        self.send()
        self._socket.close()

    def read(self) -> Iterator[Syn]:
        """The packets that have come, READS_PER_TURN at most. What is no TCP over IPv4 passes at once."""
        receive = self._socket.recv
        for _ in range(READS_PER_TURN):
            try:
                message = receive(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: what there was no room for has passed (NFQA_CFG_F_FAIL_OPEN), and has a number
            if HEADER.unpack_from(message)[1] == _PACKET:
                syn = self._parse(message)
                if syn is not None:
                    yield syn

    def accept(self, syn: Syn, mark: Mark | None = None) -> None:
        """Let it go on its way after `send`, with `mark` unless somebody has marked it under that mask."""
        if mark is None or syn.mark & mark.mask:
            self._give(syn.queue, syn.packet, _NF_ACCEPT)
        else:
            verdict = _VERDICT_AND_MARK.pack(_NF_ACCEPT, syn.packet, _MARK_HEADER, syn.mark | mark.value)
            self._verdicts.append(self._marking_verdict_to[syn.queue] + verdict)

    def drop(self, syn: Syn) -> None:
        """Let it have never been, after `send`."""
        self._give(syn.queue, syn.packet, _NF_DROP)

    def _give(self, queue: int, packet: int, verdict: int) -> None:
        self._verdicts.append(self._verdict_to[queue] + _TWO_INTEGERS.pack(verdict, packet))

    def send(self) -> None:
        """Tell the kernel the verdicts since the last time, as few calls as may be; it takes them one by one."""
        verdicts, self._verdicts = self._verdicts, []
        for start in range(0, len(verdicts), _VERDICTS_PER_CALL):
            try:
                self._socket.send(b"".join(verdicts[start : start + _VERDICTS_PER_CALL]))
            except OSError:
                pass  # no memory in the kernel: the client's next SYN asks again

    def _parse(self, message: bytes) -> Syn | None:
        # The packet's number comes first, the packet itself last (nfqnl_build_packet_message).
        queue, packet = _BEGINNING.unpack_from(message)
        self.missed_count += packet - self._last_packets[queue] - 1 & _LAST_NUMBER
        self._last_packets[queue] = packet
        in_device = out_device = mark = 0
        offset, end = _SECOND_ATTRIBUTE, len(message)
        while offset + 4 <= end:
            length, kind = _ATTRIBUTE.unpack_from(message, offset)
            if kind == _NFQA_PAYLOAD:
                break
            if kind == _NFQA_MARK:
                (mark,) = _INTEGER.unpack_from(message, offset + 4)
            elif kind == _NFQA_IFINDEX_INDEV:
                (in_device,) = _INTEGER.unpack_from(message, offset + 4)
            elif kind == _NFQA_IFINDEX_OUTDEV:
                (out_device,) = _INTEGER.unpack_from(message, offset + 4)
            offset += (length + 3) & ~3
        ip = offset + 4
        try:
            version, size_bytes, source, target = _IP.unpack_from(message, ip)
            ip_bytes = (version & 0xF) << 2
            source_port, port, sequence, data_offset, flags = _TCP.unpack_from(message, ip + ip_bytes)
        except struct.error:
            self._give(queue, packet, _NF_ACCEPT)
            return None
        return Syn(
            queue,
            packet,
            (_inet_ntoa(source), source_port),
            (_inet_ntoa(target), port),
            sequence,
            message[ip : ip + ip_bytes + 8],
            in_device,
            out_device,
            mark,
            flags & _FLAGS == _SYN and size_bytes == ip_bytes + (data_offset >> 4 << 2),
        )

    def _bind(self, queue: int, room: int) -> None:
        command = attribute(_CFG_CMD, struct.pack("!BBH", _CMD_BIND, 0, socket.AF_INET))
        self._configure(queue, command)
        parameters = attribute(_CFG_PARAMS, struct.pack("!IB", _COPIED_BYTES, _COPY_PACKET))
        flags = _FLAG_FAIL_OPEN | _FLAG_GSO
        self._configure(
            queue,
            parameters + number(_CFG_QUEUE_MAXLEN, room) + number(_CFG_MASK, flags) + number(_CFG_FLAGS, flags),
        )

    def _configure(self, queue: int, body: bytes) -> None:
        self._socket.send(frame(_CONFIG, _NLM_F_REQUEST | _NLM_F_ACK, 0, body, queue))
        while True:
            message = self._socket.recv(_MESSAGE_BYTES)
            if HEADER.unpack_from(message)[1] == NLMSG_ERROR:
                break
            # A packet of a queue that was bound before this one: nobody looks at it yet.
            self._parse_and_pass(message)
        code = _error(message)
        if code in _TAKEN:
            raise _taken(queue)
        if code:
            raise _unavailable(code)

    def _parse_and_pass(self, message: bytes) -> None:
        syn = self._parse(message)
        if syn is not None:
            self.accept(syn)


def require_free(numbers: Sequence[int]) -> None:
    """Raises as SynQueue would for `numbers`, but binds none: what comes meanwhile is not lost.

    A queue that nobody has cannot be told how long it may grow: ENODEV (nfqnl_recv_config).
    """
    with _netlink_socket() as sock:
        for queue in numbers:
            question = number(_CFG_QUEUE_MAXLEN, 1)
            sock.send(frame(_CONFIG, _NLM_F_REQUEST | _NLM_F_ACK, 0, question, queue))
            code = _error(sock.recv(_MESSAGE_BYTES))
            if code in _TAKEN:
                raise _taken(queue)
            if code != errno.ENODEV:
                raise _unavailable(code)


def _netlink_socket() -> socket.socket:
    require()
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        raise _unavailable(error.errno or 0) from None
    sock.bind((0, 0))
    return sock


def _error(message: bytes) -> int:
    """The errno that an NLMSG_ERROR tells; 0 for none."""
    (code,) = struct.unpack_from("=i", message, HEADER.size)
    return -int(code)


def _taken(queue: int) -> Tnat64Error:
    return Tnat64Error(
        f"packet queue {queue} is another program's (or another tnat64d's): stop it, or set rules.queue "
        "in tnat64d.toml to the first of eight that are free"
    )


def _before_verdict(queue: int, body: bytes) -> bytes:
    """A message with `body` that gives a verdict in `queue`, up to the verdict itself."""
    return frame(_VERDICT, _NLM_F_REQUEST, 0, body, queue)[: len(_MARK_HEADER) - len(body)]


def require() -> None:
    """Raises PrivilegeError unless this process may hold packets."""
    if not capabilities.has(capabilities.CAP_NET_ADMIN):
        raise PrivilegeError(
            'connect = "honest" in tnat64d.toml needs CAP_NET_ADMIN (or root), to hold packets in a queue'
        )


def _unavailable(code: int) -> Tnat64Error:
    return UnavailableError(f'connect = "honest" needs packet queues of the kernel (NFQUEUE): {os.strerror(code)}')
