"""The command line: what each command prints, and its exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import IdealNat64Lab, Namespace
from tests.lab.daemon import CONF, PROGRAM, Tables, as_toml, run_cli, snapshot
from tnat64d import __version__

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")

COMMANDS = ("up", "serve", "exec", "setup", "teardown", "check", "why", "doctor", "status", "reload", "drain")
EXAMPLE = """\
local = 10.0.0.0/255.0.0.0
nat64_prefix = 64:ff9b::

path {
    subnet = 198.51.100.0:80-443/255.255.255.0
    nat64_prefix = 2001:db8:64::/96
}
"""
KEYS = ["address", "port", "way", "prefix", "nat64_address", "line"]
RULES: dict[str, Tables] = {
    "redirect-nft": {"rules": {"iptables": "iptables-nft"}},
    "redirect-legacy": {"rules": {"iptables": "iptables-legacy"}},
    "tproxy-nft": {"rules": {"iptables": "iptables-nft", "mode": "tproxy", "mark": 0x10000, "mark_mask": 0xF0000}},
}


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    """For what changes nothing."""
    with IdealNat64Lab() as lab:
        yield lab.client


@pytest.fixture
def conf(tmp_path: Path) -> str:
    path = tmp_path / "tnat64.conf"
    path.write_text(EXAMPLE)
    return str(path)


# Help


def test_the_help_tells_where_to_begin_and_what_there_is(host: Namespace) -> None:
    for arguments in (("--help",), ("-h",)):
        done = run_cli(host, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "tnat64d up" in done.stdout
        assert "Exit codes: 0 ok, 1 failed, 2 usage, 69" in done.stdout
        assert "TNAT64_CONF_FILE" in done.stdout
        for command in COMMANDS:
            assert re.search(rf"^    {command}  +\w.*", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_says_what_it_does_and_its_options(host: Namespace, command: str) -> None:
    done = run_cli(host, command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    usage, _, text = done.stdout.partition("\n\n")
    assert usage.startswith(f"usage: tnat64d {command} [-h]")
    assert re.match(r"[A-Z].*\.\n", text)
    assert "-c FILE, --settings FILE" in text
    for option in re.findall(r"^  (-\S.*?)(?:  |$)", text, re.MULTILINE):
        assert re.search(rf"{re.escape(option)}\s+\w", text), f"{option} is not explained"


def test_the_version(host: Namespace) -> None:
    done = run_cli(host, "--version")
    assert (done.returncode, done.stdout) == (0, f"tnat64d {__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("up", "--nonsense"), ("check", "--set=x")])
def test_wrong_usage_is_2_and_shows_the_right_one(host: Namespace, arguments: tuple[str, ...]) -> None:
    done = run_cli(host, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: tnat64d")


# check


def test_check_tells_what_the_file_means(host: Namespace, conf: str) -> None:
    done = run_cli(host, "check", "-f", conf)
    assert (done.returncode, done.stderr) == (0, "")
    order = [
        "127.0.0.0/8 ",
        "10.0.0.0/8 ",
        "2001:db8:64::/96, path at line 4",
        "198.51.100.0/24 ports 80-443 ",
        "64:ff9b::/96",
    ]
    positions = [done.stdout.index(text) for text in order]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("198.51.100.10:80", "NAT64 at 2001:db8:64::c633:640a in 2001:db8:64::/96 (path at line 4, "),
        ("198.51.100.10:443", "NAT64 at 2001:db8:64::c633:640a"),
        ("198.51.100.10:444", "IPv4 only, NAT64 is not used (64:ff9b::/96 never carries the non-global address"),
        ("198.51.100.10", "IPv4 only, NAT64 is not used"),
        ("8.8.8.8", "NAT64 at 64:ff9b::808:808 in 64:ff9b::/96 (default prefix, line 2)"),
        ("10.1.2.3:80", "local, IPv4 only (local network 10.0.0.0/8, line 1)"),
        ("127.0.0.1", "local, IPv4 only (local network 127.0.0.0/8, always local)"),
    ],
)
def test_check_tells_which_way_an_address_goes(host: Namespace, conf: str, target: str, sentence: str) -> None:
    done = run_cli(host, "check", "-f", conf, "-t", target)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert done.stdout.startswith(f"{target}: {sentence}")


def test_check_looks_names_up(host: Namespace, conf: str) -> None:
    done = run_cli(host, "check", "-f", conf, "-t", "localhost:80")
    assert (done.returncode, done.stdout) == (
        0,
        "127.0.0.1:80: local, IPv4 only (local network 127.0.0.0/8, always local)\n",
    )


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("198.51.100.10:80", ["198.51.100.10", 80, "nat64", "2001:db8:64::/96", "2001:db8:64::c633:640a", 4]),
        ("8.8.8.8", ["8.8.8.8", None, "nat64", "64:ff9b::/96", "64:ff9b::808:808", 2]),
        ("10.1.2.3:80", ["10.1.2.3", 80, "local", None, None, 1]),
        ("localhost", ["127.0.0.1", None, "local", None, None, None]),
        ("198.51.100.10:22", ["198.51.100.10", 22, "none", None, None, 2]),
    ],
)
def test_check_tells_programs_in_json(host: Namespace, conf: str, target: str, answer: list[object]) -> None:
    done = run_cli(host, "check", "-f", conf, "-t", target, "--json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert list(json.loads(done.stdout).items()) == list(zip(KEYS, answer, strict=True))


def test_check_needs_no_root_and_no_network(host: Namespace, conf: str) -> None:
    program = ("unshare", "-n", "setpriv", "--bounding-set=-all", "--inh-caps=-all", *PROGRAM)
    assert run_cli(host, "check", "-f", conf, "-t", "8.8.8.8", program=program).returncode == 0


def test_check_reads_the_settings_too(host: Namespace, conf: str, tmp_path: Path) -> None:
    settings = tmp_path / "tnat64d.toml"
    settings.write_text("[proxy]\nprot = 1\n")
    done = run_cli(host, "check", "-f", conf, "-c", str(settings))
    assert done.returncode == 78
    assert "did you mean port?" in done.stderr


# setup and teardown


@pytest.fixture
def files(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """The options that `setup` and `teardown` are given, for each variant of RULES."""
    conf = tmp_path / "setup.conf"
    conf.write_text(f"local = 203.0.113.0/24\nlocal = 10.0.0.1/255.0.0.255\n{CONF}")
    options: dict[str, tuple[str, ...]] = {}
    for name, tables in RULES.items():
        path = tmp_path / f"{name}.toml"
        path.write_text(as_toml(tables))
        options[name] = ("-f", str(conf), "-c", str(path))
    return options


@pytest.mark.parametrize("variant", RULES)
def test_a_dry_run_prints_what_leads_to_the_same_state_when_done_by_hand(
    ideal_lab: IdealNat64Lab, files: dict[str, tuple[str, ...]], variant: str
) -> None:
    host, options = ideal_lab.client, files[variant]
    before = snapshot(host)
    planned = run_cli(host, "setup", "--dry-run", *options)
    assert (planned.returncode, planned.stderr) == (0, "")
    assert snapshot(host) == before
    assert run_cli(host, "setup", *options).returncode == 0
    by_setup = snapshot(host)
    assert by_setup != before
    assert run_cli(host, "teardown", *options[2:]).returncode == 0
    assert snapshot(host) == before
    assert host.run(["sh", "-e"], input=planned.stdout).stderr == ""
    assert snapshot(host) == by_setup
    assert run_cli(host, "teardown", *options[2:]).returncode == 0
    assert snapshot(host) == before


@pytest.mark.parametrize("variant", RULES)
def test_setup_and_teardown_twice_are_as_good_as_once(
    ideal_lab: IdealNat64Lab, files: dict[str, tuple[str, ...]], variant: str
) -> None:
    host, options = ideal_lab.client, files[variant]
    states = [snapshot(host)]
    for command, given in (("setup", options), ("teardown", options[2:])):
        for _ in range(2):
            done = run_cli(host, command, *given)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            states.append(snapshot(host))
    assert states[1] == states[2] != states[0]
    assert states[3] == states[4] == states[0]


def test_setup_replaces_what_another_setup_made(
    ideal_lab: IdealNat64Lab, files: dict[str, tuple[str, ...]]
) -> None:
    host = ideal_lab.client
    before = snapshot(host)
    run_cli(host, "setup", *files["redirect-nft"])
    redirecting = snapshot(host)
    run_cli(host, "setup", *files["tproxy-nft"])
    assert "TPROXY" in snapshot(host)["iptables-nft-save"]
    run_cli(host, "setup", *files["redirect-nft"])
    assert snapshot(host) == redirecting
    run_cli(host, "teardown", *files["redirect-nft"][2:])
    assert snapshot(host) == before


@pytest.mark.parametrize("variant", RULES)
def test_a_dry_run_of_teardown_prints_what_leaves_nothing_when_done_by_hand(
    ideal_lab: IdealNat64Lab, files: dict[str, tuple[str, ...]], variant: str
) -> None:
    host, options = ideal_lab.client, files[variant]
    before = snapshot(host)
    assert run_cli(host, "teardown", "--dry-run", *options[2:]).stdout == "# nothing to remove\n"
    run_cli(host, "setup", *options)
    standing = snapshot(host)
    done = run_cli(host, "teardown", "--dry-run", *options[2:])
    assert (done.returncode, done.stderr) == (0, "")
    assert snapshot(host) == standing
    host.run(["sh", "-e"], input=done.stdout)
    assert snapshot(host) == before


# Exit codes


def test_exit_codes(host: Namespace, conf: str, tmp_path: Path) -> None:
    settings = tmp_path / "tnat64d.toml"
    settings.write_text(as_toml({"control": {"socket": str(tmp_path / "none.sock")}}))
    none = ("-c", str(settings))
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", *PROGRAM)
    assert run_cli(host, "check", "-f", conf).returncode == 0
    assert run_cli(host, "check", "-f", conf, "-t", ":").returncode == 2
    assert run_cli(host, "status", *none).returncode == 3
    assert run_cli(host, "reload", *none).returncode == 69
    assert run_cli(host, "drain", *none).returncode == 69
    assert run_cli(host, "setup", "-f", conf, *none, program=powerless).returncode == 77
    assert run_cli(host, "check", "-f", str(tmp_path)).returncode == 78
