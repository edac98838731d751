"""Chains and jumps by both iptables, among the rules of others; and that no trace of them stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.bare_host import CONFIG, PORT, honest_ruleset, own_traces, ruleset, run_python, standing
from tests.lab import Namespace
from tnat64d.core.description import describe
from tnat64d.core.ruleset import Hook
from tnat64d.core.scope import Scope
from tnat64d.core.settings import Mode, Rules
from tnat64d.errors import PrivilegeError, Tnat64Error
from tnat64d.kernel.iptables import CHAINS, MADE, Iptables, parse_saved

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")

# As a container engine and a firewall leave them, and names and comments that resemble ours.
FOREIGN = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A OUTPUT -o lo -p udp -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:TNAT64D-MINE - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -d 198.51.100.77/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:8080
-A OUTPUT -p tcp -j TNAT64D-MINE
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A TNAT64D-MINE -m comment --comment TNAT64D -j RETURN
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A OUTPUT -m comment --comment "say \\"hello\\", then -j TNAT64D" -j MARK --set-xmark 0x1/0x1
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:my-chain - [0:0]
-A INPUT -i lo -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -m comment --comment "a -A OUTPUT -j TNAT64D-GUARD" -j my-chain
-A my-chain -m comment --comment "-j TNAT64D"
COMMIT
"""
NATIVE = "table inet firewall { chain output { type filter hook output priority 0; tcp dport 25 reject; }; }"


@pytest.fixture
def busy_host(host: Namespace, program: str) -> Namespace:
    """A host whose administrator uses `program` and nft."""
    host.run([f"{program}-restore"], input=FOREIGN)
    host.run(["nft", NATIVE])
    return host


def rules_of(host: Namespace, program: str) -> str:
    return standing(host)[f"{program}-save"]


def install(host: Namespace, program: str, mode: Mode) -> None:
    host.call(Iptables(program).install, ruleset(mode))


def remove(host: Namespace, program: str) -> None:
    host.call(Iptables(program).remove)


def base_chains(host: Namespace) -> list[str]:
    """Where nf_tables hooks into the way of packets."""
    return sorted(re.findall(r"type .* hook .*", standing(host)["nft --stateless list ruleset"]))


def appended(saved: str, table: str, chain: str) -> list[str]:
    """The rules of a chain, in order."""
    text = saved.partition(f"*{table}\n")[2].partition("COMMIT\n")[0]
    return [line for line in text.splitlines() if line.startswith(f"-A {chain} ")]


def test_installing_and_removing_leaves_the_rules_of_others_as_they_were(
    busy_host: Namespace, program: str, mode: Mode
) -> None:
    before = standing(busy_host)
    install(busy_host, program, mode)
    assert len(own_traces(busy_host)) > 10
    remove(busy_host, program)
    assert standing(busy_host) == before


@pytest.mark.parametrize("program", ["iptables-nft"])
def test_on_an_empty_host_not_even_a_base_chain_stays(host: Namespace, program: str, mode: Mode) -> None:
    before = standing(host)
    install(host, program, mode)
    remove(host, program)
    assert standing(host) == before


@pytest.mark.parametrize("program", ["iptables-legacy"])
def test_on_an_empty_host_only_empty_tables_of_iptables_legacy_stay(
    host: Namespace, program: str, mode: Mode
) -> None:
    install(host, program, mode)
    remove(host, program)
    lines = rules_of(host, program).splitlines()
    assert all(re.fullmatch(r"\*\w+|:[A-Z]+ ACCEPT |COMMIT", line) for line in lines)


def test_installing_again_changes_nothing(busy_host: Namespace, program: str, mode: Mode) -> None:
    install(busy_host, program, mode)
    once = standing(busy_host)
    install(busy_host, program, mode)
    assert standing(busy_host) == once


def test_held_packets_go_to_the_queues_for_each_honest_place(
    busy_host: Namespace, program: str, mode: Mode
) -> None:
    before = standing(busy_host)
    for _ in range(2):  # a second time changes nothing
        busy_host.call(Iptables(program).install, honest_ruleset(mode))
        shown = busy_host.run([f"{program}-save", "-t", "mangle"]).stdout
        assert re.findall(r"--queue-num (\d+) --queue-bypass", shown)[:8] == [str(6464 + n) for n in range(8)]
        (*_, first, second) = [line for line in shown.splitlines() if line.startswith("-A OUTPUT")]
        assert re.search("--dport 80 .*-j TNAT64D-HOLD$", first)
        assert re.search("-d 203.0.113.0/24 .*--dport 8000:8100 .*-j TNAT64D-HOLD$", second)
        raw = busy_host.run([f"{program}-save", "-t", "raw"]).stdout
        assert len(re.findall(r"^-A PREROUTING .*-i docker0 .*-j TNAT64D-HOLD-GATEWAY$", raw, re.MULTILINE)) == 2
    install(busy_host, program, mode)
    assert "HOLD" not in busy_host.run([f"{program}-save"]).stdout
    remove(busy_host, program)
    assert standing(busy_host) == before


def test_what_comes_in_by_a_gateway_is_marked_before_it_is_diverted(busy_host: Namespace, program: str) -> None:
    before = standing(busy_host)
    wanted = describe(CONFIG, Rules(mode=Mode.TPROXY), Scope(gateway=("docker0", "br-*")), PORT)
    busy_host.call(Iptables(program).install, wanted)
    shown = busy_host.run([f"{program}-save", "-t", "mangle"]).stdout
    jumps = re.findall(r"^-A PREROUTING -i (\S+) -p tcp -j (\S+)$", shown, re.MULTILINE)
    mark, divert = "TNAT64D-MARK-GATEWAY", "TNAT64D-DIVERT"
    assert jumps == [("docker0", mark), ("br-+", mark), ("lo", divert), ("docker0", divert), ("br-+", divert)]
    assert re.search(rf"-A {mark} -p tcp .*--ctdir ORIGINAL -j MARK --set-xmark 0x6465/0xffff", shown)
    remove(busy_host, program)
    assert standing(busy_host) == before


@pytest.mark.parametrize("program", ["iptables-nft"])
def test_base_chains_of_held_packets_go_with_them(host: Namespace, program: str, mode: Mode) -> None:
    install(host, program, mode)
    plain = standing(host)
    host.call(Iptables(program).install, honest_ruleset(mode))
    install(host, program, mode)
    assert standing(host) == plain


@pytest.mark.parametrize(("first", "second"), [(Mode.REDIRECT, Mode.TPROXY), (Mode.TPROXY, Mode.REDIRECT)])
def test_a_change_of_mode_leaves_nothing_of_the_first(
    busy_host: Namespace, program: str, first: Mode, second: Mode
) -> None:
    install(busy_host, program, second)
    expected = standing(busy_host)
    install(busy_host, program, first)
    assert standing(busy_host) != expected
    install(busy_host, program, second)
    assert standing(busy_host) == expected


@pytest.mark.parametrize(("first", "second"), [(Mode.REDIRECT, Mode.TPROXY), (Mode.TPROXY, Mode.REDIRECT)])
@pytest.mark.parametrize("program", ["iptables-nft"])
def test_a_change_of_mode_leaves_no_base_chain_of_the_first(
    host: Namespace, program: str, first: Mode, second: Mode
) -> None:
    before = standing(host)
    install(host, program, second)
    chains = base_chains(host)
    remove(host, program)
    install(host, program, first)
    assert base_chains(host) != chains
    install(host, program, second)
    assert base_chains(host) == chains
    remove(host, program)
    assert standing(host) == before


def test_chains_of_legacy_do_not_depend_on_those_of_nf_tables(host: Namespace, mode: Mode) -> None:
    install(host, "iptables-legacy", mode)
    alone = rules_of(host, "iptables-legacy")
    assert "MADE" not in alone
    install(host, "iptables-nft", mode)
    install(host, "iptables-legacy", mode)
    assert rules_of(host, "iptables-legacy") == alone


def test_removing_twice_or_for_nothing_changes_nothing(busy_host: Namespace, program: str) -> None:
    before = standing(busy_host)
    remove(busy_host, program)
    assert standing(busy_host) == before
    install(busy_host, program, Mode.REDIRECT)
    remove(busy_host, program)
    remove(busy_host, program)
    assert standing(busy_host) == before


def test_what_a_half_finished_setup_left_is_removed(busy_host: Namespace, program: str) -> None:
    before = standing(busy_host)
    for hook, chain in CHAINS.items():
        busy_host.run([program, "-t", hook.table, "-N", chain])
    busy_host.run([program, "-t", "nat", "-N", next(iter(MADE.values()))])
    busy_host.run([program, "-t", "nat", "-A", "TNAT64D", "-j", "RETURN"])
    remove(busy_host, program)
    assert standing(busy_host) == before


def test_jumps_that_stand_several_times_or_in_other_places_are_removed(busy_host: Namespace, program: str) -> None:
    before = standing(busy_host)
    install(busy_host, program, Mode.REDIRECT)
    for place in ("OUTPUT", "OUTPUT", "PREROUTING", "DOCKER"):
        busy_host.run([program, "-t", "nat", "-I", place, "-p", "tcp", "-d", "198.51.100.1", "-j", "TNAT64D"])
    comment = ["-m", "comment", "--comment", 'two  blanks and "quotes"']
    busy_host.run([program, "-t", "nat", "-A", "OUTPUT", *comment, "-j", "TNAT64D"])
    remove(busy_host, program)
    assert standing(busy_host) == before


def test_a_goto_to_our_chains_is_removed_like_a_jump(busy_host: Namespace, program: str) -> None:
    before = rules_of(busy_host, program)
    install(busy_host, program, Mode.REDIRECT)
    busy_host.run([program, "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "-g", CHAINS[Hook.REDIRECT_OUTPUT]])
    remove(busy_host, program)
    assert rules_of(busy_host, program) == before


def test_jumps_that_stand_several_times_are_one_after_the_next_setup(
    busy_host: Namespace, program: str, mode: Mode
) -> None:
    install(busy_host, program, mode)
    expected = standing(busy_host)
    for hook in (chain.hook for chain in ruleset(mode).chains):
        for option in ("-I", "-A"):
            busy_host.run([program, "-t", hook.table, option, hook.chain, "-p", "tcp", "-j", CHAINS[hook]])
    install(busy_host, program, mode)
    assert standing(busy_host) == expected


def test_the_jump_is_last_in_nat_output_and_the_guard_first_in_filter_output(
    busy_host: Namespace, program: str
) -> None:
    install(busy_host, program, Mode.REDIRECT)
    busy_host.run([program, "-t", "nat", "-A", "OUTPUT", "-d", "198.51.100.9", "-j", "RETURN"])
    busy_host.run([program, "-I", "OUTPUT", "-o", "lo", "-j", "ACCEPT"])
    install(busy_host, program, Mode.REDIRECT)
    saved = rules_of(busy_host, program)
    assert appended(saved, "nat", "OUTPUT")[-1] == "-A OUTPUT -p tcp -j TNAT64D"
    assert appended(saved, "filter", "OUTPUT")[0] == "-A OUTPUT -s 192.0.0.2/32 -o lo -p tcp -j TNAT64D-GUARD"


def test_what_others_add_in_the_meantime_stays(host: Namespace, program: str, mode: Mode) -> None:
    install(host, program, mode)
    host.run([program, "-t", "filter", "-A", "OUTPUT", "-p", "tcp", "--dport", "25", "-j", "REJECT"])
    host.run([program, "-t", "mangle", "-P", "OUTPUT", "DROP"])
    host.run([program, "-t", "nat", "-N", "THEIRS"])
    remove(host, program)
    saved = rules_of(host, program)
    assert len(appended(saved, "filter", "OUTPUT")) == 1
    assert ":OUTPUT DROP" in saved
    assert ":THEIRS -" in saved
    assert own_traces(host) == []


@pytest.mark.parametrize("program", ["iptables-nft"])
def test_a_base_chain_made_for_us_goes_although_others_use_its_table(host: Namespace, program: str) -> None:
    host.run([program, "-A", "INPUT", "-i", "lo", "-j", "ACCEPT"])
    before = standing(host)
    install(host, program, Mode.REDIRECT)
    remove(host, program)
    assert standing(host) == before


@pytest.mark.parametrize(
    "comment",
    ["\udcff\udcfe", "a\u2028-A OUTPUT -j TNAT64D\x85b", "carriage\rreturn", "\n:a\n-A\n*\n", "\n-A x\n"],
)
def test_comments_of_others_may_hold_anything(host: Namespace, program: str, comment: str) -> None:
    host.run([program, "-A", "OUTPUT", "-m", "comment", "--comment", comment, "-j", "ACCEPT"])
    host.run([program, "-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT"])  # both tables are there already
    before = standing(host)
    install(host, program, Mode.REDIRECT)
    install(host, program, Mode.REDIRECT)
    remove(host, program)
    assert standing(host) == before


@pytest.mark.parametrize("program", ["iptables-nft"])
@pytest.mark.parametrize("other", ["iptables-legacy"])
def test_the_two_iptables_leave_each_other_alone(host: Namespace, program: str, other: str) -> None:
    host.run([f"{other}-restore"], input=FOREIGN)
    install(host, other, Mode.REDIRECT)
    before = standing(host)
    install(host, program, Mode.TPROXY)
    remove(host, program)
    assert standing(host) == before


def test_nothing_to_remove_is_an_empty_plan(busy_host: Namespace, program: str) -> None:
    backend = Iptables(program)
    assert busy_host.call(backend.plan_removal) == ""
    install(busy_host, program, Mode.REDIRECT)
    assert "-X TNAT64D" in busy_host.call(backend.plan_removal)


def test_a_plan_changes_nothing(busy_host: Namespace, program: str, mode: Mode) -> None:
    before = standing(busy_host)
    assert ":TNAT64D" in busy_host.call(Iptables(program).plan, ruleset(mode))
    assert standing(busy_host) == before


INSTALL = """
import os, sys
from tests.kernel.bare_host import ruleset
from tnat64d.errors import PrivilegeError
from tnat64d.kernel.iptables import Iptables
if sys.argv[2] == "nobody":
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    Iptables(sys.argv[1]).install(ruleset())
except PrivilegeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("user", "wrapper"), [("nobody", []), ("root", ["setpriv", "--bounding-set=-net_admin", "--"])]
)
def test_without_the_right_to_change_rules_it_says_so(
    host: Namespace, program: str, user: str, wrapper: list[str]
) -> None:
    said = run_python(host, INSTALL, program, user, wrapper=wrapper)
    assert "run this as root (CAP_NET_ADMIN)" in said


@pytest.mark.parametrize("name", ["no-such-iptables", "/no/such/iptables", "/etc/passwd/iptables"])
@pytest.mark.parametrize("call", [lambda backend: backend.install(ruleset()), lambda backend: backend.remove()])
def test_a_missing_program_names_the_package_and_the_key(
    host: Namespace, name: str, call: Callable[[Iptables], None]
) -> None:
    with pytest.raises(PrivilegeError, match=re.escape(name)) as caught:
        host.call(call, Iptables(name))
    assert "package iptables" in str(caught.value)
    assert "tnat64d.toml, rules.iptables" in str(caught.value)


def test_a_program_that_hangs_is_given_up(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tnat64d.kernel.iptables.TIMEOUT_S", 0.2)
    script = tmp_path / "iptables-save"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o755)
    with pytest.raises(Tnat64Error, match=r"iptables-save did not end within 0\.2 s"):
        host.call(Iptables(str(tmp_path / "iptables")).saved)


def test_what_is_no_program_is_like_none(host: Namespace, tmp_path: Path) -> None:
    script = tmp_path / "iptables-save"
    script.write_text("neither binary nor script")
    script.chmod(0o755)
    with pytest.raises(PrivilegeError, match=r"cannot run .*iptables-save"):
        host.call(Iptables(str(tmp_path / "iptables")).saved)


def test_a_program_that_fails_is_quoted_with_what_it_was_given(host: Namespace, tmp_path: Path) -> None:
    (tmp_path / "iptables-save").symlink_to("/bin/true")
    script = tmp_path / "iptables-restore"
    script.write_text("#!/bin/sh\necho 'line 3 is not to my liking' >&2\nexit 2\n")
    script.chmod(0o755)
    with pytest.raises(Tnat64Error, match="line 3 is not to my liking") as caught:
        host.call(Iptables(str(tmp_path / "iptables")).install, ruleset())
    assert caught.type is Tnat64Error
    assert "-A TNAT64D -p tcp --syn -j REDIRECT --to-ports 6464" in str(caught.value)


def test_what_iptables_save_shows_is_told_apart() -> None:
    jump = "-A OUTPUT -p tcp -j TNAT64D"
    tables = parse_saved(
        FOREIGN.replace(":DOCKER", ":TNAT64D - [0:0]\n:DOCKER").replace("-A DOCKER", f"{jump}\n-A DOCKER")
    )
    assert tables["nat"].own_chains == {"TNAT64D"}
    assert tables["nat"].own_jumps == [jump]
    assert tables["nat"].used_chains == {"PREROUTING", "OUTPUT", "POSTROUTING", "DOCKER", "TNAT64D-MINE"}
    assert tables["mangle"].own_jumps == tables["filter"].own_jumps == []
    assert tables["mangle"].used_chains == {"OUTPUT"}
    assert tables["filter"].used_chains == {"INPUT", "FORWARD", "OUTPUT", "my-chain"}
