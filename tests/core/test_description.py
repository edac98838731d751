"""What must stand, as data: what is captured and what is let through, in both modes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnat64d.core.config import ALWAYS_LOCAL, Config, Network, Way, parse
from tnat64d.core.description import describe
from tnat64d.core.marks import Mark, refusal_mark
from tnat64d.core.ruleset import (
    CAPTURED_PRIORITY,
    FALLBACK_PRIORITY,
    HOLD_BITS,
    OWN_ATTEMPTS_PRIORITY,
    Chain,
    Hook,
    Match,
    Ruleset,
    Verdict,
)
from tnat64d.core.scope import Place, Scope
from tnat64d.core.settings import Mode, Rules

PORT = 7000
ADDRESS = IPv4Address("192.0.0.2")
CONFIG = parse("local = 10.0.0.0/8\nlocal = 192.168.0.1/255.255.0.255\nlocal = 127.0.0.0/8\n", "t")
SERVER = IPv4Address("198.51.100.10")
CAPTURE = {Mode.REDIRECT: Hook.REDIRECT_OUTPUT, Mode.TPROXY: Hook.MARK_OUTPUT}


@dataclass(frozen=True)
class Packet:
    """A TCP packet; `is_own`: for one of the host's own addresses."""

    destination: IPv4Address = SERVER
    source: IPv4Address = ADDRESS
    in_device: str | None = None
    out_device: str = "lo"
    mark: int = 0
    connection_mark: int = 0
    is_syn: bool = True
    is_answer: bool = False
    is_own: bool = False
    port: int = 443
    source_port: int = 40000

    def meets(self, match: Match) -> bool:
        return (
            (match.destination is None or self.destination in match.destination)
            and (not match.destination_is_own or self.is_own)
            and match.source in (None, self.source)
            and match.in_device in (None, self.in_device)
            and match.out_device in (None, self.out_device)
            and (match.mark is None or self.mark & match.mark.mask == match.mark.value)
            and (match.connection_mark is None or self.connection_mark == match.connection_mark.value)
            and (not match.begins_connection or self.is_syn)
            and (not match.in_original_direction or not self.is_answer)
            and (match.ports is None or match.ports[0] <= self.port <= match.ports[1])
            and match.source_port_bits in (None, self.source_port & HOLD_BITS)
        )


def ruleset(mode: Mode, config: Config = CONFIG) -> Ruleset:
    return describe(config, Rules(mode=mode), Scope(), PORT)


def honest_ruleset(mode: Mode, *places: Place, scope: Scope | None = None) -> Ruleset:
    return describe(CONFIG, Rules(mode=mode, queue=100), scope or Scope(), PORT, honest=places)


def chain(rules: Ruleset, hook: Hook) -> Chain:
    (found,) = (chain for chain in rules.chains if chain.hook is hook)
    return found


def verdicts(chain: Chain, packet: Packet) -> list[Verdict]:
    """What `packet` meets there, up to the first that ends its way through the chain."""
    met: list[Verdict] = []
    for rule in chain.rules if any(map(packet.meets, chain.entries)) else ():
        if packet.meets(rule.match):
            met.append(rule.verdict)
            if rule.verdict is not Verdict.MARK_CONNECTION:
                break
    return met


def is_captured(rules: Ruleset, mode: Mode, packet: Packet) -> bool:
    return verdicts(chain(rules, CAPTURE[mode]), packet)[:1] not in ([Verdict.RETURN], [])


@pytest.fixture(params=Mode)
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


def test_redirect_mode_redirects_in_nat_output_and_guards_in_filter_output() -> None:
    assert [chain.hook for chain in ruleset(Mode.REDIRECT).chains] == [Hook.REDIRECT_OUTPUT, Hook.GUARD_OUTPUT]
    assert verdicts(chain(ruleset(Mode.REDIRECT), Hook.REDIRECT_OUTPUT), Packet()) == [Verdict.REDIRECT]


def test_tproxy_mode_marks_in_output_and_diverts_what_is_marked_on_lo() -> None:
    rules = ruleset(Mode.TPROXY)
    assert [chain.hook for chain in rules.chains] == [Hook.MARK_OUTPUT, Hook.DIVERT_PREROUTING, Hook.GUARD_OUTPUT]
    divert = chain(rules, Hook.DIVERT_PREROUTING)
    marked = Packet(mark=rules.captured.value, in_device="lo")
    assert verdicts(divert, marked) == [Verdict.TPROXY]
    assert verdicts(divert, replace(marked, is_own=True)) == [Verdict.RETURN]  # others' destination NAT
    assert verdicts(divert, replace(marked, mark=0)) == []
    assert verdicts(divert, replace(marked, in_device="eth0")) == []


def test_redirect_mode_redirects_only_what_begins_a_connection() -> None:
    assert verdicts(chain(ruleset(Mode.REDIRECT), Hook.REDIRECT_OUTPUT), Packet(is_syn=False)) == []


def test_tproxy_mode_marks_only_connections_that_began_under_the_rules() -> None:
    rules = ruleset(Mode.TPROXY)
    mark = chain(rules, Hook.MARK_OUTPUT)
    captured = rules.captured.value
    assert verdicts(mark, Packet()) == [Verdict.MARK_CONNECTION]  # and, with that mark, the next rule
    assert verdicts(mark, Packet(connection_mark=captured)) == [Verdict.MARK_CONNECTION, Verdict.MARK]
    assert verdicts(mark, Packet(connection_mark=captured, is_syn=False)) == [Verdict.MARK]
    assert verdicts(mark, Packet(is_syn=False)) == []


def test_tproxy_mode_marks_what_was_captured_also_where_its_destination_is_exempt_by_now() -> None:
    rules = gateway_ruleset(Mode.TPROXY)
    exempt = Packet(IPv4Address("10.1.2.3"), in_device="docker0")
    for hook in (Hook.MARK_OUTPUT, Hook.MARK_PREROUTING):
        assert verdicts(chain(rules, hook), exempt) == [Verdict.RETURN]
        older = replace(exempt, is_syn=False, connection_mark=rules.captured.value)
        assert verdicts(chain(rules, hook), older) == [Verdict.MARK]


BEHIND = Scope(gateway=("docker0", "veth0"), not_places=(Place(ports=(25, 25)),))
GATEWAY = {Mode.REDIRECT: Hook.REDIRECT_PREROUTING, Mode.TPROXY: Hook.MARK_PREROUTING}


def gateway_ruleset(mode: Mode, refusal_memory_s: float = 0.0) -> Ruleset:
    return describe(CONFIG, Rules(mode=mode), BEHIND, PORT, refusal_memory_s=refusal_memory_s)


def test_what_comes_in_by_a_gateway_is_captured_with_the_same_exceptions(mode: Mode) -> None:
    behind = chain(gateway_ruleset(mode), GATEWAY[mode])
    packet = Packet(in_device="docker0", out_device="", source=IPv4Address("172.17.0.2"))
    captured = Verdict.REDIRECT if mode is Mode.REDIRECT else Verdict.MARK_CONNECTION
    for device in BEHIND.gateway:
        assert verdicts(behind, replace(packet, in_device=device)) == [captured]
    assert verdicts(behind, replace(packet, in_device="eth0")) == []
    assert verdicts(behind, replace(packet, is_syn=False)) == []
    for exempt in (
        replace(packet, is_own=True),
        replace(packet, destination=IPv4Address("10.1.2.3")),
        replace(packet, port=25),
    ):
        assert verdicts(behind, exempt) == [Verdict.RETURN]
    assert GATEWAY[mode] not in {chain.hook for chain in ruleset(mode).chains}


def test_tproxy_mode_diverts_all_packets_of_a_gateways_connections_where_they_come_in() -> None:
    rules = gateway_ruleset(Mode.TPROXY)
    captured = rules.captured.value
    packet = Packet(in_device="docker0", out_device="", is_syn=False, connection_mark=captured)
    assert verdicts(chain(rules, Hook.MARK_PREROUTING), packet) == [Verdict.MARK]
    divert = chain(rules, Hook.DIVERT_PREROUTING)
    assert verdicts(divert, replace(packet, mark=captured)) == [Verdict.TPROXY]
    assert verdicts(divert, replace(packet, mark=captured, in_device="eth0")) == []
    hooks = [chain.hook for chain in rules.chains]
    assert hooks.index(Hook.MARK_PREROUTING) < hooks.index(Hook.DIVERT_PREROUTING), "appended one after the other"


def test_in_tproxy_mode_the_listeners_answers_are_not_sent_back_to_it() -> None:
    rules = gateway_ruleset(Mode.TPROXY)
    answer = Packet(
        source=SERVER,
        destination=IPv4Address("172.17.0.2"),
        out_device="docker0",
        connection_mark=rules.captured.value,
        is_syn=False,
        is_answer=True,
    )
    assert verdicts(chain(rules, Hook.MARK_OUTPUT), answer) == []
    assert verdicts(chain(rules, Hook.MARK_OUTPUT), replace(answer, is_answer=False)) == [Verdict.MARK]


@given(st.sampled_from(Mode), st.ip_addresses(v=4))
def test_captured_is_exactly_what_the_configuration_does_not_call_local(mode: Mode, address: IPv4Address) -> None:
    is_local = CONFIG.route(address).way is Way.LOCAL
    assert is_captured(ruleset(mode), mode, Packet(address)) == (not is_local)


def test_every_local_network_is_exempt_and_none_twice(mode: Mode) -> None:
    networks = [
        rule.match.destination
        for rule in chain(ruleset(mode), CAPTURE[mode]).rules
        if rule.match.destination is not None
    ]
    assert networks == [*ALWAYS_LOCAL, CONFIG.local[0].network, CONFIG.local[1].network]


def test_a_mask_with_holes_exempts_what_it_matches_and_no_more(mode: Mode) -> None:
    rules = ruleset(mode)
    assert not is_captured(rules, mode, Packet(IPv4Address("192.168.7.1")))
    assert is_captured(rules, mode, Packet(IPv4Address("192.168.7.2")))


def test_a_local_network_of_everything_captures_nothing(mode: Mode) -> None:
    rules = ruleset(mode, parse("local = 0.0.0.0/0\n", "t"))
    assert not is_captured(rules, mode, Packet())


def test_the_daemons_own_attempts_and_the_hosts_own_addresses_are_exempt(mode: Mode) -> None:
    rules = ruleset(mode)
    assert not is_captured(rules, mode, Packet(mark=0x6464))
    assert not is_captured(rules, mode, Packet(mark=0x10000 | 0x6464))  # only the bits of the mask count
    assert not is_captured(rules, mode, Packet(is_own=True))
    assert is_captured(rules, mode, Packet(mark=0x1))


def test_the_guard_resets_what_leaves_by_lo_from_our_address_and_was_not_captured(mode: Mode) -> None:
    guard = chain(ruleset(mode), Hook.GUARD_OUTPUT)
    assert verdicts(guard, Packet()) == [Verdict.RESET]
    assert verdicts(guard, Packet(is_own=True)) == [Verdict.RETURN]
    assert verdicts(guard, Packet(out_device="eth0")) == []
    assert verdicts(guard, Packet(source=IPv4Address("127.0.0.1"))) == []


def test_the_guard_lets_what_was_captured_pass() -> None:
    rules = ruleset(Mode.TPROXY)
    packet = Packet(mark=rules.captured.value)
    assert verdicts(chain(rules, Hook.GUARD_OUTPUT), packet) == [Verdict.RETURN]


def test_the_fallback_route_is_local_only_for_tproxy_and_has_the_address_as_source(mode: Mode) -> None:
    rules = describe(CONFIG, Rules(mode=mode, table=77, address=IPv4Address("192.0.0.7")), Scope(), PORT)
    assert rules.address.address == rules.route.source == IPv4Address("192.0.0.7")
    assert (rules.route.table, rules.route.device) == (77, "lo")
    assert rules.route.is_local == (mode is Mode.TPROXY)


def test_own_attempts_are_unreachable_before_tcp_finds_the_fallback_both_after_main(mode: Mode) -> None:
    own_attempts, fallback = ruleset(mode).policy_rules[-2:]
    assert (own_attempts.table, own_attempts.mark) == (None, Mark(0x6464, 0xFFFF))
    assert own_attempts.in_device is None
    assert own_attempts.tcp_only, "or the protocol that the fallback asks for is not found out (description)"
    assert (fallback.table, fallback.mark, fallback.tcp_only) == (6464, None, True)
    assert fallback.in_device == "lo", "what comes in from elsewhere is not this host's to deliver"
    main, default = 32766, 32767
    assert main < default < OWN_ATTEMPTS_PRIORITY == own_attempts.priority
    assert own_attempts.priority < fallback.priority == FALLBACK_PRIORITY


def test_only_tproxy_has_a_rule_for_what_is_marked_and_it_comes_before_main() -> None:
    assert len(ruleset(Mode.REDIRECT).policy_rules) == 2
    rules = ruleset(Mode.TPROXY)
    captured, *_ = rules.policy_rules
    assert (captured.priority, captured.table, captured.mark) == (CAPTURED_PRIORITY, 6464, rules.captured)
    assert captured.priority < 32766


def test_refusals_and_nothing_else_are_kept_from_conntrack_where_connects_are_honest(mode: Mode) -> None:
    untrack = chain(honest_ruleset(mode), Hook.UNTRACK_OUTPUT)
    rules = Rules()
    assert verdicts(untrack, Packet(mark=refusal_mark(rules).value, is_syn=False)) == [Verdict.UNTRACK]
    assert verdicts(untrack, Packet(mark=rules.mark)) == []
    assert not any(match.tcp_only for match in (*untrack.entries, *(rule.match for rule in untrack.rules)))
    assert Hook.UNTRACK_OUTPUT not in {chain.hook for chain in ruleset(mode).chains}


def held_packet(rules: Ruleset, mode: Mode) -> Packet:
    """As it comes to the hold chain."""
    return Packet(mark=rules.captured.value) if mode is Mode.TPROXY else Packet()


def test_plain_connects_are_not_held(mode: Mode) -> None:
    held = {Hook.HOLD_OUTPUT, Hook.HOLD_PREROUTING}
    assert not held & {chain.hook for chain in ruleset(mode).chains}


def test_a_held_syn_goes_to_the_queue_of_its_source_port(mode: Mode) -> None:
    rules = honest_ruleset(mode)
    packet = held_packet(rules, mode)
    queues = []
    for port in range(40000, 40032):
        (queue, *_) = (
            rule.queue
            for rule in chain(rules, Hook.HOLD_OUTPUT).rules
            if replace(packet, source_port=port).meets(rule.match)
        )
        queues.append(queue)
    assert queues == [100 + (port >> 1) % 8 for port in range(40000, 40032)]


def test_what_is_captured_is_held_and_nothing_else() -> None:
    rules = honest_ruleset(Mode.REDIRECT)
    own = Packet(mark=Rules().mark)
    local = [Packet(IPv4Address(text)) for text in ("10.1.2.3", "127.0.0.1", "192.168.7.1")]
    packets = [Packet(), own, Packet(is_own=True), *local]
    for packet in packets:
        is_held = verdicts(chain(rules, Hook.HOLD_OUTPUT), packet) == [Verdict.QUEUE]
        assert is_held == is_captured(rules, Mode.REDIRECT, packet), packet
    assert verdicts(chain(rules, Hook.HOLD_OUTPUT), Packet(is_syn=False)) == []


def test_in_tproxy_mode_what_was_marked_is_held() -> None:
    rules = honest_ruleset(Mode.TPROXY)
    assert verdicts(chain(rules, Hook.HOLD_OUTPUT), Packet(mark=rules.captured.value)) == [Verdict.QUEUE]
    assert verdicts(chain(rules, Hook.HOLD_OUTPUT), Packet()) == []
    hooks = [chain.hook for chain in rules.chains]
    assert hooks.index(Hook.MARK_OUTPUT) < hooks.index(Hook.HOLD_OUTPUT), "one is appended after the other"


def test_only_connects_to_named_places_are_held(mode: Mode) -> None:
    network = Network.of(IPv4Network("198.51.100.0/24"))
    rules = honest_ruleset(mode, Place(ports=(80, 80)), Place(network=network, ports=(443, 443)))
    packet = held_packet(rules, mode)
    elsewhere = IPv4Address("203.0.113.1")
    held = [packet, replace(packet, port=80), replace(packet, destination=elsewhere, port=80)]
    plain = [replace(packet, port=22), replace(packet, destination=elsewhere)]
    assert [verdicts(chain(rules, Hook.HOLD_OUTPUT), each) for each in held] == [[Verdict.QUEUE]] * 3
    assert [verdicts(chain(rules, Hook.HOLD_OUTPUT), each) for each in plain] == [[]] * 2


def test_those_behind_a_gateway_are_held_where_they_come_in(mode: Mode) -> None:
    rules = honest_ruleset(mode, Place(ports=(80, 80)), Place(ports=(443, 443)), scope=BEHIND)
    hold = chain(rules, Hook.HOLD_PREROUTING)
    packet = Packet(in_device="docker0")
    for device in BEHIND.gateway:
        assert verdicts(hold, replace(packet, in_device=device)) == [Verdict.QUEUE]
    assert verdicts(hold, replace(packet, in_device="eth0")) == []
    assert verdicts(hold, replace(packet, is_syn=False)) == []
    assert verdicts(hold, replace(packet, port=22)) == [], "plain"
    assert verdicts(hold, replace(packet, destination=IPv4Address("10.1.2.3"))) == [Verdict.RETURN]


def test_what_the_queue_gives_back_meets_the_chains_that_must_see_it() -> None:
    """It goes on at the next place of its hook: raw, mangle, nat, filter (linux/netfilter_ipv4.h)."""
    places = ("raw", "mangle", "nat", "filter")
    hold, *others = (places.index(hook.table) for hook in (Hook.HOLD_PREROUTING, *GATEWAY.values()))
    assert all(hold < other for other in others)


def verdicts_on(chain: Chain, packet: Packet, *, refused: bool) -> list[Verdict]:
    """As `verdicts`, where the destination is in the set of those refused, or not."""
    rules = [
        replace(rule, match=replace(rule.match, is_refused=False))
        for rule in chain.rules
        if refused or not rule.match.is_refused
    ]
    return verdicts(replace(chain, rules=tuple(rules)), packet)


def test_what_is_refused_is_reset_instead_of_captured(mode: Mode) -> None:
    rules = describe(CONFIG, Rules(mode=mode), Scope(), PORT, refusal_memory_s=5.0)
    capturing = chain(rules, CAPTURE[mode])
    assert rules.refusal_memory_ms == 5000
    assert verdicts_on(capturing, Packet(), refused=True) == [Verdict.RESET]
    assert verdicts_on(capturing, Packet(), refused=False) == verdicts(
        chain(ruleset(mode), CAPTURE[mode]), Packet()
    )
    assert Verdict.RESET not in verdicts_on(capturing, Packet(is_syn=False), refused=True)


def test_what_is_exempt_is_not_refused_either(mode: Mode) -> None:
    capturing = chain(describe(CONFIG, Rules(mode=mode), Scope(), PORT, refusal_memory_s=5.0), CAPTURE[mode])
    for packet in (Packet(mark=0x6464), Packet(is_own=True), Packet(destination=IPv4Address("10.1.2.3"))):
        assert verdicts_on(capturing, packet, refused=True) == [Verdict.RETURN]


def test_behind_a_gateway_refusals_are_remembered_as_well(mode: Mode) -> None:
    rules = gateway_ruleset(mode, refusal_memory_s=5.0)
    packet = Packet(in_device="docker0", out_device="")
    assert verdicts_on(chain(rules, GATEWAY[mode]), packet, refused=True) == [Verdict.RESET]


def test_without_a_memory_of_refusals_no_rule_asks_for_it(mode: Mode) -> None:
    assert ruleset(mode).refusal_memory_ms == 0
    assert not any(rule.match.is_refused for each in ruleset(mode).chains for rule in each.rules)
