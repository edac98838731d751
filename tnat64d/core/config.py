"""/etc/tnat64.conf: its grammar, its meaning, and the way that it gives each destination.

Owns `parse`, the values it returns, and `Config.route`. Does not own reading the file, nor when IPv4 and when
NAT64 is dialled (`core.policy`): "nat64" here says only at which address NAT64 would be dialled.

    file      one directive a line; '#' begins a comment; words are separated by spaces or tabs
    anywhere  nat64_prefix = ADDR[/LENGTH]       at most one in a path, and one outside: the default
    outside   local = IP/MASK
              path {                             alone on its line
    in path   subnet = IP[:PORT[-PORT]]/MASK
              }                                  alone on its line
    MASK      255.255.0.0 or 16; IP & MASK is IP; a dotted mask may have holes
    LENGTH    RFC 6052; without one the first 96 bits of ADDR count and the others do not, as in tnat64

Not in the grammar of tnat64 0.06: no spaces around '=', MASK as a length, MASK 255.255.255.255 (in builds that
use inet_addr(3)), LENGTH, a comment that touches a word, a file without final newline.

The first of these that matches a destination decides:
  1. a `local` network, or one of ALWAYS_LOCAL: IPv4 only
  2. the paths from the last in the file to the first, any subnet of theirs: NAT64 through the path's prefix.
     A destination without a port (tnat64's port 0) matches only subnets without ports.
  3. the default prefix, if there is one
  4. nothing: IPv4 only

A path must have a prefix and a subnet, as tnat64.conf(5) always demanded: in tnat64 a path without prefix
catches destinations and loops over them for ever, one without subnets is never used. A missing default prefix
is legal. tnat64 reports a bad line and goes on without it; here it is a ConfigurationError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from tnat64d.core.config_words import Problem, Word, parse_network, quote, split
from tnat64d.core.rfc6052 import Prefix
from tnat64d.errors import ConfigurationError

MAX_PROBLEMS_SHOWN = 20
ANY_PORT = (0, 65535)
_ALL_ONES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Network:
    """The addresses A with A & mask == address. The mask may have holes: 10.0.0.1/255.0.0.255 is legal."""

    address: int
    mask: int

    @classmethod
    def of(cls, network: IPv4Network) -> Network:
        return cls(int(network.network_address), int(network.netmask))

    def __contains__(self, address: IPv4Address) -> bool:
        return int(address) & self.mask == self.address

    @property
    def prefix_length(self) -> int | None:
        """The CIDR length, or None if the mask has holes."""
        host_bits = self.mask ^ _ALL_ONES
        has_holes = host_bits & (host_bits + 1)
        return None if has_holes else 32 - host_bits.bit_length()

    def __str__(self) -> str:
        length = self.prefix_length
        return f"{IPv4Address(self.address)}/{IPv4Address(self.mask) if length is None else length}"


ALWAYS_LOCAL = tuple(
    Network.of(IPv4Network(text))
    for text in ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "0.0.0.0/8", "255.255.255.255/32")
)


@dataclass(frozen=True, slots=True)
class Local:
    network: Network
    line: int


@dataclass(frozen=True, slots=True)
class Subnet:
    """`first_port` and `last_port` are inclusive; ANY_PORT if the file gives none."""

    network: Network
    first_port: int
    last_port: int
    line: int

    def matches(self, address: IPv4Address, port: int) -> bool:
        return self.first_port <= port <= self.last_port and address in self.network

    def __str__(self) -> str:
        if (self.first_port, self.last_port) == ANY_PORT:
            return str(self.network)
        if self.first_port == self.last_port:
            return f"{self.network} port {self.first_port}"
        return f"{self.network} ports {self.first_port}-{self.last_port}"


@dataclass(frozen=True, slots=True)
class Path:
    subnets: tuple[Subnet, ...]
    prefix: Prefix
    line: int


class Way(StrEnum):
    LOCAL = "local"
    NAT64 = "nat64"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Route:
    """Which way a destination goes, and why.

    `prefix` and `nat64_address` are set for Way.NAT64 only. `line` is that of the `local`, the path or the
    default prefix that decided, None if no line of the file did. `reason` is plain text without full stop.
    """

    way: Way
    prefix: Prefix | None
    nat64_address: IPv6Address | None
    line: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Config:
    """A valid file. Locals, paths and their subnets are in the order of the file."""

    local: tuple[Local, ...] = ()
    paths: tuple[Path, ...] = ()
    default_prefix: Prefix | None = None
    default_prefix_line: int | None = None

    def route(self, address: IPv4Address, port: int = 0) -> Route:
        """The way of a connection to `address`; port 0: no port given. Linear in the size of the file."""
        for local in reversed(self.local):
            if address in local.network:
                return _only_ipv4(Way.LOCAL, f"local network {local.network}, line {local.line}", local.line)
        for network in ALWAYS_LOCAL:
            if address in network:
                return _only_ipv4(Way.LOCAL, f"local network {network}, always local")
        for path in reversed(self.paths):
            for subnet in path.subnets:
                if subnet.matches(address, port):
                    reason = f"path at line {path.line}, subnet {subnet} on line {subnet.line}"
                    return _through(path.prefix, address, reason, path.line)
        if self.default_prefix is None:
            return _only_ipv4(Way.NONE, "no prefix for this destination")
        reason = "default prefix" + _on_line(self.default_prefix_line)
        return _through(self.default_prefix, address, reason, self.default_prefix_line)


def _only_ipv4(way: Way, reason: str, line: int | None = None) -> Route:
    return Route(way, prefix=None, nat64_address=None, line=line, reason=reason)


def _through(prefix: Prefix, address: IPv4Address, reason: str, line: int | None) -> Route:
    if not prefix.carries(address):
        never = f"{prefix} never carries the non-global address {address} (RFC 6052 3.1)"
        return _only_ipv4(Way.NONE, never, line)
    return Route(Way.NAT64, prefix, prefix.embed(address), line, reason)


def _on_line(line: int | None) -> str:
    return "" if line is None else f", line {line}"


def parse(text: str, filename: str) -> Config:
    """The meaning of a file's text, decoded with errors="surrogateescape"; `filename` is for messages only.

    Raises ConfigurationError with the problems in the order of the file, as "file:line:column: what is wrong:
    what would be right", lines and columns counted from 1 in characters. The first MAX_PROBLEMS_SHOWN found
    are shown, the others counted. Messages hold printable characters only.
    """
    reader = _Reader()
    for number, line in enumerate(text.split("\n"), start=1):
        reader.read(number, line)
    return reader.finish(filename)


@dataclass(slots=True)
class _Context:
    """What has been read of one path, or outside of the paths (line 0).

    `subnet_line` and `prefix_line` are those of the first directive, also if its value was wrong: one mistake
    makes one problem.
    """

    line: int = 0
    column: int = 0
    subnets: list[Subnet] = field(default_factory=list)
    subnet_line: int | None = None
    prefix: Prefix | None = None
    prefix_line: int | None = None


_EXAMPLES = {
    "local": "local = 10.0.0.0/255.0.0.0",
    "nat64_prefix": "nat64_prefix = 64:ff9b::",
    "subnet": "subnet = 198.51.100.0:80-443/255.255.255.0",
}
_KEYS = (*_EXAMPLES, "path")


class _Reader:
    """Takes the lines in order; keeps the open path and the problems."""

    def __init__(self) -> None:
        self._local: list[Local] = []
        self._paths: list[Path] = []
        self._outside = self._context = _Context()
        self._problems: list[tuple[int, int, str]] = []
        self._problem_count = 0
        self._has_windows_line_ends = False

    def read(self, number: int, line: str) -> None:
        try:
            if words := split(self._without_carriage_return(number, line)):
                self._read_directive(number, words)
        except Problem as problem:
            self._report(number, problem.column, problem.sentence)

    def finish(self, filename: str) -> Config:
        outside = self._outside
        if self._context is not outside:
            self._report(self._context.line, self._context.column, "this path is not closed: end it with '}'")
        if self._problem_count:
            place = filename if filename.isprintable() else repr(filename)
            problems = [f"{place}:{line}:{column}: {text}" for line, column, text in sorted(self._problems)]
            if more := self._problem_count - len(problems):
                problems.append(f"{place}: … and {more} more")
            raise ConfigurationError(problems)
        return Config(tuple(self._local), tuple(self._paths), outside.prefix, outside.prefix_line)

    def _report(self, line: int, column: int, sentence: str) -> None:
        self._problem_count += 1
        if len(self._problems) < MAX_PROBLEMS_SHOWN:
            self._problems.append((line, column, sentence))

    def _without_carriage_return(self, number: int, line: str) -> str:
        if not line.endswith("\r"):
            return line
        if not self._has_windows_line_ends and "#" not in line:
            self._has_windows_line_ends = True
            self._report(number, len(line), "the line ends with a carriage return: use Unix line ends")
        return line[:-1]

    def _read_directive(self, number: int, words: list[Word]) -> None:
        key = words[0]
        match key.text:
            case "local":
                self._read_local(number, words)
            case "subnet":
                self._read_subnet(number, words)
            case "nat64_prefix":
                self._read_prefix(number, words)
            case text if text == "path" or text.startswith("path{"):
                self._open_path(number, words)
            case text if text.startswith("}"):
                self._close_path(words)
            case text:
                # difflib is slow: nothing is looked up for a problem that is only counted.
                hint = _hint(text) if len(self._problems) < MAX_PROBLEMS_SHOWN else ""
                raise Problem(key.column, f"unknown directive {quote(text)}: {hint}")

    def _open_path(self, number: int, words: list[Word]) -> None:
        column, outer = words[0].column, self._context
        if not words[-1].text.endswith("}"):
            self._context = _Context(number, column)
        if outer is not self._outside:
            right = f"close that of line {outer.line} with '}}' before this line"
            raise Problem(column, f"a path inside of a path: {right}")
        if [word.text for word in words] != ["path", "{"]:
            raise Problem(column, "a path begins with 'path {' and nothing else on its line")

    def _close_path(self, words: list[Word]) -> None:
        path, self._context = self._context, self._outside
        if path is self._outside:
            raise Problem(words[0].column, "no path is open here: remove the '}', or add 'path {' before it")
        if len(words) > 1 or words[0].text != "}":
            raise Problem(words[0].column, "a path ends with '}' and nothing else on its line")
        if path.prefix_line is None:
            right = "add one, or make its networks local to keep them on IPv4"
            self._report(path.line, path.column, f"this path has no nat64_prefix: {right}")
        if path.subnet_line is None:
            right = f"add one, such as '{_EXAMPLES['subnet']}'"
            self._report(path.line, path.column, f"this path has no subnet, nothing would use it: {right}")
        if path.prefix is not None:
            self._paths.append(Path(tuple(path.subnets), path.prefix, path.line))

    def _read_local(self, number: int, words: list[Word]) -> None:
        if self._context is not self._outside:
            place = f"inside of the path of line {self._context.line}"
            raise Problem(words[0].column, f"'local' {place}: move it out of the path")
        value = _value(words)
        address, mask, ports = parse_network(value)
        network = Network(address, mask)
        if ports is not None:
            raise Problem(value.column, f"a local network has no ports: write 'local = {network}'")
        self._local.append(Local(network, number))

    def _read_subnet(self, number: int, words: list[Word]) -> None:
        if self._context is self._outside:
            raise Problem(words[0].column, "'subnet' outside of a path: move it between 'path {' and '}'")
        self._context.subnet_line = self._context.subnet_line or number
        address, mask, ports = parse_network(_value(words))
        first_port, last_port = ports or ANY_PORT
        self._context.subnets.append(Subnet(Network(address, mask), first_port, last_port, number))

    def _read_prefix(self, number: int, words: list[Word]) -> None:
        context = self._context
        if context.prefix_line is not None:
            place = "default" if context is self._outside else f"in the path of line {context.line}"
            right = f"remove it or the one on line {context.prefix_line}"
            raise Problem(words[0].column, f"a second nat64_prefix ({place}): {right}")
        context.prefix_line = number
        value = _value(words)
        try:
            # tnat64 copies the first 96 bits whatever they are; what is new in the grammar keeps RFC 6052.
            context.prefix = Prefix(value.text, strict="/" in value.text)
        except ValueError as error:
            raise Problem(value.column, str(error)) from None


def _value(words: list[Word]) -> Word:
    key = words[0]
    if len(words) < 3 or words[1].text != "=":
        right = f"write '{_EXAMPLES[key.text]}'"
        raise Problem(key.column, f"'{key.text}' without '=' and a value: {right}")
    if len(words) > 3:
        extra = words[3]
        right = "write one value a line, and '#' before a comment"
        raise Problem(extra.column, f"{quote(extra.text)} behind the value: {right}")
    return words[2]


def _hint(key: str) -> str:
    if key == "nat64_suffix":
        return "remove it, the bits behind the IPv4 address are always zero here (RFC 6052 2.2)"
    if similar := get_close_matches(key[:50].lower(), _KEYS, n=1):
        return f"did you mean '{similar[0]}'?"
    return "use 'local', 'nat64_prefix', 'path {', 'subnet' or '}'"


def describe(config: Config) -> str:
    """What the file means, for people: several lines without a final newline."""
    lines = ["A destination goes the first of these ways that it matches.", "", "Local, IPv4 only:"]
    lines += [f"  {network!s:<34} always" for network in ALWAYS_LOCAL]
    lines += [f"  {local.network!s:<34} line {local.line}" for local in config.local]
    for path in reversed(config.paths):
        lines += ["", f"Through {_describe_prefix(path.prefix)}, path at line {path.line}:"]
        lines += [f"  {subnet!s:<34} line {subnet.line}" for subnet in path.subnets]
    lines += ["", "Everything else:"]
    if config.default_prefix is None:
        lines.append("  IPv4 only, there is no default nat64_prefix")
    else:
        where = _on_line(config.default_prefix_line)
        lines.append(f"  through {_describe_prefix(config.default_prefix)}, default prefix{where}")
    return "\n".join(lines)


def _describe_prefix(prefix: Prefix) -> str:
    never = " (non-global addresses stay IPv4 only: RFC 6052 3.1)" if prefix.is_well_known else ""
    return f"{prefix}{never}"


def describe_route(address: IPv4Address, port: int | None, route: Route) -> str:
    """One sentence that says which way the destination goes and because of what."""
    destination = f"{address}:{port}" if port else f"{address}"
    match route.way:
        case Way.LOCAL:
            way = "local, IPv4 only"
        case Way.NONE:
            way = "IPv4 only, NAT64 is not used"
        case Way.NAT64:
            way = f"NAT64 at {route.nat64_address} in {route.prefix}"
    return f"{destination}: {way} ({route.reason})"


def route_as_json(address: IPv4Address, port: int | None, route: Route) -> dict[str, str | int | None]:
    """The object that `tnat64d check -t HOST[:PORT] --json` prints."""
    return {
        "address": str(address),
        "port": port or None,
        "way": route.way.value,
        "prefix": None if route.prefix is None else str(route.prefix),
        "nat64_address": None if route.nat64_address is None else str(route.nat64_address),
        "line": route.line,
    }
