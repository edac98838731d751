"""What a worker counts: one integer a line, in memory that it shares with the supervisor.

Owns the list of counters and where each lies. Refuses to own their meaning to users (names, units, text).
"""

from __future__ import annotations

import mmap
from enum import IntEnum, auto

INTEGER_SIZE_BYTES = 8


class Counter(IntEnum):
    """Index of a counter in a worker's block. All but ACTIVE only grow."""

    ACCEPTED = 0
    ACTIVE = auto()
    NOT_CAPTURED = auto()
    RELAYED_IPV4 = auto()
    RELAYED_NAT64 = auto()
    REFUSED = auto()
    RESET = auto()
    UP_BYTES = auto()
    DOWN_BYTES = auto()
    ACCEPT_PAUSES = auto()
    OVER_LIMIT = auto()
    HELD = auto()
    NOT_HELD = auto()
    UNCLAIMED = auto()


BLOCK_SIZE_BYTES = len(Counter) * INTEGER_SIZE_BYTES

Counters = memoryview
"""`memoryview.cast("Q")` of a block: `counters[Counter.ACCEPTED] += 1`."""


def map_block(fd: int) -> Counters:
    """The block in the memory file `fd` of BLOCK_SIZE_BYTES; whoever maps it sees the same."""
    return memoryview(mmap.mmap(fd, BLOCK_SIZE_BYTES)).cast("Q")
