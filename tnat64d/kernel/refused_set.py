"""The set of destinations that the kernel itself refuses for a while, and the counter of those refusals.

Owns the messages that make, fill, empty and read them, and their text. Refuses to own the table that they are in
(`kernel.nftables`) and what comes into the set (`daemon.supervisor`). The kernel forgets each element by itself.

The counter is an object of its own, not a part of the rules: what it says is no change of these.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Protocol

from tnat64d.core.ruleset import MAX_REFUSED, REFUSED
from tnat64d.kernel.nfnetlink import (
    CREATE,
    NFT_MSG_DELSETELEM,
    NFT_MSG_GETOBJ,
    NFT_MSG_GETSETELEM,
    NFT_MSG_NEWOBJ,
    NFT_MSG_NEWSET,
    NFT_MSG_NEWSETELEM,
    Message,
    NfTables,
    attribute,
    nested,
    number,
    text,
)
from tnat64d.kernel.rtnetlink import attributes

Destination = tuple[str, int]
"""An IPv4 address and a port."""

_NFT_SET_TIMEOUT = 0x10
_ADDRESS_AND_PORT = 7 << 6 | 13
"""TYPE_IPADDR and TYPE_INET_SERVICE of nft(8) (its include/datatype.h), by which it lists the elements."""

_KEY = struct.Struct("!4sH2x")
"""Each part fills whole registers of 4 bytes."""

_NUMBER = struct.Struct("!Q")
NFT_OBJECT_COUNTER = 1
_OBJ_DATA, _COUNTER_PACKETS = 4, 2
_ELEM_LIST, _ELEM_EXPIRATION = 3, 5
"""NFTA_* of linux/netfilter/nf_tables.h."""


class RefusesDestinations(Protocol):
    """A table with the set. Both raise PrivilegeError, and Tnat64Error (there is none, or it is full)."""

    def refuse(self, destinations: Iterable[Destination]) -> None:
        """Refuse each for as long as the ruleset says; of one that is refused already the time goes on."""

    def forget_refused(self) -> None:
        """Refuse none any more."""


def describe(timeout_ms: int) -> tuple[str, ...]:
    """The lines within the set, as nft(8) prints them."""
    return ("type ipv4_addr . inet_service", f"size {MAX_REFUSED}", f"timeout {_duration(timeout_ms)}")


def _duration(time_ms: int) -> str:
    """1h, 1m30s, 1s500ms."""
    shown = ""
    for unit, size_ms in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, time_ms = divmod(time_ms, size_ms)
        shown += f"{count}{unit}" if count else ""
    return shown


def make(table: str, timeout_ms: int) -> Message:
    """Make the set, empty."""
    kind = (number(3, _NFT_SET_TIMEOUT), number(4, _ADDRESS_AND_PORT), number(5, _KEY.size), number(10, 1))
    limits = (nested(9, number(1, MAX_REFUSED)), attribute(11, _NUMBER.pack(timeout_ms)))
    return Message(NFT_MSG_NEWSET, (*_name(table), *kind, *limits), CREATE)


def fill(table: str, destinations: Iterable[Destination]) -> Message:
    """Put `destinations` into the set."""
    return Message(NFT_MSG_NEWSETELEM, (*_name(table), _elements(destinations)), CREATE)


def left_s(netlink: NfTables, table: str, destination: Destination) -> float | None:
    """For how long `destination` is refused from now on; None if it is not.

    Raises PrivilegeError, Tnat64Error.
    """
    found = netlink.get(NFT_MSG_GETSETELEM, *_name(table), _elements([destination]))
    if found is None:
        return None
    (element,) = (value for _, value in attributes(dict(attributes(found, 0))[_ELEM_LIST], 0))
    (left_ms,) = _NUMBER.unpack(dict(attributes(element, 0))[_ELEM_EXPIRATION])
    return float(left_ms) / 1000


def make_counter(table: str, count: int) -> Message:
    """Make the counter, which goes on from `count`."""
    begin = nested(_OBJ_DATA, attribute(_COUNTER_PACKETS, _NUMBER.pack(count)))
    return Message(NFT_MSG_NEWOBJ, (*_name(table), number(3, NFT_OBJECT_COUNTER), begin), CREATE)


def counted(netlink: NfTables, table: str) -> int:
    """How many packets were refused, each the first of a connection. Raises PrivilegeError, Tnat64Error."""
    found = netlink.get(NFT_MSG_GETOBJ, *_name(table), number(3, NFT_OBJECT_COUNTER))
    if found is None:
        return 0
    data = dict(attributes(found, 0))[_OBJ_DATA]
    count: int = _NUMBER.unpack(dict(attributes(data, 0))[_COUNTER_PACKETS])[0]
    return count


def empty(table: str) -> Message:
    """Take all out; no elements are all of them (nf_tables_delsetelem() in net/netfilter/nf_tables_api.c)."""
    return Message(NFT_MSG_DELSETELEM, _name(table))


def _name(table: str) -> tuple[bytes, bytes]:
    """Of the set, and of the counter (NFTA_SET_*, NFTA_SET_ELEM_LIST_*, NFTA_OBJ_*)."""
    return text(1, table), text(2, REFUSED)


def _elements(destinations: Iterable[Destination]) -> bytes:
    keys = (_KEY.pack(IPv4Address(address).packed, port) for address, port in destinations)
    return nested(_ELEM_LIST, *(nested(1, nested(1, attribute(1, key))) for key in keys))
