"""One key of tnat64d.toml: what its annotation says, and the values and sentences that come of it.

Owns everything that can be said of one key by itself. Does not own which keys there are and what they mean
together: `core.settings` has the tables.

    Annotated[TYPE, RULE, DOC]    TYPE is int, float, str, IPv4Address, an enum, a Literal, a union of these, or
                                  tuple[str, ...]; RULE is a Range or a Form where TYPE is a number or text
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds of a number, and whether it is written as 0x..."""

    low: float
    high: float
    hexadecimal: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """What a text must match in full, as a regular expression and in words."""

    pattern: str
    words: str


@dataclass(frozen=True, slots=True)
class Key:
    """One field's annotation."""

    type: Any
    rule: Range | Form | None
    doc: str

    def alternatives(self) -> tuple[Any, ...]:
        return get_args(self.type) if get_origin(self.type) is Union else (self.type,)

    def convert(self, value: Any) -> Any:
        """`value` as TOML gave it, as the field holds it. Raises ValueError if it does not fit."""
        if get_origin(self.type) is tuple:
            return self._convert_list(value)
        for kind in self.alternatives():
            # bool is an int to Python, not to a reader; nan fails both comparisons.
            if kind is bool:
                if isinstance(value, bool):
                    return value
            elif isinstance(self.rule, Range) and kind in (int, float):
                number = isinstance(value, int | kind) and not isinstance(value, bool)
                if number and self.rule.low <= value <= self.rule.high:
                    return kind(value)
            elif isinstance(value, str):
                if value in _choices(kind):
                    return value if get_origin(kind) is Literal else kind(value)
                if isinstance(self.rule, Form) and re.fullmatch(self.rule.pattern, value):
                    return value
                if kind is IPv4Address:
                    return IPv4Address(value)
        raise ValueError

    def _convert_list(self, value: Any) -> tuple[str, ...]:
        assert isinstance(self.rule, Form)
        if not isinstance(value, list):
            raise ValueError
        for item in value:
            if not isinstance(item, str) or not re.fullmatch(self.rule.pattern, item):
                raise ValueError
        return tuple(value)

    def expected(self) -> str:
        """What would fit, in words."""
        if get_origin(self.type) is tuple:
            assert isinstance(self.rule, Form)
            return f"an array of {self.rule.words}"
        return " or ".join(self._phrase(kind) for kind in self.alternatives())

    def _phrase(self, kind: Any) -> str:
        if kind is IPv4Address:
            return "an IPv4 address in quotes"
        if kind is bool:
            return "true or false"
        if isinstance(self.rule, Form):
            return self.rule.words
        if isinstance(self.rule, Range) and kind in (int, float):
            noun = "an integer" if kind is int else "a number"
            return f"{noun} from {self.show(self.rule.low)} to {self.show(self.rule.high)}"
        return " or ".join(f'"{choice}"' for choice in _choices(kind))

    def show(self, value: object) -> str:
        return show(value, isinstance(self.rule, Range) and self.rule.hexadecimal)


def keys_of(kind: type) -> dict[str, Key]:
    """The keys of the table `kind`, a dataclass, by name."""
    keys = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        type_, *rule, doc = get_args(hint)
        keys[name] = Key(type_, rule[0] if rule else None, doc)
    return keys


def _choices(kind: Any) -> tuple[str, ...]:
    """The words a Literal or an enum is made of; none for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(kind) if issubclass(kind, Enum) else ()


def show(value: object, hexadecimal: bool = False) -> str:
    """A value as TOML writes it, short and free of control characters."""
    match value:
        case bool():
            shown = str(value).lower()
        # Beyond 64 bits because str() refuses more than 4300 digits, which hex() does not.
        case int() if hexadecimal or abs(value) >= 1 << 64:
            shown = hex(value)
        case str() | IPv4Address():
            shown = json.dumps(str(value))
        case dict():
            return "a table"
        case list() | tuple():
            shown = "[" + ", ".join(show(item) for item in value) + "]"
        case _:
            shown = str(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def show_name(name: str) -> str:
    """A key or table name as TOML writes it: bare where that is allowed."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) else show(name)
