"""The host's packet rules, whoever made them, as their programs print them.

Owns running the programs and finding policies and jumps in the text. Refuses to own marks (`kernel.foreign_marks`)
and our rules (`kernel.iptables`, `kernel.nftables`): their lines are left out.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

TIMEOUT_S = 10.0
SAVES = ("iptables-nft-save", "iptables-legacy-save")
_PROGRAMS = (*SAVES, "nft -s list ruleset")

_COMMENT = re.compile(r' (?:-m comment --)?comment (?:"(?:[^"\\]|\\.)*"|\S+)')

Objects = list[tuple[str, dict[str, Any]]]


def listings() -> dict[str, str]:
    """What each installed program prints, without comments, and without our table and our chains."""
    printed = {command.split()[0]: _printed(command) for command in _PROGRAMS}
    return {name: _without_ours(_COMMENT.sub("", text)) for name, text in printed.items() if text is not None}


def _printed(command: str) -> str | None:
    try:
        done = subprocess.run(
            command.split(),
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _without_ours(text: str) -> str:
    text = re.sub(r"\bcounter (?!name)", "", text)
    text = re.sub(r"^table ip tnat64d \{.*?^\}\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\tchain TNAT64D[\w-]* \{.*?^\t\}\n", "", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(line for line in text.splitlines(keepends=True) if "TNAT64D" not in line)


def nft_tables(listing: Mapping[str, str]) -> Iterator[tuple[str, str, Objects]]:
    """Family, name, and (kind, body) of all that nft shows as JSON (libnftables-json(5)) of each table in
    `listing`, but for our chains.

    Table by table: of one that has an owner, such as ours, nft 1.0.6 shows flags that no reader of JSON takes.
    """
    for family, table, _ in _nft_tables(listing.get("nft", "")):
        try:
            entries = json.loads(_printed(f"nft -j list table {family} {table}") or "{}").get("nftables", [])
        except ValueError:
            continue
        objects = [(kind, body) for entry in entries for kind, body in entry.items()]
        yield family, table, [each for each in objects if not str(each[1].get("chain", "")).startswith("TNAT64D")]


def dropping_inputs(listing: dict[str, str]) -> Iterator[str]:
    """Each chain at the input hook that drops what nothing accepts, as (program's) words for a user."""
    for program in SAVES:
        for table, chains in _filter_tables(listing.get(program, "")):
            if re.search(r"^:INPUT DROP\b", chains, re.MULTILINE) or _drops_at_the_end(chains):
                yield f"{program.removesuffix('-save')}, table {table}, chain INPUT"
    for family, table, body in _nft_tables(listing.get("nft", "")):
        if family == "ip" and table in ("filter", "nat", "mangle", "raw", "security"):
            continue  # iptables-nft's, seen above
        for chain, rules in _nft_chains(body):
            if "hook input" in rules and re.search(r"policy drop;|^\s+(?:drop|reject\b.*)$", rules, re.MULTILINE):
                yield f"nft, table {family} {table}, chain {chain}"


def accepts(listing: dict[str, str], port: int | None, device: str) -> bool:
    """Whether a rule at the input hook lets TCP to `port` in by name, or all, from `device` (`*`: a wildcard).

    `port` None: what TPROXY has diverted, whatever its port.
    """
    by_iptables, by_nft = _DIVERTED if port is None else _to_port(port)
    words = rf"(?:{by_iptables}).*-j ACCEPT|^(?:-i \S+ )?-j ACCEPT$"
    for program in SAVES:
        for _, chains in _filter_tables(listing.get(program, "")):
            if any(re.search(words, rule) for rule in _input_rules(chains, device)):
                return True
    words = rf"{by_nft}|^(?:iif\S* \S+ )?accept$"
    return any(
        re.search(words, rule)
        for _, _, body in _nft_tables(listing.get("nft", ""))
        for rule in _nft_input_rules(body, device)
    )


_DIVERTED = ("-m socket --transparent", "socket transparent 1 .*accept")
"""As iptables and nft write it."""


def _to_port(port: int) -> tuple[str, str]:
    by_nft = rf"tcp dport (?:\S*\b{port}\b|\{{[^}}]*\b{port}\b).* accept|ct status dnat"
    return rf"--dports? \S*\b{port}\b|--ctstate DNAT\b", by_nft


def _input_rules(chains: str, device: str) -> Iterator[str]:
    """The rules of INPUT, and of chains that it jumps to, which packets from `device` can meet."""
    rules: dict[str, list[str]] = {}
    for chain, rule in re.findall(r"^-A (\S+) (.*)$", chains, re.MULTILINE):
        rules.setdefault(chain, []).append(rule)
    return _met(rules, ["INPUT"], r"-[jg] (\S+)", r"(?<!! )-i (\S+)", device)


def _nft_input_rules(body: str, device: str) -> Iterator[str]:
    rules = {chain: [line.strip() for line in text.splitlines()] for chain, text in _nft_chains(body)}
    bases = [chain for chain, text in _nft_chains(body) if "hook input" in text]
    return _met(rules, bases, r"(?:jump|goto) (\S+)", r'iif(?:name)? ("[^"]+"|\{[^}]*\})', device)


def _met(rules: dict[str, list[str]], chains: list[str], jump: str, in_device: str, device: str) -> Iterator[str]:
    """`jump` and `in_device` find what a rule names; `chains`: where packets come in."""
    seen = list(chains)
    for chain in seen:
        for rule in rules.get(chain, []):
            named = re.search(in_device, rule)
            if named and not any(_overlap(name, device) for name in re.findall(r"[\w.:@*+-]+", named[1])):
                continue
            yield rule
            seen += [target for target in re.findall(jump, rule) if target in rules and target not in seen]


def _overlap(rule: str, device: str) -> bool:
    pattern = rule[:-1] + "*" if rule.endswith("+") else rule
    return fnmatch.fnmatchcase(device, pattern) or fnmatch.fnmatchcase(pattern, device)


def _filter_tables(text: str) -> Iterator[tuple[str, str]]:
    for table, chains in re.findall(r"^\*(\w+)\n(.*?)^COMMIT$", text, re.MULTILINE | re.DOTALL):
        if table == "filter":
            yield table, chains


def _drops_at_the_end(chains: str) -> bool:
    """A last rule of INPUT without a condition."""
    rules = re.findall(r"^-A INPUT (.*)$", chains, re.MULTILINE)
    return bool(rules) and re.fullmatch(r"-j (DROP|REJECT)( --reject-with \S+)?", rules[-1]) is not None


def _nft_tables(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r"^table (\w+) (\S+) \{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL)


def _nft_chains(body: str) -> list[tuple[str, str]]:
    return re.findall(r"^\tchain (\S+) \{\n(.*?)^\t\}$", body, re.MULTILINE | re.DOTALL)
