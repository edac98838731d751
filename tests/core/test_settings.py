"""tnat64d.toml: defaults, mistakes, and that the shipped file and the man page say what the schema says."""

from __future__ import annotations

import dataclasses
import re
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnat64d.core.settings import (
    Entry,
    Log,
    Mode,
    Policy,
    Proxy,
    Rules,
    Settings,
    StickyScope,
    entries,
    example,
    parse,
)
from tnat64d.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
ENTRIES = list(entries())


def problems(text: str) -> list[str]:
    """What is wrong with `text`, without the file name that every problem begins with."""
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "t.toml")
    assert all(problem.startswith("t.toml:") for problem in caught.value.problems)
    return [problem.removeprefix("t.toml:").lstrip() for problem in caught.value.problems]


def by_key(entry: Entry) -> str:
    return f"{entry.table}.{entry.name}"


def test_an_empty_file_is_all_defaults() -> None:
    assert parse("", "t.toml") == Settings()


def test_an_empty_table_is_all_defaults() -> None:
    assert parse("[proxy]\n[rules]\n", "t.toml") == Settings()


def test_every_kind_of_value_arrives_as_the_type_of_its_field() -> None:
    text = """
        [proxy]
        port = 7000
        workers = 2
        loop = "asyncio"
        fallback_delay_s = 2
        idle_timeout_s = 0.5
        [policy]
        sticky_scope = "destination"
        [rules]
        mode = "tproxy"
        mark = 0x10
        address = "192.0.0.7"
        [log]
        connections = "all"
    """
    settings = parse(text, "t.toml")
    assert settings == Settings(
        proxy=Proxy(port=7000, workers=2, loop="asyncio", fallback_delay_s=2.0, idle_timeout_s=0.5),
        policy=Policy(sticky_scope=StickyScope.DESTINATION),
        rules=Rules(mode=Mode.TPROXY, mark=0x10, address=IPv4Address("192.0.0.7")),
        log=Log(connections="all"),
    )
    assert type(settings.proxy.fallback_delay_s) is float
    assert type(settings.policy.sticky_scope) is StickyScope
    assert type(settings.rules.address) is IPv4Address


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().proxy.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("proxy.port", "1", "65535"),
        ("proxy.workers", "1", "64"),
        ("proxy.fallback_delay_s", "0.05", "59.9"),
        ("proxy.keepalive_s", "0", "32767"),
        ("proxy.drain_timeout_s", "0", "31536000"),
        ("policy.sticky_entries", "1", "1048576"),
        ("rules.mark", "0x1", "0xffff"),
        ("control.socket", '"/x"', f'"/{"x" * 106}"'),
    ],
)
def test_the_bounds_of_a_range_belong_to_it(key: str, low: str, high: str) -> None:
    parse(f"{key} = {low}", "t.toml")
    parse(f"{key} = {high}", "t.toml")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("proxy.port = 0", "proxy.port: is 0, must be an integer from 1 to 65535"),
        ("proxy.port = 65536", "proxy.port: is 65536, must be an integer from 1 to 65535"),
        ('proxy.port = "6464"', 'proxy.port: is "6464", must be an integer from 1 to 65535'),
        ("proxy.port = true", "proxy.port: is true, must be an integer from 1 to 65535"),
        ("proxy.port = 6464.0", "proxy.port: is 6464.0, must be an integer from 1 to 65535"),
        ("proxy.port = [1]", "proxy.port: is [1], must be an integer from 1 to 65535"),
        ("proxy.port = {a = 1}", "proxy.port: is a table, must be an integer from 1 to 65535"),
        ("proxy.port = 2026-01-01", "proxy.port: is 2026-01-01, must be an integer from 1 to 65535"),
        ("proxy.workers = 65", 'proxy.workers: is 65, must be "auto" or an integer from 1 to 64'),
        ('proxy.workers = "all"', 'proxy.workers: is "all", must be "auto" or an integer from 1 to 64'),
        ("proxy.idle_timeout_s = true", "is true, must be a number from 0 to 31536000"),
        ("proxy.idle_timeout_s = -1", "is -1, must be a number from 0 to 31536000"),
        ("proxy.idle_timeout_s = nan", "is nan, must be a number from 0 to 31536000"),
        ("proxy.idle_timeout_s = inf", "is inf, must be a number from 0 to 31536000"),
        ("proxy.fallback_delay_s = 0.01", "is 0.01, must be a number from 0.05 to 31536000"),
        ('proxy.loop = "uvlop"', 'proxy.loop: is "uvlop", must be "asyncio" or "uvloop"'),
        ('proxy.connect = "slow"', 'proxy.connect: is "slow", must be "plain" or "honest"'),
        ('policy.sticky_scope = "host"', 'must be "global" or "prefix" or "destination"'),
        ("policy.sticky_scope = 1", 'is 1, must be "global" or "prefix" or "destination"'),
        ("rules.mark = 0", "rules.mark: is 0x0, must be an integer from 0x1 to 0xffffffff"),
        ("rules.address = 3221225474", "is 3221225474, must be an IPv4 address in quotes"),
        ('rules.address = "::1"', 'rules.address: is "::1", must be an IPv4 address in quotes'),
        ('rules.iptables = "-F"', 'is "-F", must be the name or path of a program'),
        ('rules.iptables = "rm -rf"', 'is "rm -rf", must be the name or path of a program'),
        ('control.socket = "run"', 'control.socket: is "run", must be an absolute path'),
        (f'control.socket = "/{"x" * 107}"', "must be an absolute path of at most 107 ASCII characters"),
        (r'control.socket = "/a\u0000"', r'is "/a\u0000", must be an absolute path'),
        ('scope.users = "www-data"', 'is "www-data", must be an array of names or numbers such as "www-data"'),
        ('scope.users = ["a b"]', 'is ["a b"], must be an array of names or numbers'),
        ('scope.cgroups = ["/system.slice"]', "must be an array of paths without leading /"),
        ('scope.units = ["backup"]', 'must be an array of unit names such as "backup.service"'),
        ("scope.ports = [443]", 'is [443], must be an array of ports or ranges such as "443"'),
        ("scope.exec = 1", "scope.exec: is 1, must be true or false"),
        ('scope.exec = "true"', 'scope.exec: is "true", must be true or false'),
        ('scope.gateway = ["an-interface-name"]', 'must be an array of interface names such as "docker0"'),
        ("proxy = 3", "proxy: is 3, must be a table: [proxy]"),
        ("[[proxy]]", "proxy: is [a table], must be a table: [proxy]"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_what_would(line: str, sentence: str) -> None:
    (problem,) = problems(line)
    assert sentence in problem


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("proxy.prot = 1", "proxy.prot: no such key, did you mean port? there are port, workers, loop,"),
        ("proxy.Port = 1", "proxy.Port: no such key, did you mean port?"),
        ("control.zzz = 1", "control.zzz: no such key, there are socket"),
        ("rules.port = 1", "rules.port: no such key, port belongs under [proxy]"),
        (
            "[prox]",
            "prox: no such table, did you mean proxy? there are proxy, policy, rules, scope, exec, control, log",
        ),
        ("port = 1", "port: no such table, port belongs under [proxy]"),
        (r'"a\u001b" = 1', r'"a\u001b": no such table'),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_and_all_valid_ones(line: str, sentence: str) -> None:
    (problem,) = problems(line)
    assert problem.startswith(sentence)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            "proxy.fallback_delay_s = 60",
            "proxy.fallback_delay_s: is 60.0, must be below connect_timeout_s, which is 60.0",
        ),
        (
            "rules.mark = 0x16464",
            "rules.mark: is 0x16464, must have no bit outside mark_mask, which is 0xffff",
        ),
        (
            "rules.mark = 0x1\nrules.mark_mask = 0x1",
            "rules.mark_mask: is 0x1, must have at least two bits: TPROXY mode needs a second mark",
        ),
        ("rules.table = 254", "rules.table: is 254, must not be 253, 254 or 255 (default, main and local)"),
        (
            'rules.address = "127.0.0.1"',
            'rules.address: is "127.0.0.1", must be an address that a host can send from',
        ),
        (
            'scope.ports = ["443", "8100-8000"]',
            'scope.ports: holds "8100-8000", must hold ports from 1 to 65535, the lower one first',
        ),
        (
            'scope.not_ports = ["0"]',
            'scope.not_ports: holds "0", must hold ports from 1 to 65535, the lower one first',
        ),
        (
            'scope.networks = ["10.0.0.1/8"]',
            'scope.networks: holds "10.0.0.1/8", which is no network: 10.0.0.1/8 has host bits set',
        ),
        (
            'proxy.connect = "honest"\nproxy.workers = 9',
            'proxy.workers: is 9, must be at most 8 with connect = "honest"',
        ),
        (
            'proxy.honest_ports = ["80"]',
            'proxy.honest_ports: has no effect with connect = "plain", must be left out or go with "honest"',
        ),
        (
            'proxy.connect = "honest"\nproxy.honest_ports = ["0"]',
            'proxy.honest_ports: holds "0", must hold ports from 1 to 65535, the lower one first',
        ),
        (
            'proxy.connect = "honest"\nproxy.honest_networks = ["10.0.0.1/8"]',
            'proxy.honest_networks: holds "10.0.0.1/8", which is no network: 10.0.0.1/8 has host bits set',
        ),
        (
            "proxy.refusal_memory_s = 0.001",
            "proxy.refusal_memory_s: is 0.001, must be 0 or at least 0.1",
        ),
        (
            'proxy.connect = "honest"\nproxy.refusal_memory_s = 5',
            'proxy.refusal_memory_s: is 5.0, must be 0 where connect = "honest" for all',
        ),
    ],
)
def test_keys_that_contradict_each_other_are_told(lines: str, sentence: str) -> None:
    assert problems(lines) == [sentence]


def test_all_problems_are_told_at_once_and_in_the_order_of_the_file() -> None:
    text = """
        [rules]
        table = 255
        mark = 0x10000
        [proxy]
        port = 0
        prot = 1
        [nonsense]
    """
    told = [problem.partition(": ")[0] for problem in problems(text)]
    assert told == ["rules.mark", "rules.table", "proxy.port", "proxy.prot", "nonsense"]


def test_a_contradiction_is_not_told_of_a_table_with_wrong_values() -> None:
    text = "rules.mark = 0x16464\nrules.mark_mask = true"
    assert problems(text) == ["rules.mark_mask: is true, must be an integer from 0x1 to 0xffffffff"]


def test_a_syntax_error_is_told_with_line_and_column() -> None:
    (problem,) = problems("[proxy]\nloop = uvloop\n")
    assert problem.startswith("2:8: not TOML: Invalid value, ")
    assert 'text stands in "quotes"' in problem


def test_a_syntax_error_at_the_end_is_told_without_a_place() -> None:
    (problem,) = problems('control.socket = "')
    assert problem.startswith("not TOML: Unterminated string, ")


@pytest.mark.parametrize("text", [f"a = {'9' * 5000}", f"a = {'[' * 5000}"])
def test_what_tomllib_cannot_hold_is_told_as_a_mistake_in_the_file(text: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith("not TOML: ")


def test_an_enormous_value_is_shown_shortened() -> None:
    (problem,) = problems(f"proxy.port = 0x{'f' * 9000}")
    assert len(problem) < 200


VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "1979-05-27", "[[1], [2]]", "{a = 1}", '"auto"', '"global"', '"1.2.3.4"', "'", "x"]),
)
LINES = st.tuples(st.sampled_from([*map(by_key, ENTRIES), "proxy", "log.x"]), VALUES).map(" = ".join)


@given(st.one_of(st.text(), st.lists(LINES).map("\n".join)))
def test_any_text_is_settings_or_a_configuration_error(text: str) -> None:
    try:
        settings = parse(text, "t.toml")
    except ConfigurationError:
        return
    assert 1 <= settings.proxy.port <= 65535
    assert 0 <= settings.proxy.fallback_delay_s < settings.proxy.connect_timeout_s < 1e9
    assert settings.rules.mark & settings.rules.mark_mask == settings.rules.mark != 0


@pytest.mark.parametrize("entry", ENTRIES, ids=by_key)
def test_a_default_written_out_is_the_default(entry: Entry) -> None:
    assert parse(f"{by_key(entry)} = {entry.default}", "t.toml") == Settings()


def test_the_shipped_file_is_the_schema_written_out() -> None:
    assert (ROOT / "etc/tnat64d.toml").read_text() == example()


def test_the_shipped_file_has_every_key_and_without_its_comment_signs_is_the_defaults() -> None:
    shipped = (ROOT / "etc/tnat64d.toml").read_text()
    assert parse(shipped, "etc/tnat64d.toml") == Settings()
    uncommented, count = re.subn(r"^#(?=\S)", "", shipped, flags=re.MULTILINE)
    assert count == len(ENTRIES)
    assert parse(uncommented, "etc/tnat64d.toml") == Settings()


@pytest.mark.parametrize("entry", ENTRIES, ids=by_key)
def test_the_man_page_tells_default_and_range_of_every_key(entry: Entry) -> None:
    page = (ROOT / "man/tnat64d.toml.5").read_text()
    section = page.partition(f"\n.SH [{entry.table}]\n")[2].partition("\n.SH ")[0]
    head = f".TP\n\\fB{entry.name}\\fR = {entry.default}\n"
    assert section.count(head) == 1
    paragraph = section.partition(head)[2].partition("\n.TP")[0]
    assert entry.expected in paragraph.replace("\n", " ")


def test_the_man_page_has_no_key_that_is_not_in_the_schema() -> None:
    page = (ROOT / "man/tnat64d.toml.5").read_text()
    assert re.findall(r"^\\fB(\w+)\\fR = ", page, re.MULTILINE) == [entry.name for entry in ENTRIES]
