"""The words of a tnat64.conf line, and the values that words hold.

Owns everything that can be said of one line by itself, with the column it is said of. Does not own what the
words mean together: `core.config` has the grammar of the file.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import NamedTuple

# tnat64 reads lines into a buffer of BUFSIZ (8192): 8190 characters, newline and NUL.
MAX_LINE_CHARACTERS = 8190
_ALL_ONES = 0xFFFFFFFF
_NOT_TEXT = re.compile(r"[^\t -~]")
_WORDS = re.compile(r"=|[^ \t=]+")


class Word(NamedTuple):
    """`column` counts characters from 1."""

    text: str
    column: int


class Problem(Exception):
    """What is wrong with the line in hand and what would be right, at which column."""

    def __init__(self, column: int, sentence: str) -> None:
        super().__init__(sentence)
        self.column = column
        self.sentence = sentence


class NetworkValue(NamedTuple):
    """IP[:PORT[-PORT]]/MASK: address and mask as integers, the ports inclusive, or None if there are none."""

    address: int
    mask: int
    ports: tuple[int, int] | None


def split(line: str) -> list[Word]:
    """The words in front of a comment, '=' being one by itself. Raises Problem for what no line may hold."""
    if len(line) > MAX_LINE_CHARACTERS:
        limit = MAX_LINE_CHARACTERS
        raise Problem(limit + 1, f"the line is too long: use at most {limit} characters")
    code = line.partition("#")[0]
    if bad := _NOT_TEXT.search(code):
        what = _describe_character(bad[0])
        raise Problem(bad.start() + 1, f"{what} outside of a comment: use printable ASCII, spaces and tabs")
    if "\0" in line:
        raise Problem(line.index("\0") + 1, "byte 0x00 in a comment: remove it")
    return [Word(match[0], match.start() + 1) for match in _WORDS.finditer(code)]


def _describe_character(character: str) -> str:
    """Names what surrogateescape made of an undecodable byte as that byte (PEP 383)."""
    code = ord(character)
    if code < 0x80:
        return f"byte 0x{code:02X}"
    return f"byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"character U+{code:04X}"


def quote(text: str) -> str:
    """`text` in quotes, short and printable."""
    return repr(text if len(text) <= 50 else text[:50] + "…")


def parse_network(word: Word) -> NetworkValue:
    """Raises Problem, with the column of the part that is wrong."""
    place, slash, mask_text = word.text.partition("/")
    if not slash:
        example = "IP/MASK, such as 10.0.0.0/255.0.0.0 or 10.0.0.0/8"
        raise Problem(word.column, f"{quote(word.text)} has no mask: write {example}")
    mask_column = word.column + len(place) + 1
    if ":" in mask_text:
        example = "IP:PORT/MASK, such as 10.0.0.0:80/255.0.0.0"
        raise Problem(mask_column, f"the ports stand behind the mask: write {example}")
    ip_text, colon, ports_text = place.partition(":")
    address = _parse_dotted(Word(ip_text, word.column), "an IPv4 address: write one such as 10.0.0.0")
    mask = _parse_mask(Word(mask_text, mask_column))
    if address & mask != address:
        right = IPv4Address(address & mask)
        raise Problem(word.column, f"{ip_text} has bits set outside of the mask {mask_text}: write {right}")
    ports = _parse_ports(Word(ports_text, word.column + len(ip_text) + 1)) if colon else None
    return NetworkValue(address, mask, ports)


def _parse_dotted(word: Word, what_is_right: str) -> int:
    """Four decimal numbers. tnat64's inet_aton(3) also takes 10.1, 0x0a.0.0.1 and the octal 010.0.0.1, which
    hardly anybody means."""
    try:
        return int(IPv4Address(word.text))
    except ValueError:
        form = "four numbers from 0 to 255, no leading zeros"
        raise Problem(word.column, f"{quote(word.text)} is not {what_is_right} ({form})") from None


def _parse_mask(word: Word) -> int:
    if "." in word.text:
        return _parse_dotted(word, "a mask: write one such as 255.255.255.0 or 24")
    if not re.fullmatch("[0-9]|[12][0-9]|3[0-2]", word.text):
        example = "a length from 0 to 32 or a mask such as 255.255.255.0"
        raise Problem(word.column, f"{quote(word.text)} is not a mask: write {example}")
    return _ALL_ONES << (32 - int(word.text)) & _ALL_ONES


def _parse_ports(word: Word) -> tuple[int, int]:
    first_text, dash, last_text = word.text.partition("-")
    first = _parse_port(Word(first_text, word.column))
    last = _parse_port(Word(last_text, word.column + len(first_text) + 1)) if dash else first
    if last < first:
        raise Problem(word.column, f"the ports {first}-{last} are reversed: write {last}-{first}")
    return first, last


def _parse_port(word: Word) -> int:
    if re.fullmatch("0*[1-9][0-9]{0,4}", word.text) and (port := int(word.text[-5:])) <= 65535:
        return port
    raise Problem(word.column, f"{quote(word.text)} is not a port: write a number from 1 to 65535")
