"""The same file and destination give the same way here and in tnat64 0.06, but for the named differences.

The original is run as `tnat64-validateconf -f FILE -t HOST[:PORT]`. It prints the chosen path's prefix and not its
line, so every path that is generated has a prefix of its own. What may differ has a
test of its own, test_difference_…: more networks are always local; the well-known prefix carries only global
addresses; more is read; what the original reports and ignores, and numbers that hardly mean what they look like,
are errors.

tnat64 built with inet_addr(3) refuses the mask 255.255.255.255; Debian's, which runs here, takes it.
"""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path as FilePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnat64d.core.config import Config, Network, Route, Way, parse
from tnat64d.core.rfc6052 import WELL_KNOWN
from tnat64d.errors import ConfigurationError

ORIGINAL = shutil.which("tnat64-validateconf")
pytestmark = pytest.mark.skipif(ORIGINAL is None, reason="tnat64-validateconf (package tnat64) is not installed")

ETC = FilePath(__file__).parents[2] / "etc"
SHIPPED = sorted(ETC.rglob("tnat64.conf"))
# All but 127/8, which is local in the original, too.
MORE_LOCAL = [IPv4Network(text) for text in ("169.254.0.0/16", "224.0.0.0/4", "0.0.0.0/8", "255.255.255.255/32")]


@dataclass(frozen=True)
class Answer:
    """`prefix` is None for a local destination, and for one that is reached by no prefix."""

    local: bool
    default: bool
    prefix: IPv6Network | None


def run_original(file: FilePath, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert ORIGINAL is not None
    command = [ORIGINAL, "-f", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)


def ask_original(file: FilePath, address: IPv4Address, port: int) -> Answer:
    output = run_original(file, "-t", f"{address}:{port}" if port else f"{address}").stdout
    assert f"Finding path for {address}..." in output
    if "Path is local" in output:
        return Answer(local=True, default=False, prefix=None)
    (line,) = (line for line in output.splitlines() if line.startswith("NAT64 prefix:"))
    written = line.partition(":")[2].strip()
    prefix = None if written.startswith("ERROR!") else IPv6Network((written, 96), strict=False)
    return Answer(local=False, default="via default NAT64 prefix" in output, prefix=prefix)


def answer_here(config: Config, route: Route) -> Answer:
    from_path = route.line in {path.line for path in config.paths}
    prefix = None if route.prefix is None else route.prefix.network
    return Answer(route.way is Way.LOCAL, route.way is not Way.LOCAL and not from_path, prefix)


def assert_same_way(config: Config, file: FilePath, address: IPv4Address, port: int) -> None:
    original, route = ask_original(file, address, port), config.route(address, port)
    if not original.local and any(address in network for network in MORE_LOCAL):
        assert route.way is Way.LOCAL
    elif original.prefix == WELL_KNOWN.network and not WELL_KNOWN.carries(address):
        assert route.way is Way.NONE
        assert answer_here(config, route).default == original.default
    else:
        assert answer_here(config, route) == original
        if original.prefix is not None and not original.default:
            (path,) = (path for path in config.paths if path.prefix.network == original.prefix)
            assert route.line == path.line
        if original.default:
            assert route.line == config.default_prefix_line


# Few different octets, so that networks overlap and hosts fall on their edges.
OCTETS = st.sampled_from([0, 1, 10, 127, 128, 192, 255])
ADDRESSES = st.one_of(
    st.tuples(OCTETS, OCTETS, OCTETS, OCTETS).map(bytes).map(IPv4Address),
    st.integers(0, 2**32 - 1).map(IPv4Address),
)
MASKS = st.one_of(
    st.integers(0, 32).map(lambda length: int(IPv4Network((0, length)).netmask)),
    st.tuples(OCTETS, OCTETS, OCTETS, OCTETS).map(bytes).map(IPv4Address).map(int),
    st.integers(0, 2**32 - 1),
)
PORTS = st.one_of(st.integers(1, 65535), st.sampled_from([1, 80, 81, 443, 65534, 65535]))
SPACE = st.sampled_from(["", " ", "\t", "  \t "])
GAP = st.sampled_from([" ", "\t", " \t "])


@st.composite
def networks(draw: st.DrawFn) -> Network:
    mask = draw(MASKS)
    return Network(int(draw(ADDRESSES)) & mask, mask)


@st.composite
def lines(draw: st.DrawFn, *words: str) -> str:
    comment = draw(st.sampled_from(["", "# comment", "#local = 0.0.0.0/0.0.0.0", "# a b c d e f g h i j k l m"]))
    noise = draw(st.sampled_from(["", "", "\n", "# comment\n", " \t\n"]))
    return noise + draw(SPACE) + draw(GAP).join(words) + draw(GAP) + comment + "\n"


@st.composite
def network_lines(draw: st.DrawFn, key: str, ports: tuple[int, ...] = ()) -> str:
    network = draw(networks())
    written_ports = f":{'-'.join(map(str, ports))}" if ports else ""
    return draw(lines(key, "=", f"{IPv4Address(network.address)}{written_ports}/{IPv4Address(network.mask)}"))


PORT_RANGES = st.one_of(
    st.just(()), st.tuples(PORTS), st.tuples(PORTS, PORTS).map(lambda ports: tuple(sorted(ports)))
)
SUBNETS = PORT_RANGES.flatmap(lambda ports: network_lines("subnet", ports))


@st.composite
def paths(draw: st.DrawFn, prefix: str) -> str:
    inside = [*draw(st.lists(SUBNETS, min_size=1, max_size=4)), draw(lines("nat64_prefix", "=", prefix))]
    return draw(lines("path", "{")) + "".join(draw(st.permutations(inside))) + draw(lines("}"))


@st.composite
def files(draw: st.DrawFn) -> str:
    # Distinct ones: the low 32 bits and bits 64 to 71 are set here and there, which the original does not mind.
    prefixes = iter(
        ["64:ff9b::", "2001:db8:64::", "2001:aaa:bbbb:0:ccc:616::", "2001:db8::1.2.3.4", "64:ff9b:1::"]
    )
    if draw(st.booleans()):
        next(prefixes)
    parts = draw(st.lists(network_lines("local"), max_size=3))
    parts += [draw(paths(next(prefixes))) for _ in range(draw(st.integers(0, 3)))]
    if draw(st.booleans()):
        parts.append(draw(lines("nat64_prefix", "=", next(prefixes))))
    return "".join(draw(st.permutations(parts)))


def edges(config: Config) -> Iterator[tuple[IPv4Address, int]]:
    """First and last address of every network and their neighbours, with the edges of its ports."""
    subnets = [subnet for path in config.paths for subnet in path.subnets]
    for network in [*(local.network for local in config.local), *(subnet.network for subnet in subnets)]:
        last = network.address | network.mask ^ 0xFFFFFFFF
        yield from ((IPv4Address(a), 0) for a in (network.address, last))
        yield from ((IPv4Address(a % 2**32), 80) for a in (network.address - 1, last + 1))
    for subnet in subnets:
        for port in {subnet.first_port - 1, subnet.first_port, subnet.last_port, subnet.last_port + 1}:
            if 0 <= port <= 65535:
                yield IPv4Address(subnet.network.address), port


@st.composite
def files_with_destinations(draw: st.DrawFn) -> tuple[str, list[tuple[IPv4Address, int]]]:
    text = draw(files())
    anywhere = st.tuples(ADDRESSES, st.one_of(st.just(0), PORTS))
    on_edges = list(edges(parse(text, "generated")))
    destinations = st.one_of(st.sampled_from(on_edges), anywhere) if on_edges else anywhere
    # 255.255.255.255 is no address to inet_addr(3).
    legal = destinations.filter(lambda destination: destination[0] != IPv4Address("255.255.255.255"))
    return text, draw(st.lists(legal, min_size=1, max_size=10, unique=True))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    return tmp_path_factory.mktemp("original") / "tnat64.conf"


@settings(max_examples=500, deadline=None)
@given(files_with_destinations())
def test_a_destination_goes_the_way_that_the_original_gives_it(
    file: FilePath, case: tuple[str, list[tuple[IPv4Address, int]]]
) -> None:
    text, destinations = case
    file.write_text(text)
    config = parse(text, str(file))
    for address, port in destinations:
        assert_same_way(config, file, address, port)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ETC)))
def test_the_original_reads_the_shipped_files_without_a_word(path: FilePath) -> None:
    done = run_original(path)
    assert "Read complete" in done.stdout
    assert done.stderr == ""


def test_every_shipped_file_is_found() -> None:
    assert len(SHIPPED) == 5


@pytest.mark.parametrize("name", ["simple", "complex"])
def test_the_examples_of_the_original_are_valid_and_mean_the_same(name: str) -> None:
    example = FilePath(f"/usr/share/doc/tnat64/examples/tnat64.conf.{name}.example")
    if not example.exists():
        pytest.skip("the original's examples are not installed")
    config = parse(example.read_text(), str(example))
    for address in ("192.168.0.1", "10.1.1.1", "150.0.0.1", "150.1.0.1", "150.2.0.1", "8.8.8.8", "127.0.0.1"):
        for port in (0, 80, 443):
            assert_same_way(config, example, IPv4Address(address), port)


@pytest.mark.parametrize("address", ["169.254.0.1", "224.0.0.1", "239.255.255.255", "0.0.0.1"])
def test_difference_more_networks_than_127_are_always_local(file: FilePath, address: str) -> None:
    file.write_text("nat64_prefix = 2001:db8:64::\n")
    destination = IPv4Address(address)
    assert not ask_original(file, destination, 80).local
    assert parse(file.read_text(), str(file)).route(destination, 80).way is Way.LOCAL


def test_difference_the_well_known_prefix_carries_only_global_addresses(file: FilePath) -> None:
    file.write_text("nat64_prefix = 64:ff9b::\n")
    address = IPv4Address("10.1.2.3")
    assert ask_original(file, address, 80).prefix == WELL_KNOWN.network
    assert parse(file.read_text(), str(file)).route(address, 80).way is Way.NONE


@pytest.mark.parametrize(
    ("text", "address", "way", "complaint"),
    [
        pytest.param("local = 8.0.0.0/8\n", "8.8.8.8", Way.LOCAL, "!= IP", id="a CIDR length"),
        pytest.param(
            "local = 0.0.0.0/1\n", "9.9.9.9", Way.LOCAL, "", id="a CIDR length that it takes for an address"
        ),
        pytest.param("local=8.0.0.0/255.0.0.0\n", "8.8.8.8", Way.LOCAL, "Malformed", id="no spaces"),
        pytest.param("local = 8.8.0.0/255.255.0.0", "8.8.8.8", Way.LOCAL, "SUBNET for", id="no final newline"),
        pytest.param("local = 8.0.0.0/255.0.0.0# c\n", "8.8.8.8", Way.LOCAL, "Malformed", id="a touching comment"),
        pytest.param("nat64_prefix = 2001:db8::/96\n", "8.8.8.8", Way.NAT64, "Cannot parse", id="a prefix length"),
    ],
)
def test_difference_more_is_read(file: FilePath, text: str, address: str, way: Way, complaint: str) -> None:
    file.write_text(text)
    destination = IPv4Address(address)
    assert parse(text, str(file)).route(destination).way is way
    done = run_original(file)
    assert complaint in done.stderr
    assert (done.stderr == "") == (complaint == "")
    assert complaint == "Cannot parse" or not ask_original(file, destination, 0).local


REPORTED = [
    "nonsense\n",
    "local = 8.8.8.8/255.0.0.0\n",
    "local = 8.0.0.0:80/255.0.0.0\n",
    "nat64_prefix = 10.0.0.1\n",
    "nat64_prefix = 2001:db8::\nnat64_prefix = 2001:db8:1::\n",
    "path {\nsubnet = 8.0.0.0/255.0.0.0\nnat64_prefix = 2001:db8::\nlocal = 9.0.0.0/255.0.0.0\n}\n",
    "path {\nsubnet = 8.0.0.0:0/255.0.0.0\nnat64_prefix = 2001:db8::\n}\n",
    "path {\nsubnet = 8.0.0.0:65536/255.0.0.0\nnat64_prefix = 2001:db8::\n}\n",
    "path {\nsubnet = 8.0.0.0:90-80/255.0.0.0\nnat64_prefix = 2001:db8::\n}\n",
    "path\n",
    "path {\npath {\nsubnet = 8.0.0.0/255.0.0.0\nnat64_prefix = 2001:db8::\n}\n",
    "path {\nnat64_prefix = 2001:db8::\n}\n",
    "path {\nsubnet = 8.0.0.0/255.0.0.0\n}\n",
    "subnet = 8.0.0.0/255.0.0.0\nnat64_prefix = 2001:db8::\n",
    # Never closed: the original takes its own 127/8 for a part of the path.
    "path {\nsubnet = 8.0.0.0/255.0.0.0\nnat64_prefix = 2001:db8::\n",
]


@pytest.mark.parametrize("text", REPORTED)
def test_difference_what_the_original_reports_and_ignores_is_an_error(file: FilePath, text: str) -> None:
    file.write_text(text)
    done = run_original(file)
    assert done.stderr or "ERROR!" in done.stdout
    with pytest.raises(ConfigurationError):
        parse(text, str(file))


@pytest.mark.parametrize(
    "line", ["10.0/255.0.0.0", "010.0.0.0/255.0.0.0", "0x0a.0.0.0/255.0.0.0", "10.0.0.0:+80/255.0.0.0"]
)
def test_difference_odd_numbers_are_an_error(file: FilePath, line: str) -> None:
    text = f"path {{\nsubnet = {line}\nnat64_prefix = 2001:db8::\n}}\n"
    file.write_text(text)
    assert run_original(file).stderr == ""
    with pytest.raises(ConfigurationError):
        parse(text, str(file))


def test_difference_a_closing_brace_without_path_is_an_error(file: FilePath) -> None:
    file.write_text("}\n")
    assert run_original(file).stderr == ""
    with pytest.raises(ConfigurationError):
        parse("}\n", str(file))
