"""The fwmarks by which packets are told apart, all within the mask of tnat64d.toml but the workers'.

Owns which there are and what they are. Refuses to own the rules that set and ask for them (`core.description`).

    own         rules.mark: the daemon's own connects
    captured    a connection that TPROXY mode captured: of its packets and in conntrack
    refusal     what the daemon refuses connects with
    worker      of a held SYN: which worker held it, in bits beside the mask
"""

from __future__ import annotations

from dataclasses import dataclass

from tnat64d.core.settings import Rules


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


def worker_mark(rules: Rules, worker: int) -> Mark:
    """What a SYN bears that `worker`, from 0 to 14, has held; the mask is 0 where no bits are free."""
    for shift in range(28, -4, -4):
        mask = 0b1111 << shift
        if not mask & rules.mark_mask:
            return Mark(worker + 1 << shift, mask)
    return Mark(0, 0)


def _others(own: Mark) -> tuple[Mark, Mark]:
    """Two marks under the same mask, neither `own` nor 0 (the mask has two bits or more)."""
    lowest_bit = own.mask & -own.mask
    second_bit = (own.mask ^ lowest_bit) & -(own.mask ^ lowest_bit)
    values = (own.value ^ bits for bits in (lowest_bit, second_bit, lowest_bit | second_bit))
    captured, refusal, *_ = (Mark(value, own.mask) for value in values if value)
    return captured, refusal
