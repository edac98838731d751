"""Which of several listening sockets on one port a connection comes to.

Owns the program that the kernel asks (SO_ATTACH_REUSEPORT_CBPF, socket(7)). Refuses to own the sockets. Without
a program, or for a number that no socket has, the kernel goes by a hash of its own.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

from tnat64d.core.marks import Mark
from tnat64d.core.ruleset import HOLD_BITS

_SO_ATTACH_REUSEPORT_CBPF = 51
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF in linux/filter.h
_MARK = 0xFFFFF000 + 20  # SKF_AD_OFF + SKF_AD_MARK
_LOAD_WORD, _LOAD_BYTE, _LOAD_HALF_AT_X = 0x20, 0x30, 0x48  # BPF_LD | BPF_ABS | BPF_W or BPF_B, BPF_IND | BPF_H
_AND, _SHIFT_LEFT, _SHIFT_RIGHT, _MODULO = 0x54, 0x64, 0x74, 0x94
_JUMP_IF_EQUAL = 0x15
_TO_X, _RETURN, _RETURN_A = 0x07, 0x06, 0x16


def follow_worker(sock: socket.socket, count: int, marks: Sequence[Mark]) -> None:
    """Let the mark tell which of `count` sockets, in the order of listen(): the first of `marks` the first one, ….

    Where it tells none: HOLD_BITS of the source port, modulo `count`. That alone would not do, as NAT may have
    changed the port since the SYN was held. For all sockets on the port of `sock`. Raises OSError.
    """
    shift = (HOLD_BITS & -HOLD_BITS).bit_length() - 1
    by_mark: list[tuple[int, ...]] = []
    for number, mark in enumerate(marks[:count]):
        by_mark += (
            (_LOAD_WORD, _MARK),
            (_AND, mark.mask),
            (_JUMP_IF_EQUAL, mark.value, 0, 1),
            (_RETURN, number),
        )
    by_port = (
        (_LOAD_BYTE, _NETWORK_HEADER),  # the length of the IP header
        (_AND, 0x0F),
        (_SHIFT_LEFT, 2),
        (_TO_X, 0),
        (_LOAD_HALF_AT_X, _NETWORK_HEADER),  # the source port comes first in the TCP header
        (_AND, HOLD_BITS),
        (_SHIFT_RIGHT, shift),
        (_MODULO, count),
        (_RETURN_A, 0),
    )
    program = (*by_mark, *by_port)
    code = b"".join(
        struct.pack("=HBBI", operation, *(jumps or (0, 0)), operand) for operation, operand, *jumps in program
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    address = struct.pack("HL", len(program), ctypes.addressof(buffer))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, address)
