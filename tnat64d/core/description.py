"""What must stand in the kernel, as data: addresses, routes, policy rules and packet chains.

Owns the one description of it (`describe`): nothing here is decided twice. Refuses to own the words in which it
is given (`core.ruleset`), and any syntax: backends render chains (`kernel.iptables`, `kernel.nft_table`), pyroute2
carries out the rest (`kernel.routes`).

The way of a program's SYN to an IPv4 server, on a host without IPv4:

    route lookup    main, default: nothing; rule 32769 finds the fallback route (device lo, source A), which is
                    none for what comes in from elsewhere: that is told, as ever, that there is no way
    capture chain   exempt destinations return; the rest is sent to the listener, if it begins a connection:
                    conntrack may see connections older than the rules for the first time, too
    guard chain     what leaves by lo with source A and was not captured is reset, or it would hang
    rule 32768      the daemon's own IPv4 attempts (fwmark) find no fallback route: ENETUNREACH at once

Where refusals are remembered, the capture chain resets, before it captures, what goes to a destination of the set
REFUSED: those that failed a short time ago, which the daemon puts there.

In TPROXY mode the capture chain marks instead, rule 32765 sends what is marked to lo (also past a real IPv4
route), and the divert chain hands it to the listener there (Documentation/networking/tproxy.rst). Every packet
must be marked, so conntrack remembers the connections whose SYN was captured: the answers of this host's own
servers, and connections older than the rules, stay on their way. So do the listener's answers, which go the other
way.

What comes in by a gateway's devices meets the same exceptions in PREROUTING, before it is routed: there it is sent
to the listener, or marked and handed to it by the divert chain.

Where connects are honest, the hold chain hands the SYNs of what will be captured to the daemon first, which gives
each back when it knows the answer. It comes before anybody's destination NAT, as only there a SYN still shows the
destination to dial; and it has a base chain of its own, so that without a daemon (or with a full queue) a SYN goes
on as if there were no such chain. The daemon's refusals answer a SYN that was dropped, which conntrack therefore
never confirmed: the untrack chain keeps them from it, or they would be INVALID, and firewalls drop those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address

from tnat64d.core.config import ALWAYS_LOCAL, Config
from tnat64d.core.marks import Mark, captured_mark, own_mark, refusal_mark
from tnat64d.core.ruleset import (
    CAPTURED_PRIORITY,
    FALLBACK_PRIORITY,
    HOLD_BITS,
    LOOPBACK,
    OWN_ATTEMPTS_PRIORITY,
    QUEUES,
    Address,
    Chain,
    Hook,
    Match,
    PolicyRule,
    Route,
    Rule,
    Ruleset,
    Verdict,
)
from tnat64d.core.scope import Place, Program, Scope
from tnat64d.core.settings import Mode, Rules


def describe(
    config: Config,
    rules: Rules,
    scope: Scope,
    port: int,
    device: str = LOOPBACK,
    honest: tuple[Place, ...] | None = None,
    refusal_memory_s: float = 0.0,
) -> Ruleset:
    """What must stand for `config`, `rules` and `scope` while the daemon listens on `port`.

    `device`: lo, or the daemon's own, which answers what was not captured and needs no guard chain.
    `honest`: where to connects are honest: None for nowhere, empty for everywhere.
    `refusal_memory_s`: how long a destination stays in the set REFUSED; 0 for none. Only nf_tables has sets.
    """
    own, captured = own_mark(rules), captured_mark(rules)
    tproxy = rules.mode is Mode.TPROXY
    on_loopback = device == LOOPBACK
    chains = (_tproxy_chains if tproxy else _redirect_chains)(config, scope, own, captured)
    refusal_memory_ms = round(refusal_memory_s * 1000)
    if refusal_memory_ms:
        chains = tuple(_with_refusals(chain) for chain in chains)
    if honest is not None:
        chains = (*chains, *_hold_chains(config, rules, scope, honest or (Place(),)), _untrack(rules))
    if on_loopback:
        chains = (*chains, _guard(rules.address, captured if tproxy else None))
    return Ruleset(
        port=port,
        captured=captured,
        address=Address(rules.address, device, None if on_loopback else _peer(rules.address)),
        route=Route(rules.table, device, rules.address, is_local=tproxy),
        policy_rules=_policy_rules(rules.table, own, captured if tproxy else None),
        chains=chains,
        refusal_memory_ms=refusal_memory_ms,
    )


def _peer(address: IPv4Address) -> IPv4Address:
    """The other address of the pair: 192.0.0.1 for 192.0.0.2 (RFC 6333 section 5.7, RFC 7335)."""
    return IPv4Address(int(address) ^ 0b11)


def _policy_rules(table: int, own: Mark, captured: Mark | None) -> tuple[PolicyRule, ...]:
    always = (
        # Of TCP alone: where netfilter routes a packet anew, its protocol is found out only if a rule asks for one
        # that is not for lo (fib_rule_requires_fldissect() in include/net/fib_rules.h). The next would fail else.
        PolicyRule(priority=OWN_ATTEMPTS_PRIORITY, table=None, mark=own, tcp_only=True),
        PolicyRule(priority=FALLBACK_PRIORITY, table=table, in_device=LOOPBACK, tcp_only=True),
    )
    if captured is None:
        return always
    return (PolicyRule(priority=CAPTURED_PRIORITY, table=table, mark=captured), *always)


def _redirect_chains(config: Config, scope: Scope, own: Mark, captured: Mark) -> tuple[Chain, ...]:
    chains = [Chain(Hook.REDIRECT_OUTPUT, (Match(),), _capture(config, scope, own, Verdict.REDIRECT))]
    if scope.gateway:
        rules = _gateway(config, scope, Verdict.REDIRECT)
        chains.append(Chain(Hook.REDIRECT_PREROUTING, _from_behind(scope), rules))
    return tuple(chains)


def _tproxy_chains(config: Config, scope: Scope, own: Mark, captured: Mark) -> tuple[Chain, ...]:
    capture = _of_syns(_capture(config, scope, own, Verdict.MARK_CONNECTION))
    mark_all = Rule(Match(connection_mark=captured, in_original_direction=True), Verdict.MARK)
    # What is for the host itself by now met other people's destination NAT in nat OUTPUT.
    divert = (Rule(Match(destination_is_own=True), Verdict.RETURN), Rule(Match(mark=captured), Verdict.TPROXY))
    chains = [Chain(Hook.MARK_OUTPUT, (Match(),), (*capture, mark_all))]
    if scope.gateway:
        rules = (*_of_syns(_gateway(config, scope, Verdict.MARK_CONNECTION)), mark_all)
        chains.append(Chain(Hook.MARK_PREROUTING, _from_behind(scope), rules))
    chains.append(Chain(Hook.DIVERT_PREROUTING, (Match(in_device=LOOPBACK), *_from_behind(scope)), divert))
    return tuple(chains)


def _of_syns(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """What is exempt from now on must not keep the packets of older connections from being marked."""
    return tuple(replace(rule, match=replace(rule.match, begins_connection=True)) for rule in rules)


def _capture(config: Config, scope: Scope, own: Mark, verdict: Verdict) -> tuple[Rule, ...]:
    """The host's own programs: what is exempt returns, of the rest what is in scope meets `verdict`."""
    not_programs = [_from(program, Match()) for program in scope.not_programs]
    programs = scope.programs if scope.programs or scope.commands else (Program(),)
    return (
        *_rules([Match(mark=own), *_exempt(config, scope)], _from_each(scope.commands, scope), verdict),
        *_rules(not_programs, _from_each(programs, scope), verdict),
    )


def _gateway(config: Config, scope: Scope, verdict: Verdict) -> tuple[Rule, ...]:
    """Those behind the gateway's devices: they are nobody's programs here, but the same exceptions hold."""
    return _rules(_exempt(config, scope), map(_to, _places(scope)), verdict)


def _from_behind(scope: Scope, match: Match | None = None) -> tuple[Match, ...]:
    """`match`, for what comes in by one of the gateway's devices."""
    return tuple(replace(match or Match(), in_device=device) for device in scope.gateway)


def _rules(excluded: Iterable[Match], included: Iterable[Match], verdict: Verdict) -> tuple[Rule, ...]:
    return (
        *(Rule(match, Verdict.RETURN) for match in excluded),
        *(Rule(replace(match, begins_connection=True), verdict) for match in included),
    )


_CAPTURING = (Verdict.REDIRECT, Verdict.MARK_CONNECTION)


def _with_refusals(chain: Chain) -> Chain:
    """`chain`, resetting what it captures if the destination is refused."""
    rules: list[Rule] = []
    for rule in chain.rules:
        if rule.verdict in _CAPTURING:
            rules.append(Rule(replace(rule.match, is_refused=True), Verdict.RESET))
        rules.append(rule)
    return replace(chain, rules=tuple(rules))


def _hold_chains(config: Config, rules: Rules, scope: Scope, honest: tuple[Place, ...]) -> Iterator[Chain]:
    """What will be captured is held: in OUTPUT what is marked for it already, elsewhere by the same conditions."""
    entries = tuple(replace(_to(place), begins_connection=True) for place in honest)
    if rules.mode is Mode.TPROXY:
        held: tuple[Rule, ...] = (Rule(Match(mark=captured_mark(rules), begins_connection=True), Verdict.QUEUE),)
    else:
        held = _capture(config, scope, own_mark(rules), Verdict.QUEUE)
    yield Chain(Hook.HOLD_OUTPUT, entries, _spread(held, rules.queue))
    if scope.gateway:
        behind = tuple(match for entry in entries for match in _from_behind(scope, entry))
        yield Chain(Hook.HOLD_PREROUTING, behind, _spread(_gateway(config, scope, Verdict.QUEUE), rules.queue))


def _spread(rules: Iterable[Rule], first_queue: int) -> tuple[Rule, ...]:
    """`rules`, with one for each queue in place of each that queues."""
    lowest_bit = HOLD_BITS & -HOLD_BITS
    spread: list[Rule] = []
    for rule in rules:
        if rule.verdict is Verdict.QUEUE:
            for number in range(QUEUES):
                match = replace(rule.match, source_port_bits=number * lowest_bit)
                spread.append(Rule(match, Verdict.QUEUE, first_queue + number))
        else:
            spread.append(rule)
    return tuple(spread)


def _exempt(config: Config, scope: Scope) -> list[Match]:
    networks = dict.fromkeys((*ALWAYS_LOCAL, *(local.network for local in config.local)))
    return [
        Match(destination_is_own=True),
        *(Match(destination=network) for network in networks),
        *(_to(place) for place in scope.not_places),
    ]


def _places(scope: Scope) -> tuple[Place, ...]:
    return scope.places or (Place(),)


def _to(place: Place) -> Match:
    return Match(destination=place.network, ports=place.ports)


def _from_each(programs: Iterable[Program], scope: Scope) -> list[Match]:
    return [_from(program, _to(place)) for place in _places(scope) for program in programs]


def _from(program: Program, match: Match) -> Match:
    return replace(match, uid=program.uid, gid=program.gid, cgroup=program.cgroup)


def _untrack(rules: Rules) -> Chain:
    match = Match(tcp_only=False, mark=refusal_mark(rules))
    return Chain(Hook.UNTRACK_OUTPUT, (match,), (Rule(match, Verdict.UNTRACK),))


def _guard(address: IPv4Address, captured: Mark | None) -> Chain:
    """A redirected packet is addressed to the host itself by the time it is here (nat OUTPUT came before)."""
    rules = [Rule(Match(destination_is_own=True), Verdict.RETURN), Rule(Match(), Verdict.RESET)]
    if captured is not None:
        rules.insert(0, Rule(Match(mark=captured), Verdict.RETURN))
    return Chain(Hook.GUARD_OUTPUT, (Match(out_device=LOOPBACK, source=address),), tuple(rules))
