"""What a daemon notices of the rules that another process made, and what it does not take for them."""

from __future__ import annotations

import pytest

from tests.kernel.bare_host import CONFIG, ip, ruleset
from tests.lab import Namespace
from tnat64d.core import settings as toml
from tnat64d.core.settings import Settings
from tnat64d.kernel import standing
from tnat64d.kernel.installation import Installation
from tnat64d.kernel.nftables import Nftables
from tnat64d.kernel.set_up_rules import SetUpRules

pytestmark = pytest.mark.netns()

ADDRESS = Settings().rules.address


def set_up(host: Namespace) -> None:
    host.call(Installation(Nftables()).install, ruleset())


def seen(host: Namespace) -> SetUpRules:
    """By a daemon that starts now."""
    rules = SetUpRules(Settings())
    assert host.call(rules.begin) == ()
    host.call(rules.install, CONFIG, Settings())
    return rules


def test_what_has_stood_is_missed_until_it_stands_again(host: Namespace) -> None:
    set_up(host)
    rules = seen(host)
    assert rules.has_stood
    assert host.call(rules.lost) == ()
    ip(host, "rule del pref 32768")
    for _ in range(2):
        assert host.call(rules.lost) == ("the routing rule 32768",)
    set_up(host)
    assert host.call(rules.lost) == ()


def test_what_comes_later_is_expected_from_then_on(host: Namespace) -> None:
    rules = seen(host)
    assert not rules.has_stood
    set_up(host)
    assert host.call(rules.lost) == ()
    assert rules.has_stood
    host.call(Installation(Nftables()).remove)
    assert set(host.call(rules.lost)) == set(standing.routing_parts(ruleset()))


def test_a_reload_expects_no_more_than_stands_by_then(host: Namespace) -> None:
    set_up(host)
    rules = seen(host)
    host.call(Installation(Nftables()).remove)
    host.call(rules.install, CONFIG, Settings())
    assert host.call(rules.lost) == ()
    assert not rules.has_stood


def test_an_address_alone_may_be_anybodys(host: Namespace) -> None:
    ip(host, f"address add {ADDRESS}/32 dev lo")
    rules = seen(host)
    assert not rules.has_stood
    ip(host, f"address del {ADDRESS}/32 dev lo")
    assert host.call(rules.lost) == ()


def test_a_memory_of_refusals_that_nobody_can_have_is_told(
    host: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = toml.parse("[proxy]\nrefusal_memory_s = 5\n", "t.toml")
    host.call(SetUpRules(chosen).install, CONFIG, chosen)
    assert caplog.messages == [
        "proxy.refusal_memory_s in tnat64d.toml has no effect: it needs rules that the daemon makes itself "
        "(tnat64d up, serve --own-rules)"
    ]
