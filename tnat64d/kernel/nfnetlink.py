"""Netfilter's netlink messages, and batches of those of nf_tables over one socket.

Owns the wire: attributes, messages, the batch, and the kernel's answer to it. Refuses to own what the messages
say (`kernel.nftables`). A table made with NFT_TABLE_F_OWNER lives exactly as long as the `NfTables` that made it.

Why not pyroute2: its nf_tables support knows neither the owner flag nor most expressions (its own words: very
basic). Formats: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from tnat64d.errors import PrivilegeError, Tnat64Error
from tnat64d.kernel.rtnetlink import HEADER, attributes

NETLINK_NETFILTER = 12
SUBSYSTEM = 10
"""NFNL_SUBSYS_NFTABLES."""

NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = 0, 1, 2
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN, NFT_MSG_NEWRULE, NFT_MSG_GETRULE = 3, 4, 6, 7
NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM = 9, 12, 13
NFT_MSG_DELSETELEM, NFT_MSG_NEWOBJ, NFT_MSG_GETOBJ = 14, 18, 19
NFT_TABLE_F_OWNER = 0x2

_NFTA_TABLE_NAME, _NFTA_TABLE_FLAGS = 1, 2
_BATCH_BEGIN, _BATCH_END = 16, 17
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
_NLM_F_CREATE, _NLM_F_APPEND = 0x400, 0x800
_NLA_F_NESTED = 0x8000
_NETLINK_CAP_ACK, _SOL_NETLINK = 10, 270

_SO_RCVBUFFORCE = 33
_ANSWER_SIZE_BYTES = 2048
"""What the kernel counts for one answer in the receive buffer, and more; every message has one (ENOBUFS)."""

_DUMP_ATTEMPTS = 5
"""Where others change rules meanwhile."""

_NFGENMSG = struct.Struct("!BBH")

CREATE = _NLM_F_CREATE
APPEND = _NLM_F_CREATE | _NLM_F_APPEND
NONRECURSIVE = 0x100
"""NLM_F_NONREC: the kernel refuses to delete what still holds anything."""


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """A 32-bit number in network byte order."""
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def nested(kind: int, *attributes: bytes) -> bytes:
    """Attributes within one."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def frame(kind: int, flags: int, sequence: int, body: bytes, resource: int = 0) -> bytes:
    """One message of a subsystem of netfilter; `kind` has the subsystem in its upper byte."""
    payload = _NFGENMSG.pack(socket.AF_INET, 0, resource) + body
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def _refusal(code: int) -> Tnat64Error:
    if code in (errno.EPERM, errno.EACCES):
        return PrivilegeError("nf_tables needs root (CAP_NET_ADMIN)")
    error = Tnat64Error(f"nf_tables refused: {os.strerror(code)}")
    error.__cause__ = OSError(code, os.strerror(code))
    return error


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a batch; `flags` beyond those that every request has."""

    kind: int
    attributes: tuple[bytes, ...]
    flags: int = 0


class NfTables:
    """A netlink socket to nf_tables; the owner of the tables that are made over it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._sequence = 0

    def __enter__(self) -> NfTables:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """The kernel takes away every table that this socket owns."""
        self._socket.close()

    def commit(self, messages: Sequence[Message]) -> None:
        """Do all of `messages` or none.

        Raises PrivilegeError without CAP_NET_ADMIN, Tnat64Error (its cause an OSError) with the first refusal.
        """
        begin = self._sequence + 1
        parts = [self._pack(_BATCH_BEGIN, _NLM_F_REQUEST, b"", resource=SUBSYSTEM)]
        parts += [
            self._pack(
                SUBSYSTEM << 8 | message.kind,
                _NLM_F_REQUEST | _NLM_F_ACK | message.flags,
                b"".join(message.attributes),
            )
            for message in messages
        ]
        parts.append(self._pack(_BATCH_END, _NLM_F_REQUEST, b"", resource=SUBSYSTEM))
        batch = b"".join(parts)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(1 << 18, 2 * len(batch)))
        with suppress(PermissionError):  # the batch will be refused, too
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ANSWER_SIZE_BYTES * len(messages))
        self._socket.send(batch)
        code = self._first_error(begin, len(messages))
        if code:
            raise _refusal(code)

    def has_table(self, name: str) -> bool:
        """Whether the table `name` of family ip exists. Raises PrivilegeError, Tnat64Error."""
        return self.get(NFT_MSG_GETTABLE, text(_NFTA_TABLE_NAME, name)) is not None

    def has_owned_table(self, name: str) -> bool:
        """Whether it exists, and lives as long as some process. Raises as `has_table`."""
        body = self.get(NFT_MSG_GETTABLE, text(_NFTA_TABLE_NAME, name))
        (flags,) = struct.unpack("!I", dict(attributes(body or b"", 0)).get(_NFTA_TABLE_FLAGS, bytes(4)))
        return bool(flags & NFT_TABLE_F_OWNER)

    def get(self, kind: int, *attributes: bytes) -> bytes | None:
        """The attributes of the one thing of family ip that the request `kind` names; None if it does not exist.

        Raises PrivilegeError, Tnat64Error.
        """
        self._socket.send(self._pack(SUBSYSTEM << 8 | kind, _NLM_F_REQUEST, b"".join(attributes)))
        while True:
            data = self._socket.recv(1 << 16)
            _, answer, _, sequence, _ = HEADER.unpack_from(data)
            if sequence != self._sequence:
                continue
            if answer != _NLMSG_ERROR:
                return data[HEADER.size + _NFGENMSG.size :]
            (code,) = struct.unpack_from("=i", data, HEADER.size)
            if -code != errno.ENOENT:
                raise _refusal(-code)
            return None

    def dump(self, kind: int, *attributes: bytes) -> list[bytes]:
        """The attributes of each message that the kernel answers to the request `kind` of family ip.

        Raises PrivilegeError, Tnat64Error; also where the ruleset does not stay the same for so long.
        """
        for _ in range(_DUMP_ATTEMPTS):
            request = self._pack(SUBSYSTEM << 8 | kind, _NLM_F_REQUEST | _NLM_F_DUMP, b"".join(attributes))
            self._socket.send(request)
            found, is_whole = self._dumped(self._sequence)
            if is_whole:
                return found
        raise Tnat64Error("nf_tables changes faster than it can be read")

    def _dumped(self, request: int) -> tuple[list[bytes], bool]:
        found: list[bytes] = []
        is_whole = True
        while True:
            data = self._socket.recv(1 << 18)
            offset = 0
            while offset + HEADER.size <= len(data):
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
                body = data[offset + HEADER.size : offset + length]
                offset += (length + 3) & ~3
                if sequence != request:
                    continue
                is_whole = is_whole and not flags & _NLM_F_DUMP_INTR
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    (code,) = struct.unpack_from("=i", body)
                    if -code == errno.EINTR:
                        is_whole = False
                    elif code:
                        raise _refusal(-code)
                    return found, is_whole
                found.append(body[_NFGENMSG.size :])

    def _first_error(self, begin: int, count: int) -> int:
        """The errno of the first message that the kernel refused, 0 if it took them all."""
        answered = first = 0
        while answered < count:
            data = self._socket.recv(1 << 16)
            offset = 0
            while offset + HEADER.size <= len(data):
                length, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
                if kind == _NLMSG_ERROR and sequence >= begin:
                    code: int = struct.unpack_from("=i", data, offset + HEADER.size)[0]
                    first = first or -code
                    answered += 1
                    if code and sequence == begin:  # the batch itself was refused: no other answer will come
                        return first
                offset += (length + 3) & ~3
        return first

    def _pack(self, kind: int, flags: int, body: bytes, resource: int = 0) -> bytes:
        self._sequence += 1
        return frame(kind, flags, self._sequence, body, resource)
