"""The words for what must stand in the kernel: addresses, routes, policy rules and packet chains, as data.

Owns what can be said, whatever the backend, and the numbers and names that are ours. Refuses to own what is said
(`core.description`) and any syntax (`kernel.iptables`, `kernel.nft_expressions`, `kernel.routes`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address

from tnat64d.core.config import Network
from tnat64d.core.marks import Mark
from tnat64d.core.settings import MAX_HONEST_WORKERS

ROUTE_PROTOCOL = 64
"""Tags every route and policy rule as ours; unassigned in /etc/iproute2/rt_protos."""

ADDRESS_LABEL = "lo:tnat64d"
"""Tags the address as ours; a label begins with its device's name (ip-address(8))."""

LOOPBACK = "lo"

OWN_DEVICE = "tnat64d"
"""The TUN device of an owned ruleset."""

QUEUES = MAX_HONEST_WORKERS
HOLD_BITS = 0b1110
"""Held SYNs are spread over so many queues by these bits of their source port. Not by the lowest: connect() is
given an even port as long as there is one (net/ipv4/inet_hashtables.c, __inet_hash_connect)."""

CAPTURED_PRIORITY = 32765
OWN_ATTEMPTS_PRIORITY = 32768
FALLBACK_PRIORITY = 32769
"""Around main (32766) and default (32767): the fallback is asked only after both found nothing."""

REFUSED = "refused"
"""The set of destinations (address and port) that are refused, each for `Ruleset.refusal_memory_ms`."""

MAX_REFUSED = 65536
"""Of a full set the kernel takes no more."""


class Hook(Enum):
    """Where a chain is hooked, as (table, chain) of the iptables names, and whether before or after others.

    All but the guard come last in their place. For capture and divert that means: other people's destination NAT
    and exceptions win. Hold must come before that NAT (mangle and raw are before nat), where exceptions are not
    known yet. What a queue gives back goes on at the next place, not at the next rule: so hold has a place before
    that of the chains that must see the packet, which for what comes in is raw.
    The guard comes first: it looks only at our own address on lo, and a customary `-o lo -j ACCEPT` would hide it.
    """

    REDIRECT_OUTPUT = ("redirect", "nat", "OUTPUT", False)
    REDIRECT_PREROUTING = ("redirect", "nat", "PREROUTING", False)
    MARK_OUTPUT = ("mark", "mangle", "OUTPUT", False)
    MARK_PREROUTING = ("mark", "mangle", "PREROUTING", False)
    DIVERT_PREROUTING = ("divert", "mangle", "PREROUTING", False)
    GUARD_OUTPUT = ("guard", "filter", "OUTPUT", True)
    HOLD_OUTPUT = ("hold", "mangle", "OUTPUT", False)
    HOLD_PREROUTING = ("hold", "raw", "PREROUTING", False)
    UNTRACK_OUTPUT = ("untrack", "raw", "OUTPUT", False)

    def __init__(self, purpose: str, table: str, chain: str, before_others: bool) -> None:
        """`purpose` keeps apart those in one place; equal values would be one member (enum, aliases)."""
        self.purpose = purpose
        self.table = table
        self.chain = chain
        self.before_others = before_others


class Verdict(Enum):
    """What a matching packet meets."""

    RETURN = "return"
    REDIRECT = "redirect"
    MARK = "mark"
    MARK_CONNECTION = "mark-connection"
    TPROXY = "tproxy"
    RESET = "reset"
    QUEUE = "queue"
    UNTRACK = "untrack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """All given conditions hold, for a packet over IPv4, of TCP if `tcp_only`.

    `is_refused`: the destination is in the set REFUSED; `ports`: of the destination, first and last;
    `source_port_bits`: what HOLD_BITS select of the source port; `in_original_direction`: it goes the way of its
    connection's first packet.
    """

    tcp_only: bool = True
    destination: Network | None = None
    destination_is_own: bool = False
    source: IPv4Address | None = None
    in_device: str | None = None
    out_device: str | None = None
    mark: Mark | None = None
    connection_mark: Mark | None = None
    in_original_direction: bool = False
    begins_connection: bool = False
    is_refused: bool = False
    ports: tuple[int, int] | None = None
    source_port_bits: int | None = None
    uid: int | None = None
    gid: int | None = None
    cgroup: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One packet rule. `queue`: the number that Verdict.QUEUE names."""

    match: Match
    verdict: Verdict
    queue: int | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """An own chain, the conditions under each of which it is entered, and its rules in order."""

    hook: Hook
    entries: tuple[Match, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """What programs send from. `peer`: what the device's own answers come from; None on lo."""

    address: IPv4Address
    device: str
    peer: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The fallback default route. `is_local`: type local, as TPROXY needs it."""

    table: int
    device: str
    source: IPv4Address
    is_local: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """A routing policy rule; `table` None means unreachable; `in_device` lo is what this host sends."""

    priority: int
    table: int | None
    in_device: str | None = None
    mark: Mark | None = None
    tcp_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Everything that must stand.

    `port`: the listener's; `captured`: the mark of the TPROXY mode; `refusal_memory_ms`: 0 for no set REFUSED.
    """

    port: int
    captured: Mark
    address: Address
    route: Route
    policy_rules: tuple[PolicyRule, ...]
    chains: tuple[Chain, ...]
    refusal_memory_ms: int = 0


def cgroups(ruleset: Ruleset) -> tuple[str, ...]:
    """The control groups that rules of `ruleset` match, each once."""
    rules = (rule for chain in ruleset.chains for rule in chain.rules)
    return tuple(dict.fromkeys(rule.match.cgroup for rule in rules if rule.match.cgroup is not None))


def without_cgroups(ruleset: Ruleset, absent: Collection[str]) -> Ruleset:
    """`ruleset` without the rules for `absent`: no backend can make them while there are no such groups."""

    def present(chain: Chain) -> Chain:
        return replace(chain, rules=tuple(rule for rule in chain.rules if rule.match.cgroup not in absent))

    return replace(ruleset, chains=tuple(map(present, ruleset.chains)))
