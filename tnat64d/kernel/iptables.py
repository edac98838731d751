"""A `core.ruleset` through the iptables programs, iptables-nft and iptables-legacy alike.

Owns the chains named TNAT64D… and the jumps to them. Refuses to own what is in them (`core.description`), and
never moves or removes anybody else's rule.

Each table changes in one iptables-restore transaction: `-D` for every jump of ours that iptables-save shows
(so that a second run leaves one, in its right place), `:CHAIN` to make or empty our chains, then their rules.

iptables-nft brings base chains into being that were not there. An empty chain of ours, TNAT64D-MADE-OUTPUT say,
remembers that in the kernel itself, and teardown takes such a base chain (and the table, once empty) away again
if nobody else put anything into it. A table of iptables-legacy, once there, stays until its module or the
network namespace goes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from tnat64d.core.ruleset import HOLD_BITS, Chain, Hook, Match, Rule, Ruleset, Verdict
from tnat64d.errors import PrivilegeError, Tnat64Error
from tnat64d.kernel import capabilities
from tnat64d.kernel.nf_tables import delete_empty_ipv4_table, ipv4_chains
from tnat64d.kernel.standing import Standing

TIMEOUT_S = 60.0
"""For a program that hangs; ten thousand rules take a second."""

LOCK_WAIT_S = 5
"""For the xtables lock (iptables(8), --wait): other programs may be changing rules now."""

CHAINS = {
    Hook.REDIRECT_OUTPUT: "TNAT64D",
    Hook.REDIRECT_PREROUTING: "TNAT64D-GATEWAY",
    Hook.MARK_OUTPUT: "TNAT64D-MARK",
    Hook.MARK_PREROUTING: "TNAT64D-MARK-GATEWAY",
    Hook.DIVERT_PREROUTING: "TNAT64D-DIVERT",
    Hook.GUARD_OUTPUT: "TNAT64D-GUARD",
    Hook.HOLD_OUTPUT: "TNAT64D-HOLD",
    Hook.HOLD_PREROUTING: "TNAT64D-HOLD-GATEWAY",
    Hook.UNTRACK_OUTPUT: "TNAT64D-UNTRACK",
}
MADE = {hook: f"TNAT64D-MADE-{hook.chain}" for hook in Hook}
_OWN = frozenset((*CHAINS.values(), *MADE.values()))


@dataclass(slots=True)
class Table:
    """What iptables-save shows of one table: our chains, our jumps (-j, -g) as `-A …`, the chains others use."""

    own_chains: set[str] = field(default_factory=set)
    own_jumps: list[str] = field(default_factory=list)
    used_chains: set[str] = field(default_factory=set)


def parse_saved(text: str) -> dict[str, Table]:
    """The tables in the output of iptables-save, by name."""
    tables: dict[str, Table] = {}
    table = Table()
    for line in text.split("\n"):  # not splitlines(): a comment may hold what that takes for a line end
        words = line.split()
        if line.startswith("*"):
            table = tables[line[1:]] = Table()
        elif len(words) < 2:
            continue  # COMMIT, or a piece of a comment of several lines
        elif line.startswith(":"):
            if words[0][1:] in _OWN:
                table.own_chains.add(words[0][1:])
            elif words[1] != "ACCEPT":  # a policy of somebody's, or "-" for a chain of somebody's
                table.used_chains.add(words[0][1:])
        elif line.startswith("-A ") and words[1] not in _OWN:
            if words[-2] in ("-j", "-g") and words[-1] in _OWN:
                table.own_jumps.append(line)
            else:
                table.used_chains.add(words[1])
    return tables


def standing(text: str) -> Standing:
    """Our chains and jumps in the output of iptables-save, as it shows them."""
    found: dict[str, bytes] = {}
    for line in text.split("\n"):
        words = line.split()
        if len(words) < 2 or words[0] not in ("-A", *(f":{chain}" for chain in CHAINS.values())):
            continue
        if words[0].startswith(":"):
            found[chain_part(words[0][1:])] = b"\n"
        elif words[1] in CHAINS.values():
            found[chain_part(words[1])] += line.encode(errors="surrogateescape") + b"\n"
        elif words[-2] == "-j" and words[-1] in CHAINS.values():
            name = jump_part(words[-1])
            found[name] = found.get(name, b"") + line.encode(errors="surrogateescape") + b"\n"
    return found


def chain_part(chain: str) -> str:
    """The name that `standing` gives one of CHAINS."""
    return f"the chain {chain}"


def jump_part(chain: str) -> str:
    """The name that `standing` gives the jumps to one of CHAINS."""
    return f"the jump to {chain}"


def render(ruleset: Ruleset, saved: dict[str, Table], base_chains: frozenset[tuple[str, str]] | None) -> str:
    """The input of `iptables-restore --noflush` that makes `ruleset` stand where `saved` stands.

    `base_chains`: (table, chain) of those that nf_tables has now; None for iptables-legacy, which makes none.
    """
    lines: list[str] = []
    for table in dict.fromkeys(hook.table for hook in Hook):
        chains = tuple(chain for chain in ruleset.chains if chain.hook.table == table)
        before = saved.get(table, Table())
        made = {
            MADE[chain.hook]
            for chain in chains
            if base_chains is not None
            and (MADE[chain.hook] in before.own_chains or (table, chain.hook.chain) not in base_chains)
        }
        lines += _transaction(table, chains, before, sorted(made), ruleset)
    return "".join(f"{line}\n" for line in lines)


def _transaction(
    table: str, chains: Sequence[Chain], before: Table, made: Sequence[str], ruleset: Ruleset | None
) -> list[str]:
    """Replace what `before` shows of ours by `chains` and the empty chains `made`."""
    wanted = [*(CHAINS[chain.hook] for chain in chains), *made]
    surplus = sorted(before.own_chains.difference(wanted))
    if not (wanted or surplus or before.own_jumps):
        return []
    lines = [f"*{table}"]
    lines += [f":{chain} - [0:0]" for chain in (*wanted, *surplus)]
    lines += [jump.replace("-A", "-D", 1) for jump in before.own_jumps]
    lines += [f"-X {chain}" for chain in surplus]
    for chain in chains:
        assert ruleset is not None
        lines += [_line(f"-A {CHAINS[chain.hook]}", _rule(rule, ruleset)) for rule in chain.rules]
        position = f"-I {chain.hook.chain} 1" if chain.hook.before_others else f"-A {chain.hook.chain}"
        lines += [_line(position, [*_match(entry), "-j", CHAINS[chain.hook]]) for entry in chain.entries]
    return [*lines, "COMMIT"]


def render_removal(saved: dict[str, Table]) -> str:
    """The input of `iptables-restore --noflush` that leaves nothing of ours where `saved` stands."""
    lines: list[str] = []
    for table, before in saved.items():
        lines += _transaction(table, (), before, (), None)
    return "".join(f"{line}\n" for line in lines)


def _line(command: str, words: Sequence[str]) -> str:
    return " ".join((command, *words))


def _rule(rule: Rule, ruleset: Ruleset) -> list[str]:
    return [*_match(rule.match), "-j", *_target(rule, ruleset)]


def _match(match: Match) -> list[str]:
    assert not match.is_refused, "only nf_tables has the set"
    words = ["-p", "tcp"] if match.tcp_only else []
    if match.source is not None:
        words += ["-s", str(match.source)]
    if match.destination is not None:
        mask = IPv4Address(match.destination.mask)
        words += ["-d", f"{IPv4Address(match.destination.address)}/{mask}"]
    if match.in_device is not None:
        words += ["-i", _device(match.in_device)]
    if match.out_device is not None:
        words += ["-o", _device(match.out_device)]
    if match.mark is not None:
        words += ["-m", "mark", "--mark", str(match.mark)]
    if match.begins_connection:
        words.append("--syn")
    if match.connection_mark is not None:
        words += ["-m", "connmark", "--mark", str(match.connection_mark)]
    if match.in_original_direction:
        words += ["-m", "conntrack", "--ctdir", "ORIGINAL"]
    if match.destination_is_own:
        words += ["-m", "addrtype", "--dst-type", "LOCAL"]
    if match.ports is not None:
        words += ["--dport", "{}:{}".format(*match.ports)]
    if match.source_port_bits is not None:
        # The first two bytes after the IP header, whose length varies (iptables-extensions(8), u32).
        words += ["-m", "u32", "--u32", f"0>>22&0x3C@0>>16&{HOLD_BITS:#x}={match.source_port_bits:#x}"]
    return [*words, *_program(match)]


def _program(match: Match) -> list[str]:
    if match.uid is not None:
        return ["-m", "owner", "--uid-owner", str(match.uid)]
    if match.gid is not None:
        return ["-m", "owner", "--gid-owner", str(match.gid)]
    if match.cgroup is not None:
        return ["-m", "cgroup", "--path", match.cgroup]
    return []


def _device(name: str) -> str:
    """A wildcard is `+` here (iptables(8), --in-interface)."""
    return name[:-1] + "+" if name.endswith("*") else name


def _target(rule: Rule, ruleset: Ruleset) -> list[str]:
    match rule.verdict:
        case Verdict.RETURN:
            return ["RETURN"]
        case Verdict.REDIRECT:
            return ["REDIRECT", "--to-ports", str(ruleset.port)]
        case Verdict.MARK:
            return ["MARK", "--set-xmark", str(ruleset.captured)]
        case Verdict.MARK_CONNECTION:
            return ["CONNMARK", "--set-xmark", str(ruleset.captured)]
        case Verdict.TPROXY:
            return ["TPROXY", "--on-ip", "127.0.0.1", "--on-port", str(ruleset.port)]
        case Verdict.RESET:
            return ["REJECT", "--reject-with", "tcp-reset"]
        case Verdict.QUEUE:
            return ["NFQUEUE", "--queue-num", str(rule.queue), "--queue-bypass"]
        case Verdict.UNTRACK:
            return ["CT", "--notrack"]


def _only_for_us(saved: dict[str, Table], hooks: Iterable[Hook]) -> list[Hook]:
    """Those of `hooks` whose base chain came into being by us, and that nobody else has used since."""
    tables = {hook: saved.get(hook.table, Table()) for hook in hooks}
    return [
        hook
        for hook, table in tables.items()
        if MADE[hook] in table.own_chains and hook.chain not in table.used_chains
    ]


class Iptables:
    """Installs and removes. `program`: iptables, iptables-nft or iptables-legacy, or a path to one.

    Every method raises PrivilegeError without the program or the right to use it, and Tnat64Error, with what
    the program said, where it fails.
    """

    def __init__(self, program: str) -> None:
        self._program = program

    def parts(self, ruleset: Ruleset) -> tuple[str, ...]:
        """The names that `standing` has while `ruleset` stands."""
        chains = [CHAINS[chain.hook] for chain in ruleset.chains]
        return tuple(name for chain in chains for name in (chain_part(chain), jump_part(chain)))

    def standing(self) -> Standing:
        """What stands of ours: each chain, and the jump to it."""
        return standing(self._run("save"))

    def plan(self, ruleset: Ruleset) -> str:
        """What `install` does, for a shell."""
        return self._shell(render(ruleset, self.saved(), self._base_chains()))

    def install(self, ruleset: Ruleset) -> None:
        """Make `ruleset` stand, and no other chain of ours."""
        saved = self.saved()
        self._restore(render(ruleset, saved, self._base_chains()))
        used = {(chain.hook.table, chain.hook.chain) for chain in ruleset.chains}
        self._remove_base_chains(saved, [hook for hook in Hook if (hook.table, hook.chain) not in used])

    def plan_removal(self) -> str:
        """What `remove` does, for a shell; empty if nothing of ours stands."""
        saved = self.saved()
        text = render_removal(saved)
        return "\n".join([self._shell(text), *_base_chain_removals(saved)]) if text else ""

    def remove(self) -> None:
        """Leave no chain of ours, no jump to one, and no base chain that is there only because of us."""
        saved = self.saved()
        text = render_removal(saved)
        if text:
            self._restore(text)
        self._remove_base_chains(saved, Hook)

    def saved(self) -> dict[str, Table]:
        """What stands now."""
        return parse_saved(self._run("save"))

    def _remove_base_chains(self, saved: dict[str, Table], hooks: Iterable[Hook]) -> None:
        """Those of `hooks` that are there only because of us, as `saved` showed before our chains went."""
        for hook in _only_for_us(saved, hooks):
            try:
                self._restore(f"*{hook.table}\n-X {hook.chain}\nCOMMIT\n")
            except Tnat64Error:
                continue  # somebody uses it by now, or this is iptables-legacy
            delete_empty_ipv4_table(hook.table)

    def _base_chains(self) -> frozenset[tuple[str, str]] | None:
        """See `render`. Each kind says what it is: "iptables-save v1.8.9 (legacy)"."""
        return None if "(legacy)" in self._run("save", "--version") else ipv4_chains()

    def _shell(self, text: str) -> str:
        return f"{self._program}-restore --noflush <<'EOF'\n{text}EOF"

    def _restore(self, text: str) -> None:
        self._run("restore", "--noflush", "-w", str(LOCK_WAIT_S), stdin=text)

    def _run(self, what: str, *arguments: str, stdin: str = "") -> str:
        command = [f"{self._program}-{what}", *arguments]
        try:
            completed = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                # Comments in other people's rules are bytes.
                encoding="utf-8",
                errors="surrogateescape",
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise Tnat64Error(f"{command[0]} did not end within {TIMEOUT_S:g} s") from None
        except OSError:
            raise PrivilegeError(
                f"cannot run {command[0]}: install the package iptables, or name another program in "
                "tnat64d.toml, rules.iptables"
            ) from None
        said = " ".join(line for line in completed.stderr.splitlines() if not line.startswith("#"))
        # iptables-legacy-restore does not say why it cannot use a table.
        is_denied = "ermission denied" in said or not capabilities.has(capabilities.CAP_NET_ADMIN)
        if completed.returncode and is_denied:
            raise PrivilegeError(f"{command[0]} was refused by the kernel: run this as root (CAP_NET_ADMIN)")
        if completed.returncode:
            given = f"; it was given:\n{stdin.rstrip()}" if stdin else ""
            raise Tnat64Error(f"{' '.join(command)} failed: {said}{given}")
        return completed.stdout


def _base_chain_removals(saved: dict[str, Table]) -> list[str]:
    """What `Iptables.remove` does after its transaction, as nft(8) commands."""
    chains = ipv4_chains()
    made = {
        (hook.table, hook.chain)
        for hook in _only_for_us(saved, Hook)
        if (hook.table, MADE[hook]) in chains  # else this is iptables-legacy
    }
    in_use = {table for table, chain in chains - made if chain not in _OWN}
    lines = [f"nft delete chain ip {table} {chain}" for table, chain in sorted(made)]
    return lines + [f"nft delete table ip {table}" for table in sorted({table for table, _ in made} - in_use)]
