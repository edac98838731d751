"""tnat64.conf: what a file means, what is wrong with it, and what is said of either."""

import json
import pickle
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path as FilePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnat64d.core.config import (
    MAX_PROBLEMS_SHOWN,
    Config,
    Network,
    Route,
    Way,
    describe,
    describe_route,
    parse,
    route_as_json,
)
from tnat64d.core.config_words import MAX_LINE_CHARACTERS
from tnat64d.core.rfc6052 import Prefix
from tnat64d.errors import ConfigurationError

ETC = FilePath(__file__).parents[2] / "etc"
SHIPPED = [
    ETC / "tnat64.conf",
    ETC / "examples" / "simple" / "tnat64.conf",
    ETC / "examples" / "complex" / "tnat64.conf",
]

EVERYTHING = """\
# a comment
local = 192.168.0.0/255.255.255.0
\tlocal=10.0.0.0/8 # a comment

path {
    subnet = 150.0.0.0/255.255.0.0
    subnet = 150.1.0.0:80/16
    subnet = 150.2.0.0:8000-8999/255.255.0.0
    nat64_prefix = 2001:db8:1::
}
path {
    nat64_prefix = 2001:db8:2::/48
    subnet = 150.1.0.0/16
}
nat64_prefix = 64:ff9b::/96"""

PATH = "path {\nsubnet = 1.0.0.0/8\nnat64_prefix = 2001:db8:64::\n}\n"


def route(text: str, address: str, port: int = 0) -> Route:
    return parse(text, "test").route(IPv4Address(address), port)


def problems(text: str, filename: str = "f") -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, filename)
    return list(caught.value.problems)


def test_a_file_is_read_with_the_lines_of_its_directives() -> None:
    config = parse(EVERYTHING, "test")
    assert [(str(local.network), local.line) for local in config.local] == [
        ("192.168.0.0/24", 2),
        ("10.0.0.0/8", 3),
    ]
    first, second = config.paths
    assert (str(first.prefix), first.line) == ("2001:db8:1::/96", 5)
    assert [(str(subnet), subnet.line) for subnet in first.subnets] == [
        ("150.0.0.0/16", 6),
        ("150.1.0.0/16 port 80", 7),
        ("150.2.0.0/16 ports 8000-8999", 8),
    ]
    assert (str(second.prefix), second.line) == ("2001:db8:2::/48", 11)
    assert (config.default_prefix, config.default_prefix_line) == (Prefix("64:ff9b::"), 15)


def test_a_configuration_can_be_sent_to_another_process() -> None:
    config = parse(EVERYTHING, "test")
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    "text", ["", "\n", "  \t\n", "# nothing\n", "#" * MAX_LINE_CHARACTERS, "# \udce9 \x07\r\n"]
)
def test_a_file_that_says_nothing_is_legal(text: str) -> None:
    assert parse(text, "test") == Config()


@pytest.mark.parametrize(
    "line",
    [
        "local = 10.0.0.0/255.0.0.0",
        "local=10.0.0.0/8",
        "local =10.0.0.0/8",
        "local= 10.0.0.0/255.0.0.0",
        " \tlocal\t=\t \t10.0.0.0/8\t ",
        "local = 10.0.0.0/8# touching",
        "local = 10.0.0.0/8 # local = 11.0.0.0/8",
    ],
)
def test_white_space_and_comments_change_nothing(line: str) -> None:
    (local,) = parse(line, "test").local
    assert local.network == Network.of(IPv4Network("10.0.0.0/8"))


def test_255_255_255_255_is_a_mask() -> None:
    (local,) = parse("local = 192.0.2.1/255.255.255.255", "test").local
    assert str(local.network) == "192.0.2.1/32"


def test_a_mask_may_have_holes() -> None:
    (local,) = parse("local = 10.0.0.1/255.0.0.255\n", "test").local
    assert str(local.network) == "10.0.0.1/255.0.0.255"
    assert local.network.prefix_length is None
    assert IPv4Address("10.77.88.1") in local.network
    assert IPv4Address("10.77.88.2") not in local.network


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_network_without_holes_is_that_of_ipaddress(address: IPv4Address, length: int) -> None:
    expected = IPv4Network((address, length), strict=False)
    network = Network.of(expected)
    assert str(network) == str(expected)
    assert network.prefix_length == length
    assert expected[0] in network
    assert expected[-1] in network


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2001:db8::", "2001:db8::/96"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:db8::/64", "2001:db8::/64"),
        # The rest only without a length: tnat64 looks at nothing but the first 96 bits.
        ("64:ff9b::192.0.2.1", "64:ff9b::/96"),
        ("2001:aaa:bbbb:0:ccc:616::", "2001:aaa:bbbb:0:ccc:616::/96"),
    ],
)
def test_a_prefix_has_an_rfc_6052_length_or_is_a_96(written: str, meant: str) -> None:
    prefix = parse(f"nat64_prefix = {written}\n", "test").default_prefix
    assert prefix == Prefix(meant, strict=False)


def test_a_local_network_is_ipv4_only_whatever_the_paths_say() -> None:
    text = "local = 1.2.0.0/16\n" + PATH + "nat64_prefix = 2001:db8::"
    assert route(text, "1.2.255.255") == Route(Way.LOCAL, None, None, 1, "local network 1.2.0.0/16, line 1")
    assert route(text, "1.3.0.0").way is Way.NAT64


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("0.0.0.0", "0.0.0.0/8"),
        ("0.255.255.255", "0.0.0.0/8"),
        ("127.0.0.1", "127.0.0.0/8"),
        ("127.255.255.255", "127.0.0.0/8"),
        ("169.254.0.0", "169.254.0.0/16"),
        ("169.254.255.255", "169.254.0.0/16"),
        ("224.0.0.0", "224.0.0.0/4"),
        ("239.255.255.255", "224.0.0.0/4"),
        ("255.255.255.255", "255.255.255.255/32"),
    ],
)
def test_some_networks_are_always_local(address: str, network: str) -> None:
    text = "path {\nsubnet = 0.0.0.0/0\nnat64_prefix = 2001:db8::\n}\nnat64_prefix = 2001:db8::\n"
    assert route(text, address) == Route(Way.LOCAL, None, None, None, f"local network {network}, always local")


@pytest.mark.parametrize(
    "address", ["1.0.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "223.255.255.255"]
)
def test_the_neighbours_of_those_networks_are_not_local(address: str) -> None:
    assert route("nat64_prefix = 2001:db8::", address).way is Way.NAT64


def test_a_path_is_used_with_its_line() -> None:
    assert route(EVERYTHING, "150.0.3.4", 443) == Route(
        Way.NAT64,
        Prefix("2001:db8:1::"),
        IPv6Address("2001:db8:1::9600:304"),
        5,
        "path at line 5, subnet 150.0.0.0/16 on line 6",
    )


def test_the_last_matching_path_wins() -> None:
    assert route(EVERYTHING, "150.1.0.1", 80).line == 11


def test_everything_else_takes_the_default_prefix() -> None:
    assert route(EVERYTHING, "8.8.8.8", 53) == Route(
        Way.NAT64,
        Prefix("64:ff9b::"),
        IPv6Address("64:ff9b::808:808"),
        15,
        "default prefix, line 15",
    )


def test_a_default_prefix_that_no_line_gave_has_no_line() -> None:
    found = Config(default_prefix=Prefix("64:ff9b::")).route(IPv4Address("8.8.8.8"), 53)
    assert (found.line, found.reason) == (None, "default prefix")


@pytest.mark.parametrize(
    ("port", "line"), [(7999, 15), (8000, 5), (8500, 5), (8999, 5), (9000, 15), (0, 15), (65535, 15)]
)
def test_the_ports_of_a_subnet_are_inclusive(port: int, line: int) -> None:
    assert route(EVERYTHING, "150.2.0.1", port).line == line


def test_a_destination_without_port_matches_only_subnets_without_ports() -> None:
    text = "path {\nsubnet = 1.0.0.0:1-65535/8\nnat64_prefix = 2001:db8::\n}\n"
    assert route(text, "1.2.3.4", 1).line == 1
    assert route(text, "1.2.3.4").way is Way.NONE
    assert route(PATH, "1.2.3.4").way is Way.NAT64


def test_without_a_prefix_a_destination_is_ipv4_only() -> None:
    assert route(PATH, "8.8.8.8") == Route(Way.NONE, None, None, None, "no prefix for this destination")


def test_the_well_known_prefix_carries_no_non_global_address() -> None:
    assert route("nat64_prefix = 64:ff9b::", "10.1.2.3", 80) == Route(
        Way.NONE, None, None, 1, "64:ff9b::/96 never carries the non-global address 10.1.2.3 (RFC 6052 3.1)"
    )
    assert route("nat64_prefix = 2001:db8::", "10.1.2.3", 80).way is Way.NAT64


def test_a_path_through_the_well_known_prefix_is_not_replaced_by_another_prefix() -> None:
    text = "path {\nsubnet = 10.0.0.0/8\nnat64_prefix = 64:ff9b::\n}\nnat64_prefix = 2001:db8::\n"
    found = route(text, "10.1.2.3")
    assert (found.way, found.line) == (Way.NONE, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("locl = 10.0.0.0/8", "1:1: unknown directive 'locl': did you mean 'local'?"),
        ("  Local = 10.0.0.0/8", "1:3: unknown directive 'Local': did you mean 'local'?"),
        (
            "server = 10.0.0.1",
            "1:1: unknown directive 'server': use 'local', 'nat64_prefix', 'path {', 'subnet' or '}'",
        ),
        (
            "nat64_suffix = ::1",
            "1:1: unknown directive 'nat64_suffix': "
            "remove it, the bits behind the IPv4 address are always zero here (RFC 6052 2.2)",
        ),
        ("local", "1:1: 'local' without '=' and a value: write 'local = 10.0.0.0/255.0.0.0'"),
        ("local 10.0.0.0/8", "1:1: 'local' without '=' and a value: write 'local = 10.0.0.0/255.0.0.0'"),
        ("nat64_prefix =", "1:1: 'nat64_prefix' without '=' and a value: write 'nat64_prefix = 64:ff9b::'"),
        (
            "local = 10.0.0.0/8 11.0.0.0/8",
            "1:20: '11.0.0.0/8' behind the value: write one value a line, and '#' before a comment",
        ),
        (
            "local = 10.0.0.0",
            "1:9: '10.0.0.0' has no mask: write IP/MASK, such as 10.0.0.0/255.0.0.0 or 10.0.0.0/8",
        ),
        (
            "local = 10.0.0/8",
            "1:9: '10.0.0' is not an IPv4 address: write one such as 10.0.0.0"
            " (four numbers from 0 to 255, no leading zeros)",
        ),
        (
            "local = 010.0.0.0/8",
            "1:9: '010.0.0.0' is not an IPv4 address: write one such as 10.0.0.0"
            " (four numbers from 0 to 255, no leading zeros)",
        ),
        (
            "local = 10.0.0.0/33",
            "1:18: '33' is not a mask: write a length from 0 to 32 or a mask such as 255.255.255.0",
        ),
        (
            "local = 10.0.0.0/",
            "1:18: '' is not a mask: write a length from 0 to 32 or a mask such as 255.255.255.0",
        ),
        (
            "local = 10.0.0.0/255.0.0.256",
            "1:18: '255.0.0.256' is not a mask: write one such as 255.255.255.0 or 24"
            " (four numbers from 0 to 255, no leading zeros)",
        ),
        ("local = 10.1.2.3/8", "1:9: 10.1.2.3 has bits set outside of the mask 8: write 10.0.0.0"),
        ("local = 10.0.0.0:80/8", "1:9: a local network has no ports: write 'local = 10.0.0.0/8'"),
        (
            "local = 10.0.0.0/8:80",
            "1:18: the ports stand behind the mask: write IP:PORT/MASK, such as 10.0.0.0:80/255.0.0.0",
        ),
        ("nat64_prefix = 64:ff9b", "1:16: '64:ff9b' is not an IPv6 prefix: write one such as 64:ff9b::/96"),
        ("nat64_prefix = 64:ff9b::1/96", "1:16: 64:ff9b::1 has bits set behind its first 96: write 64:ff9b::/96"),
        (
            "nat64_prefix = 64:ff9b::/97",
            "1:16: '/97' is no length of a NAT64 prefix: use /32, /40, /48, /56, /64 or /96 (RFC 6052 2.2)",
        ),
        (
            "nat64_prefix = 2001:db8::\n\nnat64_prefix = 64:ff9b::",
            "3:1: a second nat64_prefix (default): remove it or the one on line 1",
        ),
        (
            PATH[:-2] + "  nat64_prefix = 64:ff9b::\n}",
            "4:3: a second nat64_prefix (in the path of line 1): remove it or the one on line 3",
        ),
        ("subnet = 1.0.0.0/8", "1:1: 'subnet' outside of a path: move it between 'path {' and '}'"),
        (
            PATH[:-2] + "local = 10.0.0.0/8\n}",
            "4:1: 'local' inside of the path of line 1: move it out of the path",
        ),
        ("\n " + PATH[:-2], "2:2: this path is not closed: end it with '}'"),
        ("}", "1:1: no path is open here: remove the '}', or add 'path {' before it"),
        (PATH[:-2] + PATH, "4:1: a path inside of a path: close that of line 1 with '}' before this line"),
        (PATH.replace("path {", "path{"), "1:1: a path begins with 'path {' and nothing else on its line"),
        (PATH.replace("path {", "path"), "1:1: a path begins with 'path {' and nothing else on its line"),
        (
            "path { subnet = 1.0.0.0/8 nat64_prefix = 2001:db8:: }",
            "1:1: a path begins with 'path {' and nothing else on its line",
        ),
        (PATH[:-1] + " }", "4:1: a path ends with '}' and nothing else on its line"),
        (
            "path {\nsubnet = 1.0.0.0/8\n}",
            "1:1: this path has no nat64_prefix: add one, or make its networks local to keep them on IPv4",
        ),
        (
            "path {\nnat64_prefix = 2001:db8::\n}",
            "1:1: this path has no subnet, nothing would use it: "
            "add one, such as 'subnet = 198.51.100.0:80-443/255.255.255.0'",
        ),
        (
            "local = 10.0.0.0/8\r\nlocal = 11.0.0.0/8\r\n",
            "1:19: the line ends with a carriage return: use Unix line ends",
        ),
        ("local = \0", "1:9: byte 0x00 outside of a comment: use printable ASCII, spaces and tabs"),
        ("# \0", "1:3: byte 0x00 in a comment: remove it"),
        ("a\udce9b", "1:2: byte 0xE9 outside of a comment: use printable ASCII, spaces and tabs"),
        ("local\xa0= 1", "1:6: character U+00A0 outside of a comment: use printable ASCII, spaces and tabs"),
        ("\x0c", "1:1: byte 0x0C outside of a comment: use printable ASCII, spaces and tabs"),
        (
            "\ufefflocal = 10.0.0.0/8",
            "1:1: character U+FEFF outside of a comment: use printable ASCII, spaces and tabs",
        ),
        ("#" * 8191, "1:8191: the line is too long: use at most 8190 characters"),
    ],
)
def test_a_mistake_is_one_problem_with_its_place_and_what_would_be_right(text: str, expected: str) -> None:
    assert problems(text) == [f"f:{expected}"]


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ("0", "2:18: '0' is not a port: write a number from 1 to 65535"),
        ("65536", "2:18: '65536' is not a port: write a number from 1 to 65535"),
        ("", "2:18: '' is not a port: write a number from 1 to 65535"),
        ("http", "2:18: 'http' is not a port: write a number from 1 to 65535"),
        ("+80", "2:18: '+80' is not a port: write a number from 1 to 65535"),
        ("8_0", "2:18: '8_0' is not a port: write a number from 1 to 65535"),
        ("80-", "2:21: '' is not a port: write a number from 1 to 65535"),
        ("-80", "2:18: '' is not a port: write a number from 1 to 65535"),
        ("80-0", "2:21: '0' is not a port: write a number from 1 to 65535"),
        ("80-90-100", "2:21: '90-100' is not a port: write a number from 1 to 65535"),
        ("90-80", "2:18: the ports 90-80 are reversed: write 80-90"),
    ],
)
def test_bad_ports_are_a_problem(ports: str, expected: str) -> None:
    assert problems(PATH.replace("1.0.0.0", f"1.0.0.0:{ports}")) == [f"f:{expected}"]


@pytest.mark.parametrize(
    ("ports", "expected"), [("080", "port 80"), ("1-65535", "ports 1-65535"), ("443-443", "port 443")]
)
def test_legal_ports_are_read(ports: str, expected: str) -> None:
    (path,) = parse(PATH.replace("1.0.0.0", f"1.0.0.0:{ports}"), "test").paths
    assert str(path.subnets[0]) == f"1.0.0.0/8 {expected}"


@pytest.mark.parametrize("line", ["subnet = 1.0.0.0", "subnet 1.0.0.0/8"])
def test_a_path_whose_only_subnet_is_wrong_has_one_problem(line: str) -> None:
    (problem,) = problems(PATH.replace("subnet = 1.0.0.0/8", line))
    assert problem.startswith("f:2:")


def test_all_problems_are_shown_in_the_order_of_the_file() -> None:
    text = "path {\nsubnet = 1.0.0.0/99\n}\nlocl = 1\n" + "path {\n"
    assert [problem.split(": ")[0] for problem in problems(text)] == ["f:1:1", "f:2:18", "f:4:1", "f:5:1"]


def test_only_the_first_problems_are_shown_and_the_others_counted() -> None:
    found = problems("x\n" * 100)
    assert len(found) == MAX_PROBLEMS_SHOWN + 1
    assert found[0].startswith("f:1:1: ")
    assert found[-1] == f"f: … and {100 - MAX_PROBLEMS_SHOWN} more"


@pytest.mark.parametrize(
    "line", ["local\n", "x", "\udcff\n", "path {\n", "loca =\n", "local = 10.0.0.0/8 1\n", "\r\n"]
)
def test_megabytes_of_garbage_end_in_bounded_time_with_few_problems(line: str) -> None:
    text = line * (2_000_000 // len(line))
    begin_s = time.process_time()
    found = problems(text)
    assert time.process_time() - begin_s < 10
    assert len(found) <= MAX_PROBLEMS_SHOWN + 1
    assert all(len(problem) < 200 for problem in found)


def test_the_name_of_the_file_is_printable_in_messages() -> None:
    (problem,) = problems("x", "/etc/\udcff\n.conf")
    assert problem.startswith(r"'/etc/\udcff\n.conf':1:1: ")


def parse_or_problems(text: str) -> Config | tuple[str, ...]:
    try:
        return parse(text, "f")
    except ConfigurationError as error:
        return error.problems


LINES = st.one_of(
    st.text(st.characters(codec=None)),
    st.sampled_from(
        [
            *EVERYTHING.split("\n"),
            *PATH.split("\n"),
            "subnet = :-/",
            "local = /",
            "nat64_prefix = /",
            "=",
            "path }",
        ]
    ),
    st.text(" \t={}#/:-.0123456789abcdefghijklmnopqrstuvwxyz_\r\0\udc80", max_size=60),
    st.from_regex(r"(local|subnet|nat64_prefix) ?= ?[0-9a-f.:]{0,20}[/:-]?[0-9.:/-]{0,20}", fullmatch=True),
)


@given(st.lists(LINES).map("\n".join))
def test_any_text_is_a_configuration_or_a_printable_error(text: str) -> None:
    outcome = parse_or_problems(text)
    if isinstance(outcome, Config):
        assert describe(outcome).replace("\n", "").isprintable()
    else:
        assert 1 <= len(outcome) <= MAX_PROBLEMS_SHOWN + 1
        assert all(problem.isprintable() and problem.startswith("f:") for problem in outcome)


@given(st.binary())
def test_any_bytes_are_a_configuration_or_a_printable_error(content: bytes) -> None:
    outcome = parse_or_problems(content.decode(errors="surrogateescape"))
    assert isinstance(outcome, Config) or all(problem.isprintable() for problem in outcome)


def test_a_file_is_described_in_plain_words() -> None:
    assert describe(parse(EVERYTHING, "test")) == (
        "A destination goes the first of these ways that it matches.\n"
        "\n"
        "Local, IPv4 only:\n"
        "  127.0.0.0/8                        always\n"
        "  169.254.0.0/16                     always\n"
        "  224.0.0.0/4                        always\n"
        "  0.0.0.0/8                          always\n"
        "  255.255.255.255/32                 always\n"
        "  192.168.0.0/24                     line 2\n"
        "  10.0.0.0/8                         line 3\n"
        "\n"
        "Through 2001:db8:2::/48, path at line 11:\n"
        "  150.1.0.0/16                       line 13\n"
        "\n"
        "Through 2001:db8:1::/96, path at line 5:\n"
        "  150.0.0.0/16                       line 6\n"
        "  150.1.0.0/16 port 80               line 7\n"
        "  150.2.0.0/16 ports 8000-8999       line 8\n"
        "\n"
        "Everything else:\n"
        "  through 64:ff9b::/96 (non-global addresses stay IPv4 only: RFC 6052 3.1), default prefix, line 15"
    )


def test_a_file_without_default_prefix_is_described_as_such() -> None:
    assert describe(parse("", "test")).endswith("IPv4 only, there is no default nat64_prefix")


@pytest.mark.parametrize(
    ("address", "port", "sentence", "fields"),
    [
        (
            "10.1.2.3",
            None,
            "10.1.2.3: local, IPv4 only (local network 10.0.0.0/8, line 3)",
            {"port": None, "way": "local", "prefix": None, "nat64_address": None, "line": 3},
        ),
        (
            "150.0.3.4",
            443,
            "150.0.3.4:443: NAT64 at 2001:db8:1::9600:304 in 2001:db8:1::/96"
            " (path at line 5, subnet 150.0.0.0/16 on line 6)",
            {
                "port": 443,
                "way": "nat64",
                "prefix": "2001:db8:1::/96",
                "nat64_address": "2001:db8:1::9600:304",
                "line": 5,
            },
        ),
        (
            "172.16.0.1",
            22,
            "172.16.0.1:22: IPv4 only, NAT64 is not used"
            " (64:ff9b::/96 never carries the non-global address 172.16.0.1 (RFC 6052 3.1))",
            {"port": 22, "way": "none", "prefix": None, "nat64_address": None, "line": 15},
        ),
    ],
)
def test_a_route_is_described_in_a_sentence_and_as_json(
    address: str, port: int | None, sentence: str, fields: dict[str, str | int | None]
) -> None:
    destination = IPv4Address(address)
    found = parse(EVERYTHING, "test").route(destination, port or 0)
    assert describe_route(destination, port, found) == sentence
    as_json = route_as_json(destination, port, found)
    assert as_json == {"address": address, **fields}
    assert list(as_json) == ["address", "port", "way", "prefix", "nat64_address", "line"]
    assert json.loads(json.dumps(as_json)) == as_json


def test_port_0_is_no_port_in_what_is_said_of_a_route() -> None:
    destination = IPv4Address("8.8.8.8")
    found = parse("", "test").route(destination)
    assert describe_route(destination, 0, found) == describe_route(destination, None, found)
    assert route_as_json(destination, 0, found)["port"] is None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ETC)))
def test_a_shipped_file_is_valid(path: FilePath) -> None:
    parse(path.read_text(), str(path))


def test_the_shipped_configuration_uses_no_prefix_until_somebody_writes_one() -> None:
    config = parse(SHIPPED[0].read_text(), "test")
    assert config == Config()


def test_the_examples_of_the_manual_are_valid_and_its_mistakes_are_found() -> None:
    manual = (ETC.parent / "man" / "tnat64.conf.5").read_text().replace(r"\-", "-").replace(r"\(aq", "'")
    examples, diagnostics = (
        [block.split("\n.EE\n")[0] for block in section.split("\n.EX\n")[1:]]
        for section in manual.split(".SH EXAMPLES")[1].split(".SH DIAGNOSTICS")
    )
    assert len(examples) == 3
    assert all(isinstance(parse_or_problems(example), Config) for example in examples)
    text = "\n\nlocl = 10.0.0.0/8\n\n\n\nlocal = 10.1.2.3/8\n"
    assert diagnostics[0].split("\n") == problems(text, "/etc/tnat64.conf")
