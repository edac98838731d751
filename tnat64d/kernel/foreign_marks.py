"""Other people's packet rules that look at marks or set them.

Owns finding marks in what `kernel.firewall` lists: where a mark is used, and where that of packets on their way
out is written over before our rules see it. Refuses to own our rules, and what follows for us (`doctor.rules`).

A rule is followed into the chains that it names, and left out where it says that it is for other packets: another
protocol, user or mark, or such as have come in. What else it asks for is taken to be so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, summarize_address_range
from typing import Any

from tnat64d.core.marks import Mark
from tnat64d.kernel import firewall

_TABLES_BEFORE_OURS = ("raw", "mangle", "nat")
_PRIORITY_OF_OURS = -90
"""Of the chains that redirect (`kernel.nftables`)."""

_ALL_BITS = 0xFFFFFFFF
_PASSING = ("ACCEPT", "RETURN")
_IPTABLES_MARK = re.compile(r"(?:-m mark( !)? --mark|-j MARK --set-x?mark) (\w+)(?:/(\w+))?")
_IPTABLES_COMPARED = re.compile(r"-m mark( !)? --mark (\w+)(?:/(\w+))?")
_IPTABLES_OWNER = re.compile(r"(! )?--([ug]id)-owner (\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Use:
    """A mark that a rule compares or sets. `is_passing`: it lets such packets pass, or only others meet it."""

    program: str
    mark: Mark
    place: str
    is_passing: bool


@dataclass(frozen=True, slots=True)
class Overwriting:
    """A rule, in words, and the command that lets packets with our mark pass it by."""

    place: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Packets:
    """Those over TCP from this host that have `mark`, of the user `uid` (None: not known)."""

    mark: Mark
    uid: int | None

    def can_have(self, mark: Mark) -> bool:
        """Bits outside of our mask may be any."""
        return not (self.mark.value ^ mark.value) & mark.mask & self.mark.mask

    def must_have(self, mark: Mark) -> bool:
        """Whatever the bits outside of our mask are."""
        return not mark.mask & ~self.mark.mask and self.can_have(mark)

    def may_be_of(self, negation: str, kind: str, first: str, last: str) -> bool:
        """Whether iptables' match of an owner can be theirs; their group is not known."""
        is_theirs = kind == "uid" and self.uid is not None and int(first) <= self.uid <= int(last or first)
        return is_theirs != bool(negation)

    def lose_mark_by(self, written: Mark) -> bool:
        """`written`: (mark & ~mask) ^ value."""
        after = (self.mark.value & ~written.mask) ^ written.value
        return bool((after ^ self.mark.value) & self.mark.mask)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a rule is to certain packets. `is_end`: it lets them pass for no other reason than their mark."""

    place: str
    is_for_them: bool
    is_end: bool
    written: Mark | None
    chains: list[str]


_Chains = Mapping[str, list[_Rule]]


def uses(listing: Mapping[str, str]) -> Iterator[Use]:
    """Each mark of packets that is compared or set. A range is several, as marks with masks."""
    for program in firewall.SAVES:
        for line in map(str.strip, listing.get(program, "").splitlines()):
            is_passing = line.endswith(tuple(f" -j {verdict}" for verdict in _PASSING))
            for negation, value, mask in _IPTABLES_MARK.findall(line):
                yield Use(program, _mark(value, mask), line, is_passing or bool(negation))
    for family, table, objects in firewall.nft_tables(listing):
        sets = {f"@{body['name']}": body.get("elem", []) for kind, body in objects if kind in ("set", "map")}
        for kind, rule in objects:
            if kind == "rule":
                place = f"table {family} {table}, chain {rule['chain']}, handle {rule['handle']}"
                is_passing = _passes(rule["expr"])
                for statement in rule["expr"]:
                    is_for_others = statement.get("match", {}).get("op") == "!="
                    for mark in _marks_of(statement, sets):
                        yield Use("nft", mark, place, is_passing or is_for_others)


def _mark(value: str, mask: str) -> Mark:
    return Mark(int(value, 0), int(mask, 0) if mask else _ALL_BITS)


def overwriting(listing: Mapping[str, str], packets: Packets) -> Iterator[Overwriting]:
    """Each rule before ours by which `packets` lose their mark."""
    for program in firewall.SAVES:
        for table, rules in re.findall(
            r"^\*(\w+)\n(.*?)^COMMIT$", listing.get(program, ""), re.MULTILINE | re.DOTALL
        ):
            if table in _TABLES_BEFORE_OURS:
                command = f"{program.removesuffix('-save')} -t {table}"
                chains = _iptables_chains(command, rules, packets)
                remedy = f"{command} -I OUTPUT -m mark --mark {packets.mark} -j ACCEPT"
                yield from _overwriting(chains, "OUTPUT", packets, remedy)
    by_iptables = re.findall(r"^\*(\w+)$", listing.get("iptables-nft-save", ""), re.MULTILINE)
    for family, table, objects in firewall.nft_tables(listing):
        if family in ("ip", "inet") and (family, table) not in [("ip", name) for name in by_iptables]:
            chains = _nft_chains(f"{family} {table}", objects, packets)
            for kind, body in objects:
                is_base = kind == "chain" and body.get("hook") == "output"
                if is_base and body["prio"] < _PRIORITY_OF_OURS:
                    yield from _overwriting(chains, body["name"], packets, _nft_remedy(body, packets.mark))


def _nft_remedy(chain: dict[str, Any], mark: Mark) -> str:
    place = f"{chain['family']} {chain['table']} {chain['name']}"
    return f"nft insert rule {place} meta mark and {mark.mask:#x} == {mark.value:#x} accept"


def _overwriting(chains: _Chains, base: str, packets: Packets, remedy: str) -> Iterator[Overwriting]:
    for rule in _met(chains, base, (base,)):
        if rule.written is not None and packets.lose_mark_by(rule.written):
            yield Overwriting(rule.place, remedy)


def _met(chains: _Chains, chain: str, above: tuple[str, ...]) -> Iterator[_Rule]:
    """The rules that the packets can meet from `chain` on."""
    for rule in chains.get(chain, []):
        if rule.is_end:
            return
        if rule.is_for_them:
            yield rule
            for each in rule.chains:
                if each not in above:
                    yield from _met(chains, each, (*above, each))


def _iptables_chains(command: str, text: str, packets: Packets) -> _Chains:
    chains: dict[str, list[_Rule]] = {}
    for chain, body in re.findall(r"^-A (\S+) (.*)$", text, re.MULTILINE):
        chains.setdefault(chain, []).append(_iptables_rule(f"{command} -A {chain} {body}", body, packets))
    return chains


def _iptables_rule(place: str, body: str, packets: Packets) -> _Rule:
    marks = [(_mark(value, mask), bool(negation)) for negation, value, mask in _IPTABLES_COMPARED.findall(body)]
    is_for_them = (
        all(not packets.must_have(mark) if negated else packets.can_have(mark) for mark, negated in marks)
        and not re.search(r"(?<!! )-p (?!tcp\b|all\b)\S+|! -p tcp\b|(?<!! )(?:-i|--cgroup|--path) ", body)
        and all(packets.may_be_of(*owner) for owner in _IPTABLES_OWNER.findall(body))
    )
    is_only_mark = re.fullmatch(r"-m mark --mark \S+ -j (?:ACCEPT|RETURN)", body)
    written = None
    if found := re.search(r"-j MARK --set-xmark (\w+)/(\w+)", body):
        written = _mark(found[1], found[2])
    elif found := re.search(r"-j CONNMARK --restore-mark(?: --nfmask (\w+))?", body):
        written = _mark("0", found[1])
    return _Rule(
        place=f"a rule of iptables ({place})",
        is_for_them=is_for_them,
        is_end=is_only_mark is not None and packets.must_have(marks[0][0]),
        written=written,
        chains=re.findall(r"(?:^| )-[jg] (\S+)", body),
    )


def _nft_chains(table: str, objects: firewall.Objects, packets: Packets) -> _Chains:
    chains: dict[str, list[_Rule]] = {}
    for kind, body in objects:
        if kind == "rule":
            place = f"a rule of nft (table {table}, chain {body['chain']}, handle {body['handle']})"
            chains.setdefault(body["chain"], []).append(_nft_rule(place, body["expr"], packets))
    return chains


def _nft_rule(place: str, statements: list[dict[str, Any]], packets: Packets) -> _Rule:
    matches = [statement["match"] for statement in statements if "match" in statement]
    marks = [mark for match in matches for mark in _marks_of({"match": match}, {}) if match["op"] == "=="]
    is_only_mark = len(matches) == 1 and len(marks) == 1 and _passes(statements)
    written = [
        _written(statement["mangle"]["value"])
        for statement in statements
        if statement.get("mangle", {}).get("key") == _MARK
    ]
    return _Rule(
        place=place,
        is_for_them=all(_admits(match, packets) for match in matches),
        is_end=is_only_mark and packets.must_have(marks[0]),
        written=written[0] if written else None,
        chains=[each[verb]["target"] for each in statements for verb in ("jump", "goto") if verb in each],
    )


def _passes(statements: list[dict[str, Any]]) -> bool:
    return any(verdict.lower() in statement for statement in statements for verdict in _PASSING)


def _admits(match: dict[str, Any], packets: Packets) -> bool:
    """Whether `packets` can meet a condition of nft's."""
    is_equal = match["op"] == "=="
    marks = list(_marks_of({"match": match}, {}))
    if marks and is_equal:
        return any(map(packets.can_have, marks))
    if marks and match["op"] == "!=":
        return not any(map(packets.must_have, marks))
    found: Any = None
    match match["left"]:
        case {"payload": {"protocol": "ip", "field": "protocol"}} | {"meta": {"key": "l4proto"}}:
            found = "tcp"
        case {"payload": {"protocol": protocol}}:
            return protocol in ("tcp", "th", "ip", "ether")
        case {"meta": {"key": "nfproto"}}:
            found = "ipv4"
        case {"meta": {"key": "skuid"}}:
            found = packets.uid
        case {"meta": {"key": "skgid" | "cgroup" | "iif" | "iifname"}} | {"socket": _}:
            return not is_equal
        case _:
            return True
    return _holds(match["right"], found) is is_equal


def _holds(right: Any, value: Any) -> bool:
    match right:
        case {"set": elements}:
            return any(_holds(element, value) for element in elements)
        case {"range": [first, last]}:
            return isinstance(value, int) and first <= value <= last
    return bool(right == value)


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


def _written(value: Any) -> Mark:
    """What (mark & ~mask) ^ value makes of a packet's mark; of what is not known before, all bits."""
    match value:
        case int():
            return Mark(value, _ALL_BITS)
        case {"&": [kept, int(mask)]} if kept == _MARK:
            return Mark(0, mask ^ _ALL_BITS)
        case {"^": [kept, int(bits)]} if kept == _MARK:
            return Mark(bits, 0)
        case {"|": [kept, int()]} if kept == _MARK or kept.get("&", [None])[0] == _MARK:
            return next(_set_to(value, {}))
    return Mark(0, _ALL_BITS)


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
