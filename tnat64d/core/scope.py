"""Whose connections are carried, and to where: the [scope] table as conditions on packets.

Owns what the keys of the table mean together. Refuses to own looking up names of users, groups and units
(`kernel.accounts`), and the rules that come of it (`core.description`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from tnat64d.core import settings
from tnat64d.core.config import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Whose socket it is; exactly one field is given. `cgroup`: a path below the root of cgroup v2."""

    uid: int | None = None
    gid: int | None = None
    cgroup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to: a network, or a range of ports (inclusive), or both."""

    network: Network | None = None
    ports: tuple[int, int] | None = None

    def holds(self, address: IPv4Address, port: int) -> bool:
        """Whether `address` and `port` are there."""
        in_network = self.network is None or address in self.network
        return in_network and (self.ports is None or self.ports[0] <= port <= self.ports[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Carried is what comes from one of `commands` or of `programs` (both empty: from any) and goes to one of
    `places` (empty: to any), unless it is in a `not_` tuple, where `commands` win over `not_programs`; and what
    comes in by the devices `gateway` (a `*` at the end is a wildcard)."""

    commands: tuple[Program, ...] = ()
    programs: tuple[Program, ...] = ()
    not_programs: tuple[Program, ...] = ()
    places: tuple[Place, ...] = ()
    not_places: tuple[Place, ...] = ()
    gateway: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lookup:
    """Names to what the kernel knows. Each raises ConfigurationError for a name that does not exist."""

    uid: Callable[[str], int]
    gid: Callable[[str], int]
    cgroup_of_unit: Callable[[str], str]
    cgroup_of_exec: Callable[[], str]


def resolve(table: settings.Scope, lookup: Lookup) -> Scope:
    """The scope that `table` describes. Raises ConfigurationError as `lookup` does."""
    not_places = [Place(network=Network.of(IPv4Network(text))) for text in table.not_networks]
    not_places += [Place(ports=_ports(text)) for text in table.not_ports]
    return Scope(
        commands=(Program(cgroup=lookup.cgroup_of_exec()),) if table.exec else (),
        programs=_programs(table.users, table.groups, table.cgroups, table.units, lookup),
        not_programs=_programs(table.not_users, table.not_groups, table.not_cgroups, table.not_units, lookup),
        places=places(table.networks, table.ports),
        not_places=tuple(not_places),
        gateway=table.gateway,
    )


def honest_places(proxy: settings.Proxy) -> tuple[Place, ...] | None:
    """Where to connects are honest: None for nowhere, empty for everywhere."""
    return places(proxy.honest_networks, proxy.honest_ports) if proxy.connect == "honest" else None


def places(networks: Iterable[str], ports: Iterable[str]) -> tuple[Place, ...]:
    """Where `networks` and `ports` lead together: to one of each, where both are given. Texts of tnat64d.toml."""
    parsed = [Network.of(IPv4Network(text)) for text in networks]
    ranges = [_ports(text) for text in ports]
    if parsed and ranges:
        return tuple(Place(network=network, ports=range_) for network in parsed for range_ in ranges)
    return (*(Place(network=network) for network in parsed), *(Place(ports=range_) for range_ in ranges))


def _programs(
    users: Iterable[str], groups: Iterable[str], cgroups: Iterable[str], units: Iterable[str], lookup: Lookup
) -> tuple[Program, ...]:
    return (
        *(Program(uid=lookup.uid(name)) for name in users),
        *(Program(gid=lookup.gid(name)) for name in groups),
        *(Program(cgroup=path) for path in cgroups),
        *(Program(cgroup=lookup.cgroup_of_unit(name)) for name in units),
    )


def _ports(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)
