"""What both files come to on a host: its names, its device, and who remembers refusals."""

from __future__ import annotations

import pytest

from tests.kernel.bare_host import CONFIG, ruleset
from tests.lab import Namespace
from tnat64d.core import config
from tnat64d.core import settings as toml
from tnat64d.core.files import Files
from tnat64d.core.ruleset import LOOPBACK, OWN_DEVICE
from tnat64d.core.settings import Settings
from tnat64d.errors import ConfigurationError
from tnat64d.kernel.rules import HeldRules
from tnat64d.kernel.wanted import describe, describe_made, needs_setup

FILE = "t.toml"
REMEMBERING = toml.parse("[proxy]\nrefusal_memory_s = 5\n", FILE)


def test_files_without_a_scope_come_to_their_description() -> None:
    assert describe(CONFIG, Settings(), FILE, LOOPBACK) == ruleset()


def test_names_in_a_scope_are_those_of_this_host() -> None:
    by_name, by_number = (toml.parse(f"[scope]\nusers = [{root}]\n", FILE) for root in ('"root"', '"0"'))
    wanted = describe(CONFIG, by_name, FILE, LOOPBACK)
    assert wanted == describe(CONFIG, by_number, FILE, LOOPBACK) != ruleset()
    with pytest.raises(ConfigurationError, match="there is no user 'nosuchuser'"):
        describe(CONFIG, toml.parse('[scope]\nusers = ["nosuchuser"]\n', FILE), FILE, LOOPBACK)


@pytest.mark.netns
@pytest.mark.parametrize(
    ("way", "backends", "memory_ms"),
    [
        ("static", ["nftables"], 5000),
        ("static", ["iptables-nft"], 0),
        ("setup", ["nftables"], 0),
        ("", ["nftables"], 0),
    ],
)
def test_refusals_are_remembered_where_a_daemon_fills_the_set(
    host: Namespace, way: str, backends: list[str], memory_ms: int
) -> None:
    made = host.call(describe_made, CONFIG, REMEMBERING, FILE, way, backends)
    assert (made.refusal_memory_ms, made.address.device) == (memory_ms, LOOPBACK)


@pytest.mark.netns
def test_while_rules_are_held_they_are_for_the_device_of_their_own(host: Namespace) -> None:
    rules = HeldRules(REMEMBERING, FILE)
    host.call(rules.begin)
    try:
        host.call(rules.install, CONFIG, REMEMBERING)
        made = host.call(describe_made, CONFIG, REMEMBERING, FILE, rules.way, ["nftables"])
        assert (made.refusal_memory_ms, made.address.device) == (5000, OWN_DEVICE)
    finally:
        host.call(rules.remove)


@pytest.mark.parametrize(
    ("conf", "settings", "needs"),
    [
        ("nat64_prefix = 2001:db8:64::", "", False),
        ("nat64_prefix = 2001:db8:65::", "[proxy]\nfallback_delay_s = 1\n", False),
        ("nat64_prefix = 2001:db8:64::\nlocal = 10.0.0.0/8", "", True),
        ("nat64_prefix = 2001:db8:64::", '[scope]\nports = ["443"]\n', True),
    ],
    ids=["nothing", "a prefix and a delay", "a local network", "a scope"],
)
def test_setup_is_needed_for_what_rules_are_made_of(conf: str, settings: str, needs: bool) -> None:
    before = Files(config.parse("nat64_prefix = 2001:db8:64::", "t.conf"), Settings())
    after = Files(config.parse(conf, "t.conf"), toml.parse(settings, FILE))
    assert needs_setup(before, after, FILE) is needs
