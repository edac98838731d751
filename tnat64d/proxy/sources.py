"""How many connections one source has: a limit for those behind a gateway.

Owns the count of each source that has connections now. Refuses to own what happens to the one connection too many
(`proxy.listener`, `proxy.syn_gate`). The host's own programs share its addresses, so a limit would mean nothing
for them: an address of the host has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Source:
    is_own: bool
    connections: int = 0


class SourceLimit:
    """Counts connections by the dotted address that they come from."""

    def __init__(self, most: int, is_own: Callable[[str], bool]) -> None:
        """`is_own`: whether an address is this host's; asked once as long as the source has connections."""
        self._most = most
        self._is_own = is_own
        self._sources: dict[str, _Source] = {}

    def admit(self, address: str) -> bool:
        """Count one more connection from `address`; False, and it is not counted, if that is one too many."""
        source = self._sources.get(address)
        if source is None:
            source = self._sources[address] = _Source(self._is_own(address))
        if source.connections >= self._most and not source.is_own:
            return False
        source.connections += 1
        return True

    def leave(self, address: str) -> None:
        """A connection that was counted has ended."""
        source = self._sources[address]
        source.connections -= 1
        if not source.connections:
            del self._sources[address]
