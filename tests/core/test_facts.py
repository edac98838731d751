"""Where a destination is sent: by the running daemon, or else by the file."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.core.test_reasons import CONFIG, DENIED, FACTS, STOPPED, told
from tnat64d.core import config
from tnat64d.core.config import Way
from tnat64d.core.facts import Destined, Silence

IN_PATH = IPv4Address("8.8.8.8")


def test_a_destination_has_the_prefix_and_the_line_of_what_decides() -> None:
    assert Destined.by(CONFIG, IN_PATH, 443) == Destined(
        way=Way.NAT64,
        prefix="64:ff9b::/96",
        nat64_address="64:ff9b::808:808",
        line=3,
        reason="path at line 3, subnet 8.8.8.0/24 on line 4",
    )


def test_without_a_prefix_there_is_neither_an_address_nor_a_line() -> None:
    destined = Destined.by(config.Config(), IN_PATH, 443)
    assert (destined.prefix, destined.nat64_address, destined.line) == (None, None, None)


def test_the_running_daemon_is_believed_before_the_file() -> None:
    of_daemon = config.parse("nat64_prefix = 2001:db8:65::\n", "t.conf")
    assert replace(FACTS, daemon=told(of=of_daemon)).destined.prefix == "2001:db8:65::/96"


@pytest.mark.parametrize("silence", [STOPPED, DENIED])
def test_where_the_daemon_does_not_tell_the_file_does(silence: Silence) -> None:
    assert replace(FACTS, daemon=silence).destined.prefix == "2001:db8:64::/96"
