"""The two ways to keep rules: when they are owned, when not and why, and what each removes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.kernel.bare_host import CONFIG, own_traces, run_python, standing
from tests.kernel.test_iptables import FOREIGN
from tests.lab import Namespace
from tnat64d.core import settings as toml
from tnat64d.core.settings import Settings
from tnat64d.errors import ConfigurationError, Tnat64Error
from tnat64d.kernel import owned
from tnat64d.kernel.rules import HeldRules, StaticRules

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv", "unshare")

BACKENDS = {
    "nftables": 'backend = "nftables"',
    "iptables-nft": 'backend = "iptables"\niptables = "iptables-nft"',
    "iptables-legacy": 'backend = "iptables"\niptables = "iptables-legacy"',
}


def settings(rules: str = "", scope: str = "") -> Settings:
    return toml.parse(f"[rules]\n{rules}\n[scope]\n{scope}\n", "t.toml")


@contextlib.contextmanager
def held(host: Namespace, chosen: Settings) -> Iterator[HeldRules]:
    """Rules as `up` has them."""
    rules = HeldRules(chosen, "t.toml")
    host.call(rules.begin)
    try:
        host.call(rules.install, CONFIG, chosen)
        yield rules
    finally:
        host.call(rules.remove)


def test_held_rules_are_owned_and_leave_nothing(host: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    before = standing(host)
    with held(host, settings()) as rules:
        assert rules.device is not None
        stands = standing(host)
        assert "default dev tnat64d table 6464 proto 64" in stands["ip -4 route show table all"]
        assert "table ip tnat64d" in stands["nft --stateless list ruleset"]
        assert stands["iptables-legacy-save"] == before["iptables-legacy-save"]
    assert standing(host) == before
    assert "go with this daemon, however it ends" in caplog.text


@pytest.mark.parametrize(
    ("rules", "reason"),
    [('mode = "tproxy"', "TPROXY mode needs a local route"), (BACKENDS["iptables-nft"], "asks for iptables")],
)
def test_what_cannot_be_owned_is_static_with_the_reason(
    host: Namespace, caplog: pytest.LogCaptureFixture, rules: str, reason: str
) -> None:
    caplog.set_level("INFO")
    before = standing(host)
    with held(host, settings(rules)) as kept:
        assert kept.device is None
        assert "default dev lo" in host.run(["ip", "-4", "route", "show", "table", "6464"]).stdout
    assert standing(host) == before
    assert reason in caplog.text


def test_up_again_and_after_a_change_leaves_one_ruleset(host: Namespace) -> None:
    before = standing(host)
    with held(host, settings()) as rules:
        stands = standing(host)
        host.call(rules.install, CONFIG, settings())
        assert {**standing(host), "nft --stateless list ruleset": ""} == {
            **stands,
            "nft --stateless list ruleset": "",
        }
    assert standing(host) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_an_earlier_static_run_left_goes_when_rules_are_held(host: Namespace, backend: str) -> None:
    before = standing(host)
    host.call(StaticRules(settings(BACKENDS[backend]), "t.toml").install, CONFIG)
    assert "default dev lo" in standing(host)["ip -4 route show table all"]
    with held(host, settings()):
        traces = "\n".join(own_traces(host))
        assert "TNAT64D" not in traces
        assert "dev lo" not in traces
        assert "lo:tnat64d" not in traces
    after = standing(host)
    if backend == "iptables-legacy":  # its empty tables stay
        del before["iptables-legacy-save"], after["iptables-legacy-save"]
    assert after == before


@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("second", BACKENDS)
def test_a_change_of_backend_leaves_nothing_of_the_first(host: Namespace, first: str, second: str) -> None:
    host.run(["iptables-nft-restore"], input=FOREIGN)
    host.run(["iptables-legacy-restore"], input=FOREIGN)
    before = standing(host)

    def static(backend: str) -> StaticRules:
        return host.call(StaticRules, settings(BACKENDS[backend]), "t.toml")

    host.call(static(second).install, CONFIG)
    expected = standing(host)
    host.call(static(second).remove)
    host.call(static(first).install, CONFIG)
    host.call(static(second).install, CONFIG)
    assert standing(host) == expected
    host.call(static(first).remove)
    assert standing(host) == before


def test_while_rules_are_held_setup_and_teardown_and_a_second_daemon_change_nothing(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owned, "LETTING_GO_S", 0.1)
    with held(host, settings()):
        before = standing(host)
        static = host.call(StaticRules, settings(), "t.toml")
        for call in (lambda: static.install(CONFIG), static.remove):
            with pytest.raises(Tnat64Error, match="a running tnat64d holds its own rules here: stop it"):
                host.call(call)
        with pytest.raises(Tnat64Error, match="another tnat64d runs here"):
            host.call(HeldRules(settings(), "t.toml").begin)
        assert standing(host) == before


def test_a_first_install_that_fails_leaves_nothing(host: Namespace) -> None:
    host.run(["ip", "route", "add", "default", "dev", "lo", "table", "6464", "proto", "static"])
    before = standing(host)
    rules = HeldRules(settings(), "t.toml")
    host.call(rules.begin)
    with pytest.raises(Tnat64Error, match=r"table 6464 .* rules\.table"):
        host.call(rules.install, CONFIG, settings())
    assert standing(host) == before


def test_a_scope_with_an_unknown_name_changes_nothing(host: Namespace) -> None:
    before = standing(host)
    chosen = settings(scope='users = ["nosuchuser"]')
    with pytest.raises(ConfigurationError, match="there is no user 'nosuchuser'"):
        host.call(StaticRules(chosen, "t.toml").install, CONFIG)
    assert standing(host) == before


HOLD = """
import logging, sys
from tests.kernel.bare_host import CONFIG
from tnat64d.core.settings import Settings
from tnat64d.kernel.rules import HeldRules
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
rules = HeldRules(Settings(), "t.toml")
print(rules.begin())
rules.install(CONFIG, Settings())
sys.stdin.read()
rules.remove()
"""


@pytest.mark.parametrize(
    "hide",
    ["mount -t tmpfs none /dev/net", "mount -t tmpfs none /dev/net; : >/dev/net/tun"],
    ids=["missing", "not a device"],
)
def test_without_tun_rules_are_static_with_the_reason(host: Namespace, hide: str) -> None:
    before = standing(host)
    said = run_python(host, HOLD, wrapper=["unshare", "--mount", "sh", "-ec", f'{hide}; exec "$@"', "sh"])
    assert "rules: static, until this process removes them, because" in said
    assert "/dev/net/tun" in said or "TUN device" in said
    assert "rules: by nftables, because no NAT rules of iptables are here" in said
    assert standing(host) == before


def test_no_program_is_needed_for_held_rules(host: Namespace) -> None:
    before = standing(host)
    code = f"import os; os.environ['PATH'] = '/nonexistent'\n{HOLD}"
    assert "go with this daemon" in run_python(host, code)
    assert standing(host) == before


def test_the_plan_says_which_backend_and_why_and_run_by_a_shell_makes_the_rules(host: Namespace) -> None:
    rules = host.call(StaticRules, settings(scope='users = ["root"]\nports = ["443"]'), "t.toml")
    plan = host.call(rules.plan, CONFIG)
    assert plan.startswith("# backend nftables: no NAT rules of iptables are here\n")
    assert "tcp dport 443" in plan
    assert "meta skuid 0" in plan
    host.call(rules.install, CONFIG)
    expected = standing(host)
    host.call(rules.remove)
    host.run(["sh", "-e"], input=plan)
    assert standing(host) == expected
