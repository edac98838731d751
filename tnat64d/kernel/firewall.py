"""The host's packet rules, whoever made them, as their programs print them.

Owns running the programs and finding marks, policies and jumps in the text. Refuses to own our rules
(`kernel.iptables`, `kernel.nftables`): their lines are left out.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, summarize_address_range
from typing import Any

from tnat64d.core.marks import Mark

TIMEOUT_S = 10.0
_SAVES = ("iptables-nft-save", "iptables-legacy-save")
_PROGRAMS = (*_SAVES, "nft -s list ruleset")

_IPTABLES_MARK = re.compile(r"(?:-m mark(?: !)? --mark|-j MARK --set-x?mark) (\w+)(?:/(\w+))?")
_COMMENT = re.compile(r' (?:-m comment --)?comment (?:"(?:[^"\\]|\\.)*"|\S+)')
_ALL_BITS = 0xFFFFFFFF


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


def marks(listing: dict[str, str]) -> Iterator[tuple[str, Mark, str]]:
    """Each mark of packets that is compared or set: the program, the mark, and the rule in words.

    A range is several, as marks with masks. nft is asked for JSON of its tables (libnftables-json(5)).
    """
    for program in _SAVES:
        for line in map(str.strip, listing.get(program, "").splitlines()):
            for value, mask in _IPTABLES_MARK.findall(line):
                yield program, Mark(int(value, 0), int(mask, 0) if mask else _ALL_BITS), line
    objects = list(_nft_objects(listing))
    sets = {
        (entry["family"], entry["table"], f"@{entry['name']}"): entry.get("elem", [])
        for kind, entry in objects
        if kind in ("set", "map")
    }
    for kind, rule in objects:
        if kind == "rule":
            place = f"table {rule['family']} {rule['table']}, chain {rule['chain']}, handle {rule['handle']}"
            named = {name: elements for (*table, name), elements in sets.items() if table == _table_of(rule)}
            for statement in rule["expr"]:
                yield from (("nft", mark, place) for mark in _marks_of(statement, named))


def _table_of(rule: dict[str, Any]) -> list[str]:
    return [rule["family"], rule["table"]]


def _nft_objects(listing: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, body) of all that nft shows as JSON of the tables in `listing`, but for our chains.

    Table by table: of one that has an owner, such as ours, nft 1.0.6 shows flags that no reader of JSON takes.
    """
    for family, table, _ in _nft_tables(listing.get("nft", "")):
        try:
            entries = json.loads(_printed(f"nft -j list table {family} {table}") or "{}").get("nftables", [])
        except ValueError:
            continue
        for entry in entries:
            for kind, body in entry.items():
                if not str(body.get("chain", "")).startswith("TNAT64D"):
                    yield kind, body


_MARK = {"meta": {"key": "mark"}}


def _marks_of(statement: dict[str, Any], named: dict[str, Any]) -> Iterator[Mark]:
    match statement:
        case {"match": {"left": {"&": [left, int(mask)]}, "right": right}} if left == _MARK:
            yield from (Mark(mark.value, mask) for mark in _values(right, named))
        case {"match": {"left": {"|": [left, int(bits)]}}} if left == _MARK:
            yield Mark(bits, bits)
        case {"match": {"left": left, "right": right}} if left == _MARK:
            yield from _values(right, named)
        case {"vmap": {"key": key, "data": data}} if key == _MARK:
            yield from _values(data, named)
        case {"mangle": {"key": key, "value": value}} if key == _MARK:
            yield from _set_to(value, named)


def _set_to(value: Any, named: dict[str, Any]) -> Iterator[Mark]:
    match value:
        case {"|": [kept, int(bits)]} | {"^": [kept, int(bits)]}:
            # nft also shows the bits that are set as kept: they are written all the same.
            mask = kept["&"][1] ^ _ALL_BITS if isinstance(kept, dict) and "&" in kept else 0
            yield Mark(bits, mask | bits)
        case {"map": {"key": key, "data": data}}:
            if key == _MARK:
                yield from _values(data, named)
            pairs = named.get(data, []) if isinstance(data, str) else data["set"]
            yield from (Mark(pair[1], _ALL_BITS) for pair in pairs if isinstance(pair[1], int))
        case int():
            yield Mark(value, _ALL_BITS)


def _values(right: Any, named: dict[str, Any]) -> Iterator[Mark]:
    """Of a number, a range, a set of these, pairs whose first is one, or the name of a set."""
    match right:
        case int():
            yield Mark(right, _ALL_BITS)
        case {"range": [first, last]}:
            for block in summarize_address_range(IPv4Address(first), IPv4Address(last)):
                yield Mark(int(block.network_address), int(block.netmask))
        case {"elem": {"val": value}}:
            yield from _values(value, named)
        case {"set": elements}:
            yield from _values(elements, named)
        case str():
            yield from _values(named.get(right, []), named)
        case list():
            for element in right:
                yield from _values(element[0] if isinstance(element, list) else element, named)


def dropping_inputs(listing: dict[str, str]) -> Iterator[str]:
    """Each chain at the input hook that drops what nothing accepts, as (program's) words for a user."""
    for program in _SAVES:
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
    for program in _SAVES:
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
