"""The set of destinations that the kernel itself refuses for a while: what makes it, fills it and empties it.

Owns its messages and text. Refuses to own the table that it is in (`kernel.nftables`) and what comes into it
(`daemon.supervisor`). The kernel forgets each element by itself.
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
    NFT_MSG_NEWSET,
    NFT_MSG_NEWSETELEM,
    Message,
    attribute,
    nested,
    number,
    text,
)

Destination = tuple[str, int]
"""An IPv4 address and a port."""

_NFT_SET_TIMEOUT = 0x10
_ADDRESS_AND_PORT = 7 << 6 | 13
"""TYPE_IPADDR and TYPE_INET_SERVICE of nft(8) (its include/datatype.h), by which it lists the elements."""

_KEY = struct.Struct("!4sH2x")
"""Each part fills whole registers of 4 bytes."""


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
    limits = (nested(9, number(1, MAX_REFUSED)), attribute(11, struct.pack("!Q", timeout_ms)))
    return Message(NFT_MSG_NEWSET, (*_name(table), *kind, *limits), CREATE)


def fill(table: str, destinations: Iterable[Destination]) -> Message:
    """Put `destinations` into the set."""
    keys = (_KEY.pack(IPv4Address(address).packed, port) for address, port in destinations)
    elements = (nested(1, nested(1, attribute(1, key))) for key in keys)
    return Message(NFT_MSG_NEWSETELEM, (*_name(table), nested(3, *elements)), CREATE)


def empty(table: str) -> Message:
    """Take all out; no elements are all of them (nf_tables_delsetelem() in net/netfilter/nf_tables_api.c)."""
    return Message(NFT_MSG_DELSETELEM, _name(table))


def _name(table: str) -> tuple[bytes, bytes]:
    return text(1, table), text(2, REFUSED)
