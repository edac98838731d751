"""What is known of a destination on this host: all that follows from anything for a connection there.

Owns the form of the facts. Refuses to own gathering them (`cli.why`) and what follows from them (`core.reasons`).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from tnat64d.core.config import Config, Route
from tnat64d.core.failures import Failure
from tnat64d.core.files import Files
from tnat64d.core.scope import Scope
from tnat64d.core.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFound:
    """The kernel's answer to a route lookup: an errno, or a route as ip(8) shows it with its protocol number.

    `is_own`: the address is one of this host's.
    """

    error: int = 0
    text: str = ""
    protocol: int = 0
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Asker:
    """The program in question. `cgroup`: a path below the root of cgroup v2."""

    uid: int
    gid: int
    cgroup: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the running daemon says of the destination, and the files as it has read them.

    `rules_way`: who made the rules, as `status` has it.
    `refused_for_s`: how long the kernel itself refuses it from now on, because of `failure`; None: it does not.
    """

    state: str
    pid: int
    listener: str
    rules_way: str
    files: Files
    is_sticky: bool
    failure: Failure | None
    refused_for_s: float | None


@dataclass(frozen=True, slots=True)
class Silence:
    """The daemon does not run, or does not answer this user; `sentence` says which."""

    is_running: bool
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the answer follows from.

    `config`, `settings`, `scope`: those of the running daemon where it tells, else of the files; `changed_files`:
    those that say something else by now. `changed_rules`: the parts that are gone, or not as they must be.
    `route` is that of the program's connect(), `ipv4` that of the daemon's own attempt, `nat64` that to the NAT64
    address (None without one). `standing`: where our rules are in the kernel; None if that may not be looked at.
    `now`: seconds since the epoch.
    """

    conf_file: str
    settings_file: str
    config: Config
    settings: Settings
    scope: Scope
    asker: Asker
    address: IPv4Address
    port: int
    route: RouteFound
    ipv4: RouteFound
    nat64: RouteFound | None
    standing: tuple[str, ...] | None
    changed_rules: tuple[str, ...] = ()
    changed_files: tuple[str, ...] = ()
    daemon: Told | Silence
    now: float

    @property
    def destined(self) -> Route:
        """By `config`."""
        return self.config.route(self.address, self.port)
