"""Which way a connection goes: the table, each of its rules by name, and every life that it allows."""

from __future__ import annotations

import errno
import heapq
import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnat64d.core.config import Way, parse
from tnat64d.core.policy import (
    IMPOSSIBLE,
    TRANSITIONS,
    UNREACHABLE,
    Action,
    Event,
    Phase,
    ScopeState,
    StickyMemory,
    Transition,
    advance,
    begin,
    ipv4_event,
    nat64_event,
    outcome,
)

IPV4_FIRST = ScopeState.IPV4_FIRST
STICKY = ScopeState.NAT64_STICKY
SCOPE = "the scope"
IPV4_EVENTS = {
    Event.IPV4_CONNECTED: Action.RELAY_IPV4,
    Event.IPV4_UNREACHABLE: Action.REFUSE,
    Event.IPV4_TIMED_OUT: Action.REFUSE,
    Event.IPV4_FAILED: Action.REFUSE,
}
FINAL = {Action.RELAY_IPV4, Action.RELAY_NAT64, Action.REFUSE}


@dataclass
class Connection:
    """One connection of `way`, driven by hand; it learns into `memory` as a dialer does."""

    memory: StickyMemory = field(default_factory=lambda: StickyMemory(16))
    way: Way = Way.NAT64
    scope: Hashable = SCOPE
    phase: Phase = Phase.DONE
    actions: list[Action] = field(default_factory=list)

    def after(self, *events: Event) -> Action:
        """The last action, from the beginning on through `events`."""
        self.follow(begin(self.way, self.memory.state(self.scope)))
        for event in events:
            self.follow(advance(self.phase, event))
        return self.actions[-1]

    def follow(self, transition: Transition) -> None:
        self.phase = transition.phase
        self.actions.append(transition.action)
        if transition.scope is not None:
            self.memory.learn(self.scope, transition.scope)

    @property
    def state(self) -> ScopeState:
        return self.memory.state(self.scope)


def sticky(*events: Event) -> Connection:
    """A connection whose scope was NAT64_STICKY, after `events`."""
    connection = Connection(StickyMemory(16, [SCOPE]))
    connection.after(*events)
    return connection


def fresh(*events: Event, way: Way = Way.NAT64) -> Connection:
    """A connection whose scope was IPV4_FIRST, after `events`."""
    connection = Connection(way=way)
    connection.after(*events)
    return connection


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("phase", Phase)
def test_every_pair_has_one_transition_or_one_reason_why_it_cannot_happen(phase: Phase, event: Event) -> None:
    reasons = [reason for reason, events in IMPOSSIBLE.get(phase, {}).items() if event in events]
    assert len(reasons) == (0 if event in TRANSITIONS[phase] else 1)


@pytest.mark.parametrize(
    ("phase", "event"),
    [
        (phase, event)
        for phase, by_reason in IMPOSSIBLE.items()
        for events in by_reason.values()
        for event in sorted(events, key=lambda event: event.name)
    ],
)
def test_an_impossible_pair_is_a_bug_that_names_both(phase: Phase, event: Event) -> None:
    with pytest.raises(AssertionError, match=rf"\b{event.name}\b.*\b{phase.name}\b"):
        advance(phase, event)


def test_exactly_the_final_actions_lead_to_done() -> None:
    transitions = [step for steps in TRANSITIONS.values() for step in steps.values()]
    assert all((step.phase is Phase.DONE) == (step.action in FINAL) for step in transitions)


def test_every_phase_can_be_reached() -> None:
    reached = {begin(way, state).phase for way in Way for state in ScopeState}
    while new := {step.phase for phase in reached for step in TRANSITIONS[phase].values()} - reached:
        reached |= new
    assert reached == set(Phase)


@pytest.mark.parametrize(("way", "state"), [(way, state) for way in Way for state in ScopeState])
def test_whoever_dials_first_says_why(way: Way, state: ScopeState) -> None:
    assert (begin(way, state).because is None) == (way is not Way.NAT64)  # else the route is the reason


@pytest.mark.parametrize(("event", "outcome"), IPV4_EVENTS.items())
@pytest.mark.parametrize("state", ScopeState)
def test_a_local_destination_is_ipv4_only_whatever_comes_of_it(
    state: ScopeState, event: Event, outcome: Action
) -> None:
    memory = StickyMemory(16, [SCOPE] if state is STICKY else [])
    connection = Connection(memory, Way.LOCAL)
    assert connection.after(event) is outcome
    assert connection.actions == [Action.DIAL_IPV4, outcome]
    assert connection.state is state


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.0.1", "100.64.0.1", "203.0.113.5"])
def test_the_well_known_prefix_never_carries_a_non_global_address(address: str) -> None:
    way = parse("nat64_prefix = 64:ff9b::/96\n", "t.conf").route(IPv4Address(address)).way
    assert fresh(Event.IPV4_UNREACHABLE, way=way).actions == [Action.DIAL_IPV4, Action.REFUSE]


@pytest.mark.parametrize(("prefix", "address"), [("64:ff9b::/96", "9.9.9.9"), ("2001:db8:64::/96", "10.1.2.3")])
def test_other_addresses_and_a_networks_own_prefix_are_carried(prefix: str, address: str) -> None:
    way = parse(f"nat64_prefix = {prefix}\n", "t.conf").route(IPv4Address(address)).way
    assert fresh(Event.IPV4_UNREACHABLE, way=way).actions[-1] is Action.DIAL_NAT64


def test_an_unknown_scope_starts_with_ipv4_first() -> None:
    assert StickyMemory(1).state(SCOPE) is IPV4_FIRST
    assert fresh().actions == [Action.DIAL_IPV4]


def test_ipv4_connected_is_relayed() -> None:
    assert fresh(Event.IPV4_CONNECTED).actions[-1] is Action.RELAY_IPV4


def test_ipv4_unreachable_dials_nat64() -> None:
    assert fresh(Event.IPV4_UNREACHABLE).actions[-1] is Action.DIAL_NAT64


@pytest.mark.parametrize("event", [Event.IPV4_FAILED, Event.IPV4_TIMED_OUT])
def test_any_other_ipv4_error_is_the_answer(event: Event) -> None:
    connection = fresh(event)
    assert connection.actions == [Action.DIAL_IPV4, Action.REFUSE]
    assert connection.state is IPV4_FIRST


@pytest.mark.parametrize("before", [(Event.IPV4_UNREACHABLE,), (Event.FALLBACK_DELAY,)])
@pytest.mark.parametrize(
    ("answer", "outcome"), [(Event.NAT64_CONNECTED, Action.RELAY_NAT64), (Event.NAT64_REFUSED, Action.REFUSE)]
)
def test_a_nat64_answer_connected_or_refused_makes_the_scope_sticky(
    before: tuple[Event, ...], answer: Event, outcome: Action
) -> None:
    connection = fresh(*before, answer)
    assert connection.actions[-1] is outcome
    assert connection.state is STICKY


def test_any_other_nat64_error_is_the_answer_and_makes_nothing_sticky() -> None:
    connection = fresh(Event.IPV4_UNREACHABLE, Event.NAT64_FAILED)
    assert connection.actions[-1] is Action.REFUSE
    assert connection.state is IPV4_FIRST


@pytest.mark.parametrize("event", [Event.NAT64_CONNECTED, Event.NAT64_REFUSED, Event.NAT64_FAILED])
def test_a_sticky_scope_dials_nat64_at_once_and_ipv4_is_not_tried(event: Event) -> None:
    connection = sticky(event)
    assert connection.actions[0] is Action.DIAL_NAT64
    assert Action.DIAL_IPV4 not in connection.actions
    assert connection.state is STICKY


def test_nat64_unreachable_disables_the_redirection_and_ipv4_is_tried_for_the_same_connection() -> None:
    connection = sticky(Event.NAT64_UNREACHABLE)
    assert connection.actions == [Action.DIAL_NAT64, Action.DIAL_IPV4]
    assert connection.state is IPV4_FIRST


@pytest.mark.parametrize(("event", "outcome"), IPV4_EVENTS.items())
def test_after_an_unreachable_nat64_the_ipv4_attempt_decides(event: Event, outcome: Action) -> None:
    connection = sticky(Event.NAT64_UNREACHABLE, event)
    assert connection.actions[-1] is outcome
    assert connection.state is IPV4_FIRST


@pytest.mark.parametrize(
    "connection",
    [
        fresh(Event.IPV4_UNREACHABLE, Event.NAT64_UNREACHABLE),
        sticky(Event.NAT64_UNREACHABLE, Event.IPV4_UNREACHABLE),
        fresh(Event.FALLBACK_DELAY, Event.IPV4_UNREACHABLE, Event.NAT64_UNREACHABLE),
        fresh(Event.FALLBACK_DELAY, Event.NAT64_UNREACHABLE, Event.IPV4_UNREACHABLE),
    ],
    ids=["ipv4 first", "sticky", "race, ipv4 before", "race, nat64 before"],
)
def test_both_unreachable_is_refused(connection: Connection) -> None:
    assert connection.actions[-1] is Action.REFUSE
    assert connection.state is IPV4_FIRST


@pytest.mark.parametrize(
    "events",
    [
        (Event.IPV4_TIMED_OUT,),
        (Event.IPV4_UNREACHABLE, Event.NAT64_TIMED_OUT),
        (Event.FALLBACK_DELAY, Event.NAT64_TIMED_OUT, Event.IPV4_TIMED_OUT),
        (Event.FALLBACK_DELAY, Event.IPV4_TIMED_OUT, Event.NAT64_TIMED_OUT),
    ],
)
def test_a_timeout_does_not_make_stickiness(events: tuple[Event, ...]) -> None:
    connection = fresh(*events)
    assert connection.actions[-1] is Action.REFUSE
    assert connection.state is IPV4_FIRST


def test_a_timeout_does_not_end_stickiness() -> None:
    connection = sticky(Event.NAT64_TIMED_OUT)
    assert connection.actions == [Action.DIAL_NAT64, Action.REFUSE]
    assert connection.state is STICKY


def test_silent_ipv4_gets_nat64_beside_it_after_the_fallback_delay() -> None:
    connection = fresh(Event.FALLBACK_DELAY)
    assert connection.actions == [Action.DIAL_IPV4, Action.DIAL_NAT64]
    assert connection.phase is Phase.RACE


@pytest.mark.parametrize(
    ("first", "outcome", "state"),
    [
        (Event.IPV4_CONNECTED, Action.RELAY_IPV4, IPV4_FIRST),
        (Event.NAT64_CONNECTED, Action.RELAY_NAT64, STICKY),
    ],
)
def test_the_first_to_connect_is_used_and_ends_the_other(first: Event, outcome: Action, state: ScopeState) -> None:
    connection = fresh(Event.FALLBACK_DELAY, first)
    assert connection.actions[-1] is outcome
    assert connection.phase is Phase.DONE
    assert connection.state is state


@pytest.mark.parametrize(
    ("loser", "winner", "outcome"),
    [
        (Event.IPV4_UNREACHABLE, Event.NAT64_CONNECTED, Action.RELAY_NAT64),
        (Event.IPV4_TIMED_OUT, Event.NAT64_CONNECTED, Action.RELAY_NAT64),
        (Event.NAT64_UNREACHABLE, Event.IPV4_CONNECTED, Action.RELAY_IPV4),
        (Event.NAT64_TIMED_OUT, Event.IPV4_CONNECTED, Action.RELAY_IPV4),
    ],
)
def test_the_other_is_waited_for_when_one_has_no_answer(loser: Event, winner: Event, outcome: Action) -> None:
    connection = fresh(Event.FALLBACK_DELAY, loser, winner)
    assert connection.actions[-2:] == [Action.WAIT, outcome]


@pytest.mark.parametrize(("event", "outcome"), IPV4_EVENTS.items())
def test_without_a_prefix_it_is_ipv4_only(event: Event, outcome: Action) -> None:
    assert fresh(event, way=Way.NONE).actions == [Action.DIAL_IPV4, outcome]


def test_a_state_holds_for_its_scope_and_no_other() -> None:
    memory = StickyMemory(16)
    Connection(memory, scope="one").after(Event.IPV4_UNREACHABLE, Event.NAT64_CONNECTED)
    assert Connection(memory, scope="one").after() is Action.DIAL_NAT64
    assert Connection(memory, scope="other").after() is Action.DIAL_IPV4


def test_a_change_of_default_routes_puts_every_state_back() -> None:
    memory = StickyMemory(16, ["one", "other"])
    memory.forget_all()
    assert memory.sticky_scopes() == ()
    assert Connection(memory, scope="one").after() is Action.DIAL_IPV4


ERRORS = sorted(errno.errorcode)
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


def test_unreachable_means_enetunreach_or_ehostunreach() -> None:
    assert {error for error in ERRORS if ipv4_event(error) is Event.IPV4_UNREACHABLE} == UNREACHABLE
    assert {error for error in ERRORS if nat64_event(error) is Event.NAT64_UNREACHABLE} == UNREACHABLE
    assert {errno.ENETUNREACH, errno.EHOSTUNREACH} == UNREACHABLE


@pytest.mark.parametrize(
    ("error", "ipv4", "nat64"),
    [
        (0, Event.IPV4_CONNECTED, Event.NAT64_CONNECTED),
        (errno.ETIMEDOUT, Event.IPV4_TIMED_OUT, Event.NAT64_TIMED_OUT),
        (errno.ECONNREFUSED, Event.IPV4_FAILED, Event.NAT64_REFUSED),
        # It was connected: a reset of a SYN is ECONNREFUSED.
        (errno.ECONNRESET, Event.IPV4_FAILED, Event.NAT64_REFUSED),
    ],
)
def test_success_timeout_and_refusal_are_told_apart(error: int, ipv4: Event, nat64: Event) -> None:
    assert ipv4_event(error) is ipv4
    assert nat64_event(error) is nat64


def test_every_other_error_is_a_failure() -> None:
    others = set(ERRORS) - UNREACHABLE - {errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET}
    assert {ipv4_event(error) for error in others} == {Event.IPV4_FAILED}
    assert {nat64_event(error) for error in others - EXHAUSTED} == {Event.NAT64_FAILED}


def test_an_attempt_that_could_not_begin_does_not_end_the_other() -> None:
    for error in EXHAUSTED:
        race = advance(Phase.RACE, nat64_event(error))
        assert (race.action, race.scope) == (Action.WAIT, None)
        for phase in (Phase.NAT64_FIRST, Phase.NAT64_LAST):
            alone = advance(phase, nat64_event(error))
            assert (alone.action, alone.scope) == (Action.REFUSE, None)


FALLBACK_DELAY_S = 3
ENDS = (0, errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ECONNRESET)
DELAYS_S = (0, 2, 4, 6)  # at once; before and after the fallback; and after a NAT64 attempt made then


@dataclass
class Life:
    """A connection from begin to end in simulated time, with what happened to it."""

    way: Way
    state: ScopeState
    ipv4: tuple[int, int]
    nat64: tuple[int, int]
    dialled: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    learned: list[ScopeState] = field(default_factory=list)
    final: Action | None = None

    def run(self) -> Self:
        queue: list[tuple[int, int, Event]] = []
        now = 0
        step = begin(self.way, self.state)
        while True:
            if step.scope is not None:
                self.learned.append(step.scope)
            if step.action in FINAL:
                self.final = step.action
                return self
            if step.action is not Action.WAIT:
                self.dialled.append(step.action)
                self._dial(queue, now, step)
            assert any(event is not Event.FALLBACK_DELAY for _, _, event in queue), "waits with nothing pending"
            now, _, event = heapq.heappop(queue)
            if event is Event.FALLBACK_DELAY and step.phase is not Phase.IPV4_FIRST:
                now, _, event = heapq.heappop(queue)  # its timer was stopped
            self.events.append(event)
            step = advance(step.phase, event)

    def _dial(self, queue: list[tuple[int, int, Event]], now: int, step: Transition) -> None:
        is_nat64 = step.action is Action.DIAL_NAT64
        error, delay_s = self.nat64 if is_nat64 else self.ipv4
        event = nat64_event(error) if is_nat64 else ipv4_event(error)
        heapq.heappush(queue, (now + delay_s, is_nat64, event))
        if step.phase is Phase.IPV4_FIRST:
            heapq.heappush(queue, (now + FALLBACK_DELAY_S, 2, Event.FALLBACK_DELAY))

    @property
    def is_sticky(self) -> bool:
        return self.way is Way.NAT64 and self.state is STICKY

    def saw(self, *events: Event) -> bool:
        return not set(events).isdisjoint(self.events)


@pytest.fixture(scope="module")
def lives() -> list[Life]:
    """Every life that two attempts can give a connection, as far as the order of events goes."""
    attempts = tuple(itertools.product(ENDS, DELAYS_S))
    return [Life(*inputs).run() for inputs in itertools.product(Way, ScopeState, attempts, attempts)]


def test_every_life_ends_with_at_most_one_attempt_a_way(lives: list[Life]) -> None:
    for life in lives:
        assert life.final is not None
        assert len(life.dialled) == len(set(life.dialled)), life


def test_every_life_relays_what_has_just_connected_and_else_refuses(lives: list[Life]) -> None:
    expected = {Event.IPV4_CONNECTED: Action.RELAY_IPV4, Event.NAT64_CONNECTED: Action.RELAY_NAT64}
    for life in lives:
        assert life.final is expected.get(life.events[-1], Action.REFUSE), life
        assert not set(expected).intersection(life.events[:-1]), life


def test_every_life_changes_the_scope_by_what_nat64_said_and_nothing_else(lives: list[Life]) -> None:
    for life in lives:
        expected = []
        if life.saw(Event.NAT64_CONNECTED, Event.NAT64_REFUSED):
            expected = [STICKY]
        elif life.saw(Event.NAT64_UNREACHABLE):
            expected = [IPV4_FIRST]
        assert life.learned == expected, life


def test_no_life_tries_ipv4_while_sticky_unless_nat64_is_unreachable(lives: list[Life]) -> None:
    for life in lives:
        if life.is_sticky:
            assert (Action.DIAL_IPV4 in life.dialled) == life.saw(Event.NAT64_UNREACHABLE), life


def test_no_life_tries_nat64_unless_sticky_or_ipv4_is_unreachable_or_silent(lives: list[Life]) -> None:
    for life in lives:
        may_try = life.is_sticky or life.saw(Event.IPV4_UNREACHABLE, Event.FALLBACK_DELAY)
        assert (Action.DIAL_NAT64 in life.dialled) == (life.way is Way.NAT64 and may_try), life


def test_no_life_is_refused_for_one_unreachable_way_while_another_is_open(lives: list[Life]) -> None:
    for life in lives:
        if life.final is Action.REFUSE and life.events[-1] in (Event.IPV4_UNREACHABLE, Event.NAT64_UNREACHABLE):
            ways = {Action.DIAL_IPV4, Action.DIAL_NAT64} if life.way is Way.NAT64 else {Action.DIAL_IPV4}
            assert set(life.dialled) == ways, life


def test_learning_says_whether_that_was_news() -> None:
    memory = StickyMemory(2)
    assert not memory.learn("a", IPV4_FIRST)
    assert memory.learn("a", STICKY)
    assert not memory.learn("a", STICKY)
    assert memory.learn("a", IPV4_FIRST)
    assert memory.state("a") is IPV4_FIRST


def test_the_oldest_scope_is_forgotten_when_there_are_too_many() -> None:
    memory = StickyMemory(2)
    for scope in "abc":
        memory.learn(scope, STICKY)
    assert memory.sticky_scopes() == ("b", "c")
    assert memory.state("a") is IPV4_FIRST


def test_a_scope_that_is_learned_anew_is_the_youngest() -> None:
    memory = StickyMemory(2, ["a", "b"])
    memory.learn("a", IPV4_FIRST)
    memory.learn("a", STICKY)
    memory.learn("c", STICKY)
    assert memory.sticky_scopes() == ("a", "c")


@given(
    st.integers(1, 5),
    st.lists(st.integers(0, 9), unique=True),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(ScopeState))),
)
def test_the_memory_is_bounded_and_knows_what_was_learned_last(
    max_entries: int, known: list[int], lessons: list[tuple[int, ScopeState]]
) -> None:
    memory = StickyMemory(max_entries, known)
    assert memory.sticky_scopes() == tuple(known[-max_entries:])
    for scope, state in lessons:
        memory.learn(scope, state)
        assert memory.state(scope) is state
        assert len(memory.sticky_scopes()) <= max_entries


@pytest.mark.parametrize(
    ("ipv4_error", "nat64_error", "told"),
    [
        (errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNREFUSED),
        (errno.ECONNREFUSED, 0, errno.ECONNREFUSED),
        (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ECONNREFUSED),  # NAT64 sticky, then IPv4 answers
        (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTUNREACH),
        (errno.ENETUNREACH, errno.ETIMEDOUT, errno.ETIMEDOUT),
        (errno.ETIMEDOUT, errno.ENETUNREACH, errno.ENETUNREACH),
        (errno.ENETUNREACH, 0, errno.ENETUNREACH),  # no prefix
        (errno.ETIMEDOUT, 0, errno.ETIMEDOUT),
        (0, errno.EACCES, errno.EACCES),
    ],
)
def test_a_refused_connection_ends_with_an_answer_or_with_what_nat64_said(
    ipv4_error: int, nat64_error: int, told: int
) -> None:
    assert outcome(ipv4_error, nat64_error) == told
