"""A `core.ruleset` as the table `ip tnat64d` of nf_tables: its text for nft(8), and the messages that make it.

    set refused         address . port, which the kernel forgets by itself
    counter refused     of those whose destination was in it
    chain HOOK          type, hook, priority;  entry conditions, jump to HOOK-rules
    chain HOOK-rules    the rules, in order

Owns what it is made of. Refuses to own when it is made and removed (`kernel.nftables`), and how a condition or a
verdict is written (`kernel.nft_expressions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tnat64d.core.ruleset import REFUSED, Chain, Hook, Rule, Ruleset
from tnat64d.errors import PrivilegeError, Tnat64Error
from tnat64d.kernel import refused_set
from tnat64d.kernel.nfnetlink import (
    APPEND,
    CREATE,
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    Message,
    NfTables,
    nested,
    number,
    text,
)
from tnat64d.kernel.nft_expressions import Part, conditions, jump, parts, queue

TABLE = "tnat64d"

_NF_INET_PRE_ROUTING, _NF_INET_LOCAL_OUT = 0, 3


@dataclass(frozen=True, slots=True)
class _BaseChain:
    """After other people's chains of the same kind by 10, or before them (linux/netfilter_ipv4.h).

    What marks and diverts in prerouting comes after destination NAT, which that of iptables cannot.
    """

    name: str
    kind: str
    hook_name: str
    hook: int
    priority: int


BASE_CHAINS = {
    Hook.REDIRECT_OUTPUT: _BaseChain("redirect-output", "nat", "output", _NF_INET_LOCAL_OUT, -90),
    Hook.REDIRECT_PREROUTING: _BaseChain("redirect-prerouting", "nat", "prerouting", _NF_INET_PRE_ROUTING, -90),
    Hook.MARK_OUTPUT: _BaseChain("mark-output", "route", "output", _NF_INET_LOCAL_OUT, -140),
    Hook.MARK_PREROUTING: _BaseChain("mark-prerouting", "filter", "prerouting", _NF_INET_PRE_ROUTING, -90),
    Hook.DIVERT_PREROUTING: _BaseChain("divert-prerouting", "filter", "prerouting", _NF_INET_PRE_ROUTING, -80),
    Hook.HOLD_OUTPUT: _BaseChain("hold-output", "filter", "output", _NF_INET_LOCAL_OUT, -130),
    Hook.HOLD_PREROUTING: _BaseChain("hold-prerouting", "filter", "prerouting", _NF_INET_PRE_ROUTING, -290),
    Hook.UNTRACK_OUTPUT: _BaseChain("untrack-output", "filter", "output", _NF_INET_LOCAL_OUT, -290),
    Hook.GUARD_OUTPUT: _BaseChain("guard-output", "filter", "output", _NF_INET_LOCAL_OUT, -10),
}


def removal_of_any() -> list[Message]:
    """Leave no table; adding it first makes deleting right whether or not there was one."""
    table = (text(1, TABLE),)
    return [Message(NFT_MSG_NEWTABLE, table, CREATE), Message(NFT_MSG_DELTABLE, table)]


def render(ruleset: Ruleset) -> str:
    """The table in the language of nft(8), to be read or given to `nft -f`."""
    lines = [f"add table ip {TABLE}", f"delete table ip {TABLE}", f"table ip {TABLE} {{"]
    if ruleset.refusal_memory_ms:
        lines += [f"\tcounter {REFUSED} {{", "\t}", "", f"\tset {REFUSED} {{"]
        lines += [f"\t\t{line}" for line in refused_set.describe(ruleset.refusal_memory_ms)]
        lines += ["\t}", ""]
    for chain in ruleset.chains:
        base = BASE_CHAINS[chain.hook]
        lines.append(f"\tchain {base.name}-rules {{")
        lines += [f"\t\t{_text(rule, ruleset)}" for rule in chain.rules]
        lines += ["\t}", "", f"\tchain {base.name} {{"]
        lines.append(f"\t\ttype {base.kind} hook {base.hook_name} priority {base.priority}; policy accept;")
        for entry in chain.entries:
            entered = (*conditions(entry), jump(f"{base.name}-rules"))
            lines.append(f"\t\t{' '.join(part.text for part in entered)}")
        lines += ["\t}", ""]
    return "\n".join(lines[:-1]) + "\n}\n"


def _text(rule: Rule, ruleset: Ruleset) -> str:
    return " ".join(part.text for part in parts(rule, ruleset))


def new(flags: int) -> Message:
    """Make the table, empty; `flags`: NFT_TABLE_F_OWNER or 0."""
    return Message(NFT_MSG_NEWTABLE, (text(1, TABLE), number(2, flags)), CREATE)


def messages(ruleset: Ruleset, flags: int, *, queues: bool, refused_count: int = 0) -> Iterator[Message]:
    """The messages that make the table; `flags`: see `new`; `queues`: see `has_queues`.

    `refused_count`: what the counter goes on from.
    """
    yield new(flags)
    if ruleset.refusal_memory_ms:
        yield refused_set.make_counter(TABLE, refused_count)
        yield refused_set.make(TABLE, ruleset.refusal_memory_ms)
    for chain in ruleset.chains:
        yield from _chain_messages(chain, ruleset, queues)


def has_queues(netlink: NfTables, ruleset: Ruleset) -> bool:
    """Whether the kernel has nf_tables' own way to queue; without it, that of xtables does the same.

    Asked by making such a rule and taking it away in one transaction, and only if `ruleset` has any.
    """
    if all(rule.queue is None for chain in ruleset.chains for rule in chain.rules):
        return True
    table = f"{TABLE}-probe"
    try:
        netlink.commit(
            [
                Message(NFT_MSG_NEWTABLE, (text(1, table),), CREATE),
                Message(NFT_MSG_NEWCHAIN, (text(1, table), text(3, "queue")), CREATE),
                Message(NFT_MSG_NEWRULE, (text(1, table), text(2, "queue"), nested(4, queue(0))), APPEND),
                Message(NFT_MSG_DELTABLE, (text(1, table),)),
            ]
        )
    except PrivilegeError:
        raise
    except Tnat64Error:
        return False
    return True


def _chain_messages(chain: Chain, ruleset: Ruleset, queues: bool) -> Iterator[Message]:
    base = BASE_CHAINS[chain.hook]
    rules_chain = f"{base.name}-rules"
    hook = nested(4, number(1, base.hook), number(2, base.priority))
    yield Message(NFT_MSG_NEWCHAIN, (text(1, TABLE), text(3, rules_chain)), CREATE)
    yield Message(NFT_MSG_NEWCHAIN, (text(1, TABLE), text(3, base.name), hook, text(7, base.kind)), CREATE)
    for rule in chain.rules:
        yield _rule_message(rules_chain, parts(rule, ruleset, queues=queues))
    for entry in chain.entries:
        yield _rule_message(base.name, [*conditions(entry), jump(rules_chain)])


def _rule_message(chain: str, made_of: Iterable[Part]) -> Message:
    expressions = [expression for part in made_of for expression in part.expressions]
    return Message(NFT_MSG_NEWRULE, (text(1, TABLE), text(2, chain), nested(4, *expressions)), APPEND)
