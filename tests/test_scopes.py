"""Scopes, in a real kernel: who is included gets through, who is not fails at once, as without tnat64d.

Every key runs with rules that the daemon owns, where the excluded program sees ENETUNREACH, and with static rules
of every backend, where it is refused.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Namespace, Port
from tests.lab.daemon import Daemon, Service, Tables, run_cli
from tnat64d.kernel import cgroup as cgroups

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")

OTHER_SERVER = "203.0.113.10"
AT_ONCE_S = 0.9  # a SYN without an answer is sent again after 1 s
NOBODY = 65534

WAYS: dict[str, Tables] = {
    "owned": {},
    "static nftables": {"rules": {"backend": "nftables"}},
    "static iptables-nft": {"rules": {"backend": "iptables", "iptables": "iptables-nft"}},
    "static iptables-legacy": {"rules": {"backend": "iptables", "iptables": "iptables-legacy"}},
}

HONEST: Tables = {"proxy": {"connect": "honest"}}
ALL_WAYS = WAYS | {f"{way}, honest": {**WAYS[way], **HONEST} for way in ("owned", "static iptables-legacy")}
"""What is held must be what is captured, whoever renders the conditions."""

PROGRAM = """
import errno, socket, sys
sock = socket.socket()
sock.settimeout(5)
try:
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.sendall(b"hello")
    print("through" if sock.recv(5) == b"hello" else "silent")
except OSError as error:
    print(errno.errorcode.get(error.errno, repr(error)))
"""


@dataclass(frozen=True)
class Program:
    """A program, by whom and in which control group it runs, and where it connects to."""

    uid: int = 0
    gid: int = 0
    in_cgroup: bool = False
    address: str = SERVER_V4
    port: int = Port.ECHO

    def outcome(self, host: Namespace, cgroup: Path) -> tuple[str, float]:
        """What connect() and one echo come to, and the seconds that the whole program took."""
        enter = f'echo $$ >{cgroup}/cgroup.procs; exec "$@"' if self.in_cgroup else 'exec "$@"'
        identity = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--"]
        argv = ["sh", "-ec", enter, "sh", *identity, sys.executable, "-Ic", PROGRAM, self.address, str(self.port)]
        started = time.monotonic()
        said = host.run(argv, timeout_s=20).stdout.strip()
        return said, time.monotonic() - started


@dataclass(frozen=True)
class Case:
    """A [scope] table; CGROUP stands for the path of the test's control group."""

    scope: dict[str, list[str]]
    included: list[Program]
    excluded: list[Program]
    shown: list[str] = field(default_factory=list)


CASES = {
    "users": Case({"users": ["nobody"]}, [Program(NOBODY)], [Program()], ["skuid 65534", "--uid-owner 65534"]),
    "not_users": Case(
        {"not_users": ["nobody"]}, [Program()], [Program(NOBODY)], ["skuid 65534", "--uid-owner 65534"]
    ),
    "groups": Case(
        {"groups": ["nogroup"]}, [Program(gid=NOBODY)], [Program()], ["skgid 65534", "--gid-owner 65534"]
    ),
    "not_groups": Case({"not_groups": ["nogroup"]}, [Program()], [Program(gid=NOBODY)]),
    "cgroups": Case(
        {"cgroups": ["CGROUP"]}, [Program(in_cgroup=True)], [Program()], ["cgroupv2", "-m cgroup --path"]
    ),
    "not_cgroups": Case({"not_cgroups": ["CGROUP"]}, [Program()], [Program(in_cgroup=True)]),
    "units": Case({"units": ["UNIT"]}, [Program(in_cgroup=True)], [Program()]),
    "not_units": Case({"not_units": ["UNIT"]}, [Program()], [Program(in_cgroup=True)]),
    "ports": Case(
        {"ports": [str(int(Port.ECHO))]},
        [Program()],
        [Program(port=Port.BANNER)],
        [f"tcp dport {int(Port.ECHO)} ", f"--dport {int(Port.ECHO)}:{int(Port.ECHO)}"],
    ),
    "not_ports": Case({"not_ports": ["8-65535"]}, [Program()], [Program(port=Port.BANNER)]),
    "networks": Case({"networks": ["198.51.100.0/24"]}, [Program()], [Program(address=OTHER_SERVER)]),
    "not_networks": Case({"not_networks": ["203.0.113.0/24"]}, [Program()], [Program(address=OTHER_SERVER)]),
    "users and ports": Case(
        {"users": ["nobody"], "ports": [str(int(Port.ECHO))]},
        [Program(NOBODY)],
        [Program(), Program(NOBODY, port=Port.BANNER)],
    ),
}


@pytest.fixture(scope="module")
def cgroup() -> Iterator[Path]:
    """The control group of a unit: a slice, so that nothing of systemd is needed to know where it is."""
    path = cgroups.root() / f"tnat64dtest{os.getpid()}.slice"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """How rules are kept, and by what."""
    chosen: str = request.param
    return chosen


def service(lab: IdealNat64Lab, way: str, scope: dict[str, list[str]]) -> Service:
    settings: Tables = {**ALL_WAYS[way], "scope": scope}
    return Service(lab.client, lab.directory, settings=settings, is_static=way.startswith("static"))


def with_names(scope: dict[str, list[str]], cgroup: Path) -> dict[str, list[str]]:
    names = {"CGROUP": cgroup.name, "UNIT": cgroup.name}
    return {key: [names.get(value, value) for value in values] for key, values in scope.items()}


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("name", CASES)
def test_the_included_get_through_and_the_excluded_fail_at_once(
    lab: IdealNat64Lab, cgroup: Path, way: str, name: str
) -> None:
    case = CASES[name]
    refusal = "ECONNREFUSED" if way.startswith("static") else "ENETUNREACH"
    with service(lab, way, with_names(case.scope, cgroup)) as running:
        for program in case.included:
            assert program.outcome(lab.client, cgroup)[0] == "through", program
        for program in case.excluded:
            said, took_s = program.outcome(lab.client, cgroup)
            assert said == refusal, program
            assert took_s < AT_ONCE_S + 1, "the program itself takes up to a second to start"
        assert running.daemon.total("held") == (len(case.included) if "honest" in way else 0)


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_shows_the_scope(lab: IdealNat64Lab, cgroup: Path, way: str, name: str) -> None:
    case = CASES[name]
    settings: Tables = {**WAYS[way], "scope": with_names(case.scope, cgroup)}
    daemon = Daemon(lab.client, lab.directory, command="serve", settings=settings)
    done = run_cli(lab.client, "setup", "--dry-run", "-f", str(daemon.conf), "-c", str(daemon.settings))
    assert done.returncode == 0, done.stderr
    assert not case.shown or any(text in done.stdout for text in case.shown)
    assert "# backend " in done.stdout
