"""The host's packet rules, whoever made them, as their programs print them.

Owns running the programs and finding marks, policies and jumps in the text. Refuses to own our rules
(`kernel.iptables`, `kernel.nftables`): their lines are left out.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from tnat64d.core.ruleset import Mark

TIMEOUT_S = 10.0
_PROGRAMS = ("iptables-nft-save", "iptables-legacy-save", "nft -s list ruleset")

_IPTABLES_MARK = re.compile(r"(?:-m mark(?: !)? --mark|-j MARK --set-x?mark) (\w+)(?:/(\w+))?")
_NFT_MARK = re.compile(r"meta mark (?:(?:&|and) (\w+) (?:==|!=) |(?:set|!=|==) )?(0x\w+)")
_NFT_MARK_SET_BITS = re.compile(r"meta mark set meta mark (?:&|and) (\w+) (?:\||or|\^|xor) (\w+)")
_ALL_BITS = 0xFFFFFFFF


def listings() -> dict[str, str]:
    """What each installed program prints, without our table and our chains."""
    return {program.split()[0]: text for program in _PROGRAMS if (text := _printed(program)) is not None}


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
    return _without_ours(done.stdout) if done.returncode == 0 else None


def _without_ours(text: str) -> str:
    text = re.sub(r"^table ip tnat64d \{.*?^\}\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\tchain TNAT64D[\w-]* \{.*?^\t\}\n", "", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(line for line in text.splitlines(keepends=True) if "TNAT64D" not in line)


def marks(text: str) -> Iterator[tuple[Mark, str]]:
    """Each mark of packets that a listing compares or sets, and its line."""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("-A "):
            for value, mask in _IPTABLES_MARK.findall(line):
                yield Mark(int(value, 0), int(mask, 0) if mask else _ALL_BITS), line
            continue
        bits = _NFT_MARK_SET_BITS.search(line)
        if bits:
            # nft also shows the bits that are set as kept: they are written all the same.
            kept, value = int(bits[1], 0), int(bits[2], 0)
            yield Mark(value, kept ^ _ALL_BITS | value), line
        else:
            for mask, value in _NFT_MARK.findall(line):
                yield Mark(int(value, 0), int(mask, 0) if mask else _ALL_BITS), line


def dropping_inputs(listing: dict[str, str]) -> Iterator[str]:
    """Each chain at the input hook that drops what nothing accepts, as (program's) words for a user."""
    for program in ("iptables-nft-save", "iptables-legacy-save"):
        for table, chains in _filter_tables(listing.get(program, "")):
            if re.search(r"^:INPUT DROP\b", chains, re.MULTILINE) or _drops_at_the_end(chains):
                yield f"{program.removesuffix('-save')}, table {table}, chain INPUT"
    for family, table, body in _nft_tables(listing.get("nft", "")):
        if family == "ip" and table in ("filter", "nat", "mangle", "raw", "security"):
            continue  # iptables-nft's, seen above
        for chain, rules in _nft_chains(body):
            if "hook input" in rules and re.search(r"policy drop;|^\s+(?:drop|reject\b.*)$", rules, re.MULTILINE):
                yield f"nft, table {family} {table}, chain {chain}"


def accepts(listing: dict[str, str], port: int) -> bool:
    """Whether any rule at all lets TCP to `port` in by name."""
    words = (
        rf"(?:--dport {port}\b.*-j ACCEPT|tcp dport {port}\b.* accept|--ctstate DNAT\b.*-j ACCEPT|ct status dnat)"
    )
    return any(re.search(words, text) for text in listing.values())


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
