"""The fwmarks by which packets are told apart, all within the mask of tnat64d.toml but the workers'.

Owns which there are and what they are. Refuses to own the rules that set and ask for them (`core.description`).

    own         rules.mark: the daemon's own connects
    captured    a connection that TPROXY mode captured: of its packets and in conntrack
    refusal     what the daemon refuses connects with
    worker      of a held SYN: which worker held it, in bits beside the mask
"""

from __future__ import annotations

from dataclasses import dataclass

from tnat64d.core.settings import MAX_HONEST_WORKERS, Rules

_NIBBLE = 0b1111


@dataclass(frozen=True, slots=True)
class Mark:
    """A fwmark under its mask."""

    value: int
    mask: int

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"


def own_mark(rules: Rules) -> Mark:
    """The mark of the daemon's own connects."""
    return Mark(rules.mark, rules.mark_mask)


def captured_mark(rules: Rules) -> Mark:
    """The mark of what TPROXY mode captures."""
    captured, _ = _others(own_mark(rules))
    return captured


def refusal_mark(rules: Rules) -> Mark:
    """The mark of what the daemon refuses connects with."""
    _, refusal = _others(own_mark(rules))
    return refusal


def worker_marks(rules: Rules) -> tuple[Mark, ...]:
    """What a SYN bears that the first worker has held, the second, …; none where no eight bits in a row are free.

    The highest eight: most others take lower ones. They hold the number of the worker, from 1, beside its
    complement: four bits are set, whichever the worker, so that others who only set or only clear some afterwards
    never make another worker's mark of it. Of the 255 values that others may have given to a SYN there before, one
    for each worker is taken for its mark.
    """
    for shift in range(24, -1, -1):
        mask = 0xFF << shift
        if not mask & rules.mark_mask:
            numbers = range(1, MAX_HONEST_WORKERS + 1)
            return tuple(Mark((number << 4 | number ^ _NIBBLE) << shift, mask) for number in numbers)
    return ()


def _others(own: Mark) -> tuple[Mark, Mark]:
    """Two marks under the same mask, neither `own` nor 0 (the mask has two bits or more)."""
    lowest_bit = own.mask & -own.mask
    second_bit = (own.mask ^ lowest_bit) & -(own.mask ^ lowest_bit)
    values = (own.value ^ bits for bits in (lowest_bit, second_bit, lowest_bit | second_bit))
    captured, refusal, *_ = (Mark(value, own.mask) for value in values if value)
    return captured, refusal
