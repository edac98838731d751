"""Which of several listening sockets on one port a connection comes to.

Owns the program that the kernel asks (SO_ATTACH_REUSEPORT_CBPF, socket(7)). Refuses to own the sockets. Without
a program, or for a number that no socket has, the kernel goes by a hash of its own.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from tnat64d.core.ruleset import HOLD_BITS

_SO_ATTACH_REUSEPORT_CBPF = 51
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF in linux/filter.h
_LOAD_BYTE, _LOAD_HALF_AT_X = 0x30, 0x48  # BPF_LD | BPF_ABS | BPF_B, BPF_LD | BPF_IND | BPF_H
_AND, _SHIFT_LEFT, _SHIFT_RIGHT, _MODULO = 0x54, 0x64, 0x74, 0x94
_TO_X, _RETURN_A = 0x07, 0x16


def follow_source_port(sock: socket.socket, count: int) -> None:
    """Let HOLD_BITS of the source port, modulo `count`, be the number of the socket, in the order of listen().

    For all sockets on the port of `sock`. Raises OSError.
    """
    shift = (HOLD_BITS & -HOLD_BITS).bit_length() - 1
    program = (
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
    code = b"".join(struct.pack("=HBBI", operation, 0, 0, operand) for operation, operand in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    address = struct.pack("HL", len(program), ctypes.addressof(buffer))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, address)
