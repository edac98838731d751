"""Which rule of the capture chain the first packet of a connection meets.

Owns the meaning of a `core.ruleset.Match` for a packet, so that what is said about the rules is read from the
rules themselves. Refuses to own the rules, and what other people's rules do.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from tnat64d.core.ruleset import Hook, Match, Rule, Ruleset

CAPTURING = (Hook.REDIRECT_OUTPUT, Hook.MARK_OUTPUT)
"""Where the connections of the host's own programs are captured, by mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """The SYN of a program of this host.

    `port` 0: not known, which fits no condition on ports. `is_own`: the destination is an address of this host.
    `cgroup`: a path below the root of cgroup v2, empty for the root.
    """

    destination: IPv4Address
    port: int
    is_own: bool
    uid: int
    gid: int
    cgroup: str


def decisive_rule(ruleset: Ruleset, packet: Packet) -> Rule | None:
    """The rule of the capture chain that decides on `packet`; None if none fits: it is left alone."""
    for chain in ruleset.chains:
        if chain.hook in CAPTURING:
            return next((rule for rule in chain.rules if _fits(rule.match, packet)), None)
    return None


def _fits(match: Match, packet: Packet) -> bool:
    """The marks are the daemon's and TPROXY's: no packet of a program has them.

    Nor is the set of refused destinations asked: it is one of moments.
    """
    return (
        match.mark is None
        and not match.is_refused
        and match.connection_mark is None
        and (match.destination is None or packet.destination in match.destination)
        and (packet.is_own or not match.destination_is_own)
        and (match.ports is None or match.ports[0] <= packet.port <= match.ports[1])
        and match.uid in (None, packet.uid)
        and match.gid in (None, packet.gid)
        and (match.cgroup is None or _is_within(packet.cgroup, match.cgroup))
    )


def _is_within(path: str, group: str) -> bool:
    """Whether `path` is `group` or below it, as the kernel's socket match sees it (cgroup_ancestor())."""
    return f"{path}/".startswith(f"{group.strip('/')}/")
