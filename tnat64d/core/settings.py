"""The settings of the daemon, `tnat64d.toml`: what they are, what they may be, what they are by default.

Owns the schema. Each table is a dataclass below and each key one of its fields: the annotation holds type,
range and documentation, the value the default. Parsing, the sentences about mistakes and the text of
etc/tnat64d.toml come from there and from nowhere else. Refuses to own: reading the file, and tnat64.conf.

Grammar: TOML 1.0. Tables and keys are those below; each may be missing; any other is a mistake.
"""

from __future__ import annotations

import difflib
import re
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Literal, get_type_hints

from tnat64d.core.settings_keys import Form, Range, keys_of, show, show_name
from tnat64d.errors import ConfigurationError

MAX_HONEST_WORKERS = 8
"""A worker for each queue of `core.ruleset`."""

MIN_REFUSAL_MEMORY_S = 0.1
"""Below one of its ticks (0.01 s with HZ=100) the kernel takes a timeout for none (nf_msecs_to_jiffies64())."""

_CONTINUITY_ADDRESS = IPv4Address("192.0.0.2")  # of 192.0.0.0/29, which RFC 7335 keeps for this


class StickyScope(StrEnum):
    """What shares one sticky state: see `core.policy`."""

    GLOBAL = "global"
    PREFIX = "prefix"
    DESTINATION = "destination"


class Mode(StrEnum):
    """How the kernel hands a connection to the listener."""

    REDIRECT = "redirect"
    TPROXY = "tproxy"


_Seconds = Annotated[float, Range(0, 31_536_000)]
_RefusalSeconds = Annotated[float, Range(0, 3600)]
_PositiveSeconds = Annotated[float, Range(0.05, 31_536_000)]
_KeepaliveSeconds = Annotated[int, Range(0, 32767)]  # MAX_TCP_KEEPIDLE in linux/include/net/tcp.h
_Port = Annotated[int, Range(1, 65535)]
_Workers = Annotated[Literal["auto"] | int, Range(1, 64)]
_Connections = Annotated[int, Range(0, 10_000_000)]
_Entries = Annotated[int, Range(1, 1_048_576)]
_Mark = Annotated[int, Range(1, 0xFFFFFFFF, hexadecimal=True)]
_Queue = Annotated[int, Range(0, 65528)]
_Table = Annotated[int, Range(1, 0xFFFFFFFF)]
_Program = Annotated[
    str, Form("[A-Za-z0-9_/][A-Za-z0-9_/.+-]*", 'the name or path of a program, such as "iptables-legacy"')
]
# sun_path holds 107 bytes and a NUL: unix(7).
_SocketPath = Annotated[str, Form("/[ -~]{1,106}", "an absolute path of at most 107 ASCII characters")]


_Accounts = Annotated[
    tuple[str, ...], Form("[0-9]{1,10}|[A-Za-z_][A-Za-z0-9_.-]*[$]?", 'names or numbers such as "www-data"')
]
_Cgroups = Annotated[
    tuple[str, ...], Form("[^/\\s\"'][^\\s\"']*", 'paths without leading / such as "system.slice/backup.service"')
]
_Units = Annotated[
    tuple[str, ...],
    Form(r"[A-Za-z0-9:_.@\\-]+\.(service|slice|scope)", 'unit names such as "backup.service" or "user.slice"'),
]
_Ports = Annotated[
    tuple[str, ...], Form("[0-9]{1,5}(-[0-9]{1,5})?", 'ports or ranges such as "443" or "8000-8100"')
]
_Networks = Annotated[tuple[str, ...], Form("[0-9.]+(/[0-9]{1,2})?", 'networks such as "203.0.113.0/24"')]
# IFNAMSIZ is 16 with the NUL; "+" at the end is iptables' wildcard, written "*" here as in nft and systemd.
_Devices = Annotated[
    tuple[str, ...],
    Form(r"[A-Za-z0-9_.:@-]{1,14}[A-Za-z0-9_.:@*-]", 'interface names such as "docker0" or "br-*"'),
]


@dataclass(frozen=True, slots=True)
class Proxy:
    """How connections are accepted, dialled and carried."""

    port: Annotated[_Port, "TCP port on which redirected connections are accepted."] = 6464
    workers: Annotated[_Workers, 'Worker processes; "auto" is one for each CPU the daemon may use.'] = "auto"
    loop: Annotated[
        Literal["asyncio", "uvloop"],
        "Event loop of the workers: asyncio's, which waits by the data plane's own epoll, or uvloop.",
    ] = "asyncio"
    connect: Annotated[
        Literal["plain", "honest"],
        "When a program's connect() returns: at once, before the destination has answered, or with its answer.",
    ] = "plain"
    honest_ports: Annotated[
        _Ports, "Destination ports to which connects are honest, the others being plain; empty is all."
    ] = ()
    honest_networks: Annotated[
        _Networks, "Destination networks to which connects are honest, the others being plain; empty is all."
    ] = ()
    refusal_memory_s: Annotated[
        _RefusalSeconds,
        "Seconds for which the kernel itself refuses a destination that refused, was unreachable or prohibited; "
        "0 is off.",
    ] = 0.0
    fallback_delay_s: Annotated[
        _PositiveSeconds, "Seconds that IPv4 may stay unanswered before NAT64 is dialled beside it."
    ] = 3.0
    connect_timeout_s: Annotated[
        _PositiveSeconds, "Seconds after which a destination that has not answered is given up."
    ] = 60.0
    idle_timeout_s: Annotated[
        _Seconds,
        "Seconds of silence after which a connection is closed; 0 is never: keepalive finds dead peers.",
    ] = 0.0
    keepalive_s: Annotated[
        _KeepaliveSeconds, "Seconds of silence after which TCP keepalive probes a peer; 0 is no keepalive."
    ] = 60
    drain_timeout_s: Annotated[
        _Seconds, "Seconds that connections are given to finish when the daemon is told to stop."
    ] = 30.0
    max_connections: Annotated[
        _Connections, "Connections of all workers at the same time; 0 is as many as the open-file limit allows."
    ] = 0
    max_connections_per_source: Annotated[
        _Connections,
        "Connections at the same time of one client behind a gateway interface; more are reset; 0 is no limit.",
    ] = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """Which way a connection goes."""

    sticky_scope: Annotated[
        StickyScope, "What a NAT64 success holds for: every destination, those of its prefix, or itself."
    ] = StickyScope.GLOBAL
    sticky_entries: Annotated[
        _Entries, 'Destinations remembered under "destination"; the oldest is forgotten first.'
    ] = 4096


@dataclass(frozen=True, slots=True)
class Rules:
    """What setup puts into the kernel."""

    backend: Annotated[Literal["auto", "iptables", "nftables"], 'What installs the rules; "auto" finds out.'] = (
        "auto"
    )
    mode: Annotated[Mode, "How the kernel hands connections to the daemon."] = Mode.REDIRECT
    iptables: Annotated[_Program, "The iptables to use; its -save and -restore are found by this name."] = (
        "iptables"
    )
    mark: Annotated[_Mark, "Firewall mark of the daemon's own connections, which the rules let pass."] = 0x6464
    mark_mask: Annotated[_Mark, "The bits of a mark that are compared."] = 0xFFFF
    queue: Annotated[_Queue, "Number of the first of eight packet queues, where connects are honest."] = 6464
    table: Annotated[_Table, "Number of the routing table."] = 6464
    address: Annotated[IPv4Address, "IPv4 address that programs send from while the host has no other."] = (
        _CONTINUITY_ADDRESS
    )


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose connections are carried; all empty: those of every program on the host, to every IPv4 server.

    A connection must fit one of `users`, `groups`, `cgroups`, `units` if any of these is given, and `ports` and
    `networks` where given, and none of the not_ lists. `exec` adds commands of tnat64d exec, whoever runs them.
    """

    users: Annotated[_Accounts, "Users, by name or number, whose programs are carried."] = ()
    not_users: Annotated[_Accounts, "Users whose programs are left alone."] = ()
    groups: Annotated[_Accounts, "Groups, by name or number, whose programs are carried."] = ()
    not_groups: Annotated[_Accounts, "Groups whose programs are left alone."] = ()
    cgroups: Annotated[_Cgroups, "Control groups (version 2), as paths below their root, that are carried."] = ()
    not_cgroups: Annotated[_Cgroups, "Control groups that are left alone."] = ()
    units: Annotated[_Units, "systemd services and slices that are carried."] = ()
    not_units: Annotated[_Units, "systemd services and slices that are left alone."] = ()
    ports: Annotated[_Ports, "Destination ports that are carried."] = ()
    not_ports: Annotated[_Ports, "Destination ports that are left alone."] = ()
    networks: Annotated[_Networks, "Destination networks that are carried."] = ()
    not_networks: Annotated[_Networks, "Destination networks that are left alone."] = ()
    exec: Annotated[
        bool, "Whether what `tnat64d exec` starts is carried; nothing else is if no user, group, ... is given."
    ] = False
    gateway: Annotated[
        _Devices, "Interfaces behind which are others (containers, virtual machines) that are carried as well."
    ] = ()


@dataclass(frozen=True, slots=True)
class Exec:
    """Who, beside root, may have commands carried by tnat64d exec where scope.exec is true."""

    users: Annotated[_Accounts, "Users, by name or number."] = ()
    groups: Annotated[
        _Accounts, "Groups, by name or number, whose members may, also as a supplementary group."
    ] = ()


@dataclass(frozen=True, slots=True)
class Control:
    """Where status, reload and drain reach the daemon."""

    socket: Annotated[_SocketPath, "Path of the control socket."] = "/run/tnat64d/control.sock"


@dataclass(frozen=True, slots=True)
class Log:
    """What is logged."""

    connections: Annotated[Literal["all", "failed", "none"], "Which connections get a line in the log."] = "all"


@dataclass(frozen=True, slots=True)
class Settings:
    """All of tnat64d.toml, one field a table."""

    proxy: Proxy = field(default_factory=Proxy)
    policy: Policy = field(default_factory=Policy)
    rules: Rules = field(default_factory=Rules)
    scope: Scope = field(default_factory=Scope)
    exec: Exec = field(default_factory=Exec)
    control: Control = field(default_factory=Control)
    log: Log = field(default_factory=Log)


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as the documentation shows it: `default` and `expected` are text."""

    table: str
    name: str
    default: str
    expected: str
    doc: str


def parse(text: str, filename: str) -> Settings:
    """The settings that `text` states; `filename` only names the file in problems.

    Raises ConfigurationError with every problem, tables in the order of the file, as
    `FILE: TABLE.KEY: what is wrong, what would be right`; or with the first error of TOML's own grammar as
    `FILE:LINE:COLUMN: ...`, where tomllib stops.
    """
    return of_tables(_load(text, filename), filename)


def as_tables(settings: Settings) -> dict[str, Any]:
    """What `of_tables` makes `settings` of, in values that JSON has, too."""
    tables = asdict(settings)
    tables["rules"]["address"] = str(settings.rules.address)
    return tables


def of_tables(bodies: dict[str, Any], filename: str) -> Settings:
    """As `parse`, of what TOML's own grammar has made of the text."""
    tables: dict[str, Any] = {}
    problems: list[str] = []
    for name, body in bodies.items():
        if name not in _TABLES:
            problems.append(f"{filename}: {show_name(name)}: {_unknown(name, 'table', _TABLES)}")
        elif not isinstance(body, dict):
            problems.append(f"{filename}: {name}: is {show(body)}, must be a table: [{name}]")
        else:
            tables[name], mistakes = _read_table(_TABLES[name], body)
            problems += (f"{filename}: {name}.{key}: {sentence}" for key, sentence in mistakes)
    if problems:
        raise ConfigurationError(problems)
    return Settings(**tables)


def entries() -> Iterator[Entry]:
    """Every key of every table, in the order of the dataclasses."""
    for table, kind in _TABLES.items():
        default = kind()
        for name, key in keys_of(kind).items():
            yield Entry(table, name, key.show(getattr(default, name)), key.expected(), key.doc)


def example() -> str:
    """The text of etc/tnat64d.toml: every key with what it is for and, behind a `#`, its default."""
    lines = ["# Settings of tnat64d: see tnat64d.toml(5). A key behind a # shows its default.", ""]
    for table, kind in _TABLES.items():
        lines += [*_comment(str(kind.__doc__)), f"[{table}]", ""]
        for entry in entries():
            if entry.table == table:
                lines += _comment(f"{entry.doc} Must be {entry.expected}.")
                lines += [f"#{entry.name} = {entry.default}", ""]
    return "\n".join(lines)


def _comment(prose: str) -> list[str]:
    return textwrap.wrap(" ".join(prose.split()), 78, initial_indent="# ", subsequent_indent="# ")


def _load(text: str, filename: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    # TOMLDecodeError, an int() of more than 4300 digits, or a thousand brackets
    except (ValueError, RecursionError) as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL)
        what, line, column = found.groups() if found else (str(error), None, None)
        place = f"{filename}:{line}:{column}" if line else filename
        grammar = 'a line is [table] or key = value, and text stands in "quotes"'
        raise ConfigurationError([f"{place}: not TOML: {what}, {grammar}"]) from None


def _read_table(kind: type, body: dict[str, Any]) -> tuple[Any, list[tuple[str, str]]]:
    """The table (defaults where the file is wrong) and its problems as (key, sentence)."""
    keys = keys_of(kind)
    values: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for name, value in body.items():
        key = keys.get(name)
        if key is None:
            problems.append((show_name(name), _unknown(name, "key", keys)))
            continue
        try:
            values[name] = key.convert(value)
        except ValueError:
            problems.append((name, f"is {key.show(value)}, must be {key.expected()}"))
    table = kind(**values)
    return table, problems or list(_conflicts(table))


def _conflicts(table: object) -> Iterator[tuple[str, str]]:
    """What is wrong between keys that are right alone, as (key, sentence)."""
    match table:
        case Proxy(fallback_delay_s=delay_s, connect_timeout_s=timeout_s) if delay_s >= timeout_s:
            yield "fallback_delay_s", f"is {delay_s}, must be below connect_timeout_s, which is {timeout_s}"
        case Proxy():
            yield from _honest_conflicts(table)
        case Scope():
            yield from _port_conflicts(table, "ports", "not_ports")
            yield from _network_conflicts(table, "networks", "not_networks")
        case Rules(mark=mark, mark_mask=mask, table=number, address=address):
            if mark & ~mask:
                yield "mark", f"is {mark:#x}, must have no bit outside mark_mask, which is {mask:#x}"
            if mask.bit_count() < 2:
                yield "mark_mask", f"is {mask:#x}, must have at least two bits: TPROXY mode needs a second mark"
            if number in (253, 254, 255):
                yield "table", f"is {number}, must not be 253, 254 or 255 (default, main and local)"
            if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved:
                yield "address", f'is "{address}", must be an address that a host can send from'


def _honest_conflicts(proxy: Proxy) -> Iterator[tuple[str, str]]:
    yield from _port_conflicts(proxy, "honest_ports")
    yield from _network_conflicts(proxy, "honest_networks")
    if proxy.connect == "honest" and isinstance(proxy.workers, int) and proxy.workers > MAX_HONEST_WORKERS:
        yield "workers", f'is {proxy.workers}, must be at most {MAX_HONEST_WORKERS} with connect = "honest"'
    for key in ("honest_ports", "honest_networks"):
        if getattr(proxy, key) and proxy.connect != "honest":
            yield key, f'has no effect with connect = "{proxy.connect}", must be left out or go with "honest"'
    memory_s = proxy.refusal_memory_s
    if 0 < memory_s < MIN_REFUSAL_MEMORY_S:
        yield "refusal_memory_s", f"is {memory_s}, must be 0 or at least {MIN_REFUSAL_MEMORY_S}"
    is_honest_everywhere = proxy.connect == "honest" and not (proxy.honest_ports or proxy.honest_networks)
    if memory_s and is_honest_everywhere:
        yield "refusal_memory_s", f'is {memory_s}, must be 0 where connect = "honest" for all'


def _port_conflicts(table: object, *keys: str) -> Iterator[tuple[str, str]]:
    for key in keys:
        for text in getattr(table, key):
            first, _, last = text.partition("-")
            if not 1 <= int(first) <= int(last or first) <= 65535:
                yield key, f'holds "{text}", must hold ports from 1 to 65535, the lower one first'


def _network_conflicts(table: object, *keys: str) -> Iterator[tuple[str, str]]:
    for key in keys:
        for text in getattr(table, key):
            try:
                IPv4Network(text)
            except ValueError as error:
                yield key, f'holds "{text}", which is no network: {error}'


def _unknown(name: str, what: str, valid: dict[str, Any]) -> str:
    """The sentence about a table or key that does not exist; `what` is "table" or "key"."""
    homes = [table for table, kind in _TABLES.items() if name in keys_of(kind)]
    if homes:
        return f"no such {what}, {name} belongs under [{homes[0]}]"
    close = difflib.get_close_matches(name.lower(), valid, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"no such {what}, {guess}there are {', '.join(valid)}"


_TABLES: dict[str, type] = get_type_hints(Settings)
