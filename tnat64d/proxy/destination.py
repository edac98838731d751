"""From an original destination to everything that dialling it takes, worked out once and remembered.

Owns the answer to "where to?" for a destination: its route by the configuration, its two socket addresses and
the scope whose state it shares. Refuses to own the state (`core.policy`) and the sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from ipaddress import IPv4Address

from tnat64d.core.config import Config, Route, Way
from tnat64d.core.settings import StickyScope
from tnat64d.kernel import original_dst
from tnat64d.kernel.original_dst import Destination

REMEMBERED = 4096
"""Destinations remembered before starting anew; each takes about 1 KiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A destination and how to get there. `scope`: the key of its state in `core.policy.StickyMemory`."""

    destination: Destination
    route: Route
    nat64: Destination | None
    scope: Hashable

    @property
    def way(self) -> Way:
        """Which ways are open to it."""
        return self.route.way


class Destinations:
    """Resolves destinations; None for one that leads back to the listener."""

    def __init__(
        self,
        config: Config,
        scope: StickyScope,
        listener: Destination,
        unmapped: Callable[[Target], None],
    ) -> None:
        """`listener`: its address; `unmapped` is told of each new target that no prefix carries."""
        self._unmapped = unmapped
        self._config = config
        self._scope = scope
        self._listener = listener
        self._targets: dict[bytes | Destination, Target | None] = {}

    def use(self, config: Config, scope: StickyScope) -> None:
        """Resolve by `config` from now on, and let `scope` share a state."""
        self._config = config
        self._scope = scope
        self._targets.clear()

    def resolve(self, destination: bytes | Destination) -> Target | None:
        """The target of what `kernel.original_dst` returned; None if nobody captured that connection."""
        try:
            return self._targets[destination]
        except KeyError:
            if len(self._targets) >= REMEMBERED:
                self._targets.clear()
            target = self._targets[destination] = self._work_out(original_dst.parse(destination))
            return target

    def _work_out(self, destination: Destination) -> Target | None:
        address, port = IPv4Address(destination[0]), destination[1]
        # Kernel rules never capture loopback, so this connection was made to the listener itself.
        if address.is_loopback or self._is_listener(destination):
            return None
        route = self._config.route(address, port)
        nat64 = None if route.nat64_address is None else (str(route.nat64_address), port)
        target = Target(destination, route, nat64, scope_key(self._scope, route, address))
        if route.way is Way.NONE:
            self._unmapped(target)
        return target

    def _is_listener(self, destination: Destination) -> bool:
        listens_on, port = self._listener
        if destination[1] != port:
            return False
        return destination[0] == listens_on or (listens_on == "0.0.0.0" and original_dst.is_own(destination[0]))


def scope_key(kind: StickyScope, route: Route, address: IPv4Address) -> Hashable:
    """What shares its state with `address`, whose route is `route`: see `core.policy.StickyMemory`."""
    match kind:
        case StickyScope.GLOBAL:
            return None
        case StickyScope.PREFIX:
            return str(route.prefix)
        case StickyScope.DESTINATION:
            return str(address)
