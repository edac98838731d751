"""Where a destination is sent, by what is known of it."""

from __future__ import annotations

from dataclasses import replace

from tests.core.test_reasons import ADDRESS, CONFIG, FACTS
from tnat64d.core import config


def test_a_destination_goes_as_the_configuration_among_the_facts_says() -> None:
    assert replace(FACTS, config=CONFIG).destined == CONFIG.route(ADDRESS, FACTS.port)
    other = config.parse("nat64_prefix = 2001:db8:65::\n", "t.conf")
    assert str(replace(FACTS, config=other).destined.prefix) == "2001:db8:65::/96"
