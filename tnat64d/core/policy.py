"""Which way a connection goes: the rules of the original tnat64, as one table.

Owns the decision for one connection (`begin`, `advance`) and the memory that connections share
(`StickyMemory`). Refuses to own sockets, clocks and logging: the dialer reports what happened as an
`Event` and carries out the `Action` that it is given.

Theory of operation
-------------------
A connection starts in the phase that `begin` gives for its route and the state of its scope, and ends with
RELAY_IPV4, RELAY_NAT64 or REFUSE. At most one IPv4 and one NAT64 attempt are made for it. Each attempt ends
with exactly one event; FALLBACK_DELAY comes at most once, while IPv4 alone is pending in IPV4_FIRST.

    phase          pending      entered when
    ONLY_IPV4      IPv4         the destination is local, or no prefix carries it
    IPV4_FIRST     IPv4         the scope is IPV4_FIRST
    RACE           IPv4, NAT64  IPv4 was silent for the fallback delay
    NAT64_FIRST    NAT64        the scope is NAT64_STICKY; IPv4 was not tried
    NAT64_LAST     NAT64        IPv4 has failed
    IPV4_LAST      IPv4         NAT64 has failed
    DONE           -            the action was final

An answer ends everything: connected, refused, and any error but "unreachable" and "timed out" are what the
destination (or the way to it) had to say, in the race too. "Unreachable" and "timed out" leave the decision
to the other way. The scope becomes NAT64_STICKY when NAT64 answered, and IPV4_FIRST when NAT64 was
unreachable; a timeout changes nothing.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from tnat64d.core.config import Way


class ScopeState(Enum):
    """What is known of one scope (all destinations, one prefix, or one destination)."""

    __hash__ = object.__hash__  # that of Enum is written in Python, and these are keys of the tables below

    IPV4_FIRST = "ipv4-first"
    NAT64_STICKY = "nat64-sticky"


class Phase(Enum):
    """Where one connection stands; see the module's table."""

    __hash__ = object.__hash__

    ONLY_IPV4 = auto()
    IPV4_FIRST = auto()
    RACE = auto()
    NAT64_FIRST = auto()
    NAT64_LAST = auto()
    IPV4_LAST = auto()
    DONE = auto()


class Event(Enum):
    """What became of an attempt, or of waiting for one.

    NAT64_TIMED_OUT: nothing was heard, or the attempt could not begin.
    """

    __hash__ = object.__hash__

    IPV4_CONNECTED = auto()
    IPV4_UNREACHABLE = auto()
    IPV4_TIMED_OUT = auto()
    IPV4_FAILED = auto()
    NAT64_CONNECTED = auto()
    NAT64_REFUSED = auto()
    NAT64_UNREACHABLE = auto()
    NAT64_TIMED_OUT = auto()
    NAT64_FAILED = auto()
    FALLBACK_DELAY = auto()


class Action(Enum):
    """What the dialer has to do. RELAY_* and REFUSE are final and end any attempt still pending."""

    WAIT = auto()
    DIAL_IPV4 = auto()
    DIAL_NAT64 = auto()
    RELAY_IPV4 = auto()
    RELAY_NAT64 = auto()
    REFUSE = auto()


@dataclass(frozen=True, slots=True)
class Transition:
    """The next phase, the action, the scope's new state (None: unchanged) and why (None: as before)."""

    phase: Phase
    action: Action
    scope: ScopeState | None = None
    because: str | None = None


_STICKY: Final = ScopeState.NAT64_STICKY
_DISABLED: Final = ScopeState.IPV4_FIRST

_RELAY_IPV4: Final = Transition(Phase.DONE, Action.RELAY_IPV4)
_RELAY_NAT64: Final = Transition(Phase.DONE, Action.RELAY_NAT64, _STICKY)
_REFUSE: Final = Transition(Phase.DONE, Action.REFUSE)
_REFUSE_STICKY: Final = Transition(Phase.DONE, Action.REFUSE, _STICKY)
_REFUSE_DISABLED: Final = Transition(Phase.DONE, Action.REFUSE, _DISABLED)

_NAT64_ANSWERS: Final = {
    Event.NAT64_CONNECTED: _RELAY_NAT64,
    Event.NAT64_REFUSED: _REFUSE_STICKY,
    Event.NAT64_FAILED: _REFUSE,
}
_IPV4_ANSWERS: Final = {
    Event.IPV4_CONNECTED: _RELAY_IPV4,
    Event.IPV4_FAILED: _REFUSE,
}
_IPV4_ALONE: Final = _IPV4_ANSWERS | {Event.IPV4_UNREACHABLE: _REFUSE, Event.IPV4_TIMED_OUT: _REFUSE}

TRANSITIONS: dict[Phase, dict[Event, Transition]] = {
    Phase.ONLY_IPV4: _IPV4_ALONE,
    Phase.IPV4_FIRST: _IPV4_ANSWERS
    | {
        Event.IPV4_UNREACHABLE: Transition(Phase.NAT64_LAST, Action.DIAL_NAT64, because="IPv4 unreachable"),
        # Only where the connect timeout is shorter than the fallback delay.
        Event.IPV4_TIMED_OUT: _REFUSE,
        Event.FALLBACK_DELAY: Transition(Phase.RACE, Action.DIAL_NAT64, because="IPv4 silent"),
    },
    Phase.RACE: _IPV4_ANSWERS
    | _NAT64_ANSWERS
    | {
        Event.IPV4_UNREACHABLE: Transition(Phase.NAT64_LAST, Action.WAIT),
        Event.IPV4_TIMED_OUT: Transition(Phase.NAT64_LAST, Action.WAIT),
        Event.NAT64_UNREACHABLE: Transition(Phase.IPV4_LAST, Action.WAIT, _DISABLED, "NAT64 unreachable"),
        Event.NAT64_TIMED_OUT: Transition(Phase.IPV4_LAST, Action.WAIT),
    },
    Phase.NAT64_FIRST: _NAT64_ANSWERS
    | {
        Event.NAT64_UNREACHABLE: Transition(Phase.IPV4_LAST, Action.DIAL_IPV4, _DISABLED, "NAT64 unreachable"),
        Event.NAT64_TIMED_OUT: _REFUSE,
    },
    Phase.NAT64_LAST: _NAT64_ANSWERS
    | {
        Event.NAT64_UNREACHABLE: _REFUSE_DISABLED,
        Event.NAT64_TIMED_OUT: _REFUSE,
    },
    Phase.IPV4_LAST: _IPV4_ALONE,
    Phase.DONE: {},
}

_IPV4_EVENTS: Final = frozenset(event for event in Event if event.name.startswith("IPV4_"))
_NAT64_EVENTS: Final = frozenset(event for event in Event if event.name.startswith("NAT64_"))

IMPOSSIBLE: dict[Phase, dict[str, frozenset[Event]]] = {
    Phase.ONLY_IPV4: {
        "NAT64 is never dialled for this destination": _NAT64_EVENTS,
        "there is nothing to fall back to": frozenset({Event.FALLBACK_DELAY}),
    },
    Phase.IPV4_FIRST: {"NAT64 was not dialled yet": _NAT64_EVENTS},
    Phase.RACE: {"the delay is over": frozenset({Event.FALLBACK_DELAY})},
    Phase.NAT64_FIRST: {
        "IPv4 was not dialled": _IPV4_EVENTS,
        "the delay belongs to IPV4_FIRST": frozenset({Event.FALLBACK_DELAY}),
    },
    Phase.NAT64_LAST: {
        "the IPv4 attempt has ended": _IPV4_EVENTS,
        "the delay belongs to IPV4_FIRST": frozenset({Event.FALLBACK_DELAY}),
    },
    Phase.IPV4_LAST: {
        "the NAT64 attempt has ended": _NAT64_EVENTS,
        "the delay belongs to IPV4_FIRST": frozenset({Event.FALLBACK_DELAY}),
    },
    Phase.DONE: {"every attempt has ended": frozenset(Event)},
}

_NAT64: Final = Way.NAT64
_BEGIN_ONLY_IPV4: Final = Transition(Phase.ONLY_IPV4, Action.DIAL_IPV4)
_BEGIN: Final = {
    ScopeState.IPV4_FIRST: Transition(Phase.IPV4_FIRST, Action.DIAL_IPV4, because="IPv4 first"),
    ScopeState.NAT64_STICKY: Transition(Phase.NAT64_FIRST, Action.DIAL_NAT64, because="NAT64 sticky"),
}

_ANSWERED: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET})
"""The second: connected, and reset before anybody looked (net/ipv4/tcp_input.c, tcp_reset)."""

_SILENT: Final = frozenset(
    {errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)
"""Nothing is learned of the way, and an IPv4 attempt that is pending may still succeed: all but the first are
this host's own want of descriptors, memory (socket(2)) or source ports (connect(2))."""

_NAT64_CONNECTED: Final = Event.NAT64_CONNECTED
UNREACHABLE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH})


def begin(way: Way, scope: ScopeState) -> Transition:
    """The first step of a connection whose route goes `way` while its scope is in state `scope`."""
    return _BEGIN[scope] if way is _NAT64 else _BEGIN_ONLY_IPV4


def advance(phase: Phase, event: Event) -> Transition:
    """The step that `event` leads to.

    Raises AssertionError for a pair that `IMPOSSIBLE` lists: the dialer has a bug.
    """
    try:
        return TRANSITIONS[phase][event]
    except KeyError:
        raise AssertionError(f"{event.name} cannot happen in {phase.name}") from None


def ipv4_event(error: int) -> Event:
    """What the end of an IPv4 attempt means; `error` is an errno, 0 for connected."""
    if error == 0:
        return Event.IPV4_CONNECTED
    if error in UNREACHABLE:
        return Event.IPV4_UNREACHABLE
    return Event.IPV4_TIMED_OUT if error == errno.ETIMEDOUT else Event.IPV4_FAILED


def nat64_event(error: int) -> Event:
    """What the end of a NAT64 attempt means; `error` is an errno, 0 for connected."""
    if error == 0:
        return _NAT64_CONNECTED
    if error in UNREACHABLE:
        return Event.NAT64_UNREACHABLE
    if error in _ANSWERED:
        return Event.NAT64_REFUSED
    return Event.NAT64_TIMED_OUT if error in _SILENT else Event.NAT64_FAILED


def outcome(ipv4_error: int, nat64_error: int) -> int:
    """The errno that a refused connection ended with, of those of its attempts (0 for not made, or no error).

    An answer counts; where there is none, what the NAT64 side said, which is all that a program without IPv4
    could have heard.
    """
    if ipv4_error and ipv4_event(ipv4_error) is Event.IPV4_FAILED:
        return ipv4_error
    return nat64_error or ipv4_error


class StickyMemory:
    """The state of every scope, bounded: the scopes that are NAT64_STICKY, the oldest forgotten first.

    What a scope is (its key) is the caller's affair; an unknown scope is IPV4_FIRST.
    """

    def __init__(self, max_entries: int, sticky: Iterable[Hashable] = (), epoch: int = 0) -> None:
        """`sticky` and `epoch`: of another memory that this one shall be like."""
        self.epoch = epoch
        self._max_entries = max_entries
        self._sticky: OrderedDict[Hashable, None] = OrderedDict()
        for scope in sticky:
            self.learn(scope, ScopeState.NAT64_STICKY)

    def state(self, scope: Hashable) -> ScopeState:
        """The state of `scope`."""
        return _STICKY if scope in self._sticky else _DISABLED

    def learn(self, scope: Hashable, state: ScopeState) -> bool:
        """Remember `state`; True if that is news."""
        if (scope in self._sticky) == (state is _STICKY):
            return False
        if state is _DISABLED:
            del self._sticky[scope]
        else:
            self._sticky[scope] = None
            if len(self._sticky) > self._max_entries:
                self._sticky.popitem(last=False)
        return True

    def forget_all(self) -> None:
        """Every scope is IPV4_FIRST again: the host's default routes have changed.

        A new `epoch` begins: what was learned in another says nothing of this network.
        """
        self.epoch += 1
        self._sticky.clear()

    def sticky_scopes(self) -> tuple[Hashable, ...]:
        """The scopes that are NAT64_STICKY, oldest first."""
        return tuple(self._sticky)
