"""Any sequence of setup, teardown, crash, healing, watching, reload, and what others do to their rules meanwhile.

A twin host sees what the others do, and never tnat64d. Whenever tnat64d has been torn down the two hosts have the
same rules, routes and addresses.
"""

from __future__ import annotations

import itertools
import os
import re
import signal

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.kernel.bare_host import CONFIG, own_traces
from tests.lab import Lab, Namespace, wait_until
from tests.lab.daemon import PROGRAM, Daemon, Tables, as_toml, is_alive, run_cli, snapshot
from tnat64d.core import settings as toml
from tnat64d.kernel.rules import StaticRules

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")

ENOUGH_STEPS, EXAMPLES, STEPS = 200, 3, 30
"""An example has up to STEPS steps, the first of a round next to none: rounds go on until the steps are enough."""

PROGRAMS = ("iptables-nft", "iptables-legacy")
BACKENDS = (
    {"backend": "auto"},
    {"backend": "nftables"},
    {"backend": "iptables"},
    *({"backend": "iptables", "iptables": program} for program in PROGRAMS),
)
SCOPES: tuple[dict[str, list[str]], ...] = (
    {},
    {"users": ["nobody"], "not_ports": ["25", "8000-8100"]},
    {"networks": ["203.0.113.0/24"], "not_groups": ["nogroup"]},
    {"gateway": ["docker0", "br-*"]},
)
TABLES = {"nat": ("OUTPUT", "PREROUTING"), "mangle": ("OUTPUT", "PREROUTING"), "filter": ("OUTPUT", "INPUT")}


class Twins(Lab):
    """Two hosts with nothing but lo."""

    roles = ("host", "twin")


def rules_of(host: Namespace) -> dict[str, list[str]]:
    """All that somebody made: empty base chains that accept are as good as none, whoever brought them about."""
    shown = {}
    for command, text in snapshot(host).items():
        if command == "nft list ruleset":  # what is not behind an iptables
            text = "".join(re.findall(r"^table ip theirs \{.*?^\}", text, re.MULTILINE | re.DOTALL))
        lines = text.splitlines()
        if command.startswith("iptables"):
            tables = re.findall(r"^\*.*?^COMMIT$", text, re.MULTILINE | re.DOTALL)  # in the order of their making
            lines = [line for table in sorted(tables) for line in table.splitlines()]
            lines = [line for line in lines if re.match(r"-|:\S+ (?!ACCEPT)", line)]
        shown[command] = lines
    return shown


class Hosts(RuleBasedStateMachine):
    """What happens to a host, and to its twin without tnat64d."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.lab = Twins()
        self.lab.__enter__()
        self.host, self.twin = self.lab.namespaces["host"], self.lab.namespaces["twin"]
        self.numbers = itertools.count(1)
        self.is_down = True

    def teardown(self) -> None:
        try:
            done = run_cli(self.host, "teardown")
            assert done.returncode == 0, done.stderr
            self.is_down = True
            self.compare()
        finally:
            self.lab.close()

    def compare(self) -> None:
        assert own_traces(self.host) == []
        assert rules_of(self.host) == rules_of(self.twin)

    @invariant()
    def count(self) -> None:
        """After each step."""
        type(self).steps += 1

    def both(self, *argv: str) -> None:
        for host in (self.host, self.twin):
            host.run(argv, check=False)

    @initialize(program=st.sampled_from(PROGRAMS), table=st.sampled_from(list(TABLES)))
    def begin_with_a_rule_of_somebody(self, program: str, table: str) -> None:
        self.add_a_rule(program, table, 0, "-A")

    def tables_of(self, backend: dict[str, str], mode: str, scope: dict[str, list[str]]) -> Tables:
        return {"rules": {**backend, "mode": mode}, "scope": scope}

    @rule(
        backend=st.sampled_from(BACKENDS),
        mode=st.sampled_from(["redirect", "tproxy"]),
        scope=st.sampled_from(SCOPES),
        connect=st.sampled_from(["plain", "honest"]),
    )
    def set_up(self, backend: dict[str, str], mode: str, scope: dict[str, list[str]], connect: str) -> None:
        tables: Tables = {**self.tables_of(backend, mode, scope), "proxy": {"connect": connect}}
        chosen = toml.parse(as_toml(tables), "t.toml")
        static = self.host.call(StaticRules, chosen, "t.toml")
        note(f"by {static.choice.name}")
        self.host.call(static.install, CONFIG)
        assert own_traces(self.host)
        self.is_down = False

    @rule(backend=st.sampled_from(BACKENDS))
    def tear_down(self, backend: dict[str, str]) -> None:
        chosen = toml.parse(as_toml({"rules": backend}), "t.toml")
        self.host.call(self.host.call(StaticRules, chosen, "t.toml").remove)
        self.is_down = True
        self.compare()

    @rule(
        scope=st.sampled_from(SCOPES),
        backend=st.sampled_from(BACKENDS[:3]),
        connect=st.sampled_from(["plain", "honest"]),
        flushed=st.booleans(),
    )
    def crash(self, scope: dict[str, list[str]], backend: dict[str, str], connect: str, flushed: bool) -> None:
        proxy = {"workers": 1, "connect": connect}
        tables: Tables = {**self.tables_of(backend, "redirect", scope), "proxy": proxy}
        daemon = Daemon(self.host, self.lab.directory, settings=tables, leaves_kernel_as_found=False)
        daemon.start()
        daemon.wait_until_ready()
        workers = daemon.children()
        if flushed:
            self.both("nft", "flush", "ruleset")
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()
        wait_until(lambda: not any(map(is_alive, workers)), "the workers end")
        self.is_down = False

    @rule(scope=st.sampled_from(SCOPES), backend=st.sampled_from(BACKENDS))
    def heal(self, scope: dict[str, list[str]], backend: dict[str, str]) -> None:
        """Somebody flushes all while the daemon holds rules: it restores its own, and then leaves."""
        tables: Tables = {**self.tables_of(backend, "redirect", scope), "proxy": {"workers": 1}}
        with Daemon(self.host, self.lab.directory, settings=tables, leaves_kernel_as_found=False) as daemon:
            stood = set(own_traces(self.host))
            self.both("nft", "flush", "ruleset")
            self.host.run(["ip", "rule", "del", "pref", "32769", "protocol", "64"])
            wait_until(lambda: stood <= set(own_traces(self.host)), "the rules are restored")
            assert daemon.status()["rules_restored"] > 0
        self.is_down = True
        self.compare()

    @rule(
        scope=st.sampled_from(SCOPES),
        backend=st.sampled_from(BACKENDS),
        mode=st.sampled_from(["redirect", "tproxy"]),
        end=st.sampled_from([signal.SIGTERM, signal.SIGKILL]),
    )
    def watch(self, scope: dict[str, list[str]], backend: dict[str, str], mode: str, end: signal.Signals) -> None:
        """The same with `setup --watch`, which leaves its rules however it ends."""
        files = Daemon(
            self.host, self.lab.directory, command="serve", settings=self.tables_of(backend, mode, scope)
        )
        command = (*PROGRAM, "setup", "--watch", "-f", str(files.conf), "-c", str(files.settings))
        watcher = self.host.start(command)
        watcher.wait_for_output("ready: ")
        stood = set(own_traces(self.host))
        self.both("nft", "flush", "ruleset")
        self.host.run(["ip", "rule", "del", "pref", "32769", "protocol", "64"])
        wait_until(lambda: stood <= set(own_traces(self.host)), "the rules are restored")
        watcher.send_signal(end)
        watcher.wait()
        assert stood <= set(own_traces(self.host))
        self.is_down = False

    @rule(before=st.sampled_from(SCOPES), after=st.sampled_from(SCOPES), backend=st.sampled_from(BACKENDS))
    def reload(self, before: dict[str, list[str]], after: dict[str, list[str]], backend: dict[str, str]) -> None:
        """The daemon that holds rules gets another scope, or the same, and then leaves.

        It listens for gateways from its start, or never.
        """
        tables: Tables = {**self.tables_of(backend, "redirect", before), "proxy": {"workers": 1}}
        with Daemon(self.host, self.lab.directory, settings=tables, leaves_kernel_as_found=False) as daemon:
            stood = snapshot(self.host)
            daemon.settings.write_text(
                daemon.settings.read_text().replace(as_toml({"scope": before}), as_toml({"scope": after}))
            )
            done = daemon.run("reload")
            needs_restart = ("gateway" in before) != ("gateway" in after)
            assert done.returncode == (78 if needs_restart else 0), done.stderr
            assert (snapshot(self.host) == stood) == (needs_restart or before == after)
        self.is_down = True
        self.compare()

    @rule(
        program=st.sampled_from(PROGRAMS),
        table=st.sampled_from(list(TABLES)),
        chain=st.integers(0, 1),
        how=st.sampled_from(["-A", "-I"]),
    )
    def add_a_rule(self, program: str, table: str, chain: int, how: str) -> None:
        comment = ("-m", "comment", "--comment", f"theirs {next(self.numbers)}")
        self.both(program, "-w", "-t", table, how, TABLES[table][chain], *comment, "-j", "ACCEPT")

    @rule()
    def add_a_native_rule(self) -> None:
        self.both(
            "nft",
            "add table ip theirs; "
            "add chain ip theirs o { type nat hook output priority -100; }; "
            f"add rule ip theirs o tcp dport {next(self.numbers)} redirect to :25",
        )

    @rule(which=st.integers(0, 2))
    def add_a_route(self, which: int) -> None:
        number = next(self.numbers) % 200
        self.both(
            "ip",
            *(
                f"rule add pref {32700 + number} fwmark 0x6464 lookup 77",
                f"route replace 203.0.113.{number}/32 dev lo table 6464",
                f"address replace 203.0.113.{number}/32 dev lo",
            )[which].split(),
        )

    @rule(program=st.sampled_from(PROGRAMS), table=st.sampled_from(list(TABLES)))
    def flush_a_table(self, program: str, table: str) -> None:
        self.both(program, "-w", "-t", table, "-F")

    @rule()
    def flush_all_of_nftables(self) -> None:
        self.both("nft", "flush", "ruleset")


@pytest.mark.timeout(400)  # a minute on an idle machine
def test_whatever_happens_teardown_leaves_exactly_what_others_have() -> None:
    Hosts.steps = 0
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take many minutes
        database=None,
        print_blob=True,
    )
    while Hosts.steps < ENOUGH_STEPS:
        run_state_machine_as_test(Hosts, settings=chosen)
