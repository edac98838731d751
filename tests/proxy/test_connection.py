"""What is known of a connection at its begin; what becomes of it is in test_dial.py and test_listener.py."""

from __future__ import annotations

from tnat64d.core.config import Config
from tnat64d.core.settings import StickyScope
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.destination import Destinations


def test_a_connection_begins_with_nothing_known_but_who_where_and_when() -> None:
    target = Destinations(Config(), StickyScope.GLOBAL, ("127.0.0.1", 1), lambda target: None).resolve(
        ("198.51.100.1", 80)
    )
    assert target is not None
    connection = Connection(("192.0.0.2", 50_000), target, 12.5)
    assert (connection.client, connection.target, connection.since) == (("192.0.0.2", 50_000), target, 12.5)
    assert connection.idle_since == 12.5
    assert (connection.because, connection.ipv4_error, connection.nat64_error) == ("", 0, 0)
    assert (connection.by_nat64, connection.client_gone, connection.idle) == (False, False, False)
