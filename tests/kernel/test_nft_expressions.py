"""Each condition and each verdict: what the kernel lists of its expressions is its text."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from tests.kernel.bare_host import ruleset
from tests.kernel.test_nft_table import assert_netlink_makes_what_the_text_says
from tests.lab import Namespace
from tnat64d.core.config import Network
from tnat64d.core.marks import Mark
from tnat64d.core.ruleset import Chain, Hook, Match, Rule, Ruleset, Verdict
from tnat64d.kernel.nft_expressions import conditions, jump, verdict

pytestmark = pytest.mark.netns("nft")

CONDITIONS = {
    "any IPv4": Match(tcp_only=False),
    "TCP": Match(),
    "an address": Match(destination=Network.of(IPv4Network("203.0.113.7"))),
    "a network": Match(destination=Network.of(IPv4Network("203.0.113.0/24"))),
    "a mask with holes": Match(destination=Network(int(IPv4Address("10.0.0.1")), 0xFF0000FF)),
    "own addresses": Match(destination_is_own=True),
    "a source": Match(source=IPv4Address("192.0.0.2")),
    "a device": Match(in_device="docker0"),
    "devices": Match(out_device="br-*"),
    "a mark": Match(mark=Mark(0x6464, 0xFFFF)),
    "a mark of 32 bits": Match(mark=Mark(0x80000000, 0x80000001)),
    "a connection's mark": Match(connection_mark=Mark(1, 3)),
    "the way of a connection's first packet": Match(in_original_direction=True),
    "a SYN": Match(begins_connection=True),
    "a port": Match(ports=(22, 22)),
    "ports": Match(ports=(8000, 8100)),
    "a source port": Match(source_port_bits=6),
    "a user": Match(uid=1000),
    "a group": Match(gid=50),
    "several": Match(in_device="docker0", ports=(80, 80), begins_connection=True),
}
HOOKS = {
    Verdict.RETURN: Hook.GUARD_OUTPUT,
    Verdict.REDIRECT: Hook.REDIRECT_OUTPUT,
    Verdict.MARK: Hook.MARK_OUTPUT,
    Verdict.MARK_CONNECTION: Hook.MARK_OUTPUT,
    Verdict.TPROXY: Hook.DIVERT_PREROUTING,
    Verdict.RESET: Hook.GUARD_OUTPUT,
    Verdict.UNTRACK: Hook.UNTRACK_OUTPUT,
}
"""Where the kernel takes each; the queue has its own words (test_nft_table)."""


def with_rule(rule: Rule, hook: Hook) -> Ruleset:
    """A ruleset of nothing but `rule`."""
    return replace(ruleset(), chains=(Chain(hook, (Match(),), (rule,)),))


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_expressions_of_a_condition_are_listed_as_its_text(host: Namespace, name: str) -> None:
    wanted = with_rule(Rule(CONDITIONS[name], Verdict.RETURN), Hook.GUARD_OUTPUT)
    assert_netlink_makes_what_the_text_says(host, wanted)


@pytest.mark.parametrize("what", HOOKS, ids=lambda what: what.value)
def test_the_expressions_of_a_verdict_are_listed_as_its_text(host: Namespace, what: Verdict) -> None:
    assert_netlink_makes_what_the_text_says(host, with_rule(Rule(Match(), what), HOOKS[what]))


def test_a_control_group_is_matched_by_its_identity(host: Namespace, cgroup: Path) -> None:
    for path in (cgroup.parent.name, str(cgroup.relative_to(cgroup.parents[1]))):
        wanted = with_rule(Rule(Match(cgroup=path), Verdict.RETURN), Hook.GUARD_OUTPUT)
        assert_netlink_makes_what_the_text_says(host, wanted)


def test_what_holds_for_every_packet_needs_no_condition() -> None:
    assert list(conditions(Match(tcp_only=False))) == []
    assert jump("there").text == "jump there"


def test_a_queue_is_named_alike_whether_nf_tables_or_xtables_queues() -> None:
    rule = Rule(Match(), Verdict.QUEUE, 6471)
    by_nf_tables, by_xtables = (verdict(rule, ruleset(), queues=queues) for queues in (True, False))
    assert by_nf_tables.text == by_xtables.text == "queue flags bypass to 6471"
    assert by_nf_tables.expressions != by_xtables.expressions
