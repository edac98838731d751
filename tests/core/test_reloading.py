"""Which settings may change while the daemon runs."""

from __future__ import annotations

import dataclasses

import pytest

from tnat64d.core.reloading import FIXED, require_reloadable
from tnat64d.core.settings import Settings, entries, parse
from tnat64d.errors import ConfigurationError


def changed(text: str) -> Settings:
    return parse(text, "t.toml")


@pytest.mark.parametrize(
    "text",
    [
        "[proxy]\nfallback_delay_s = 1.0\nconnect_timeout_s = 7.0\nidle_timeout_s = 5.0\ndrain_timeout_s = 1.0",
        "[proxy]\nmax_connections = 5",
        '[policy]\nsticky_scope = "prefix"',
        '[scope]\nusers = ["nobody"]\nnot_ports = ["25"]',
        '[log]\nconnections = "none"',
    ],
)
def test_what_takes_effect_for_new_connections_may_change(text: str) -> None:
    require_reloadable(Settings(), changed(text), "t.toml")


def test_every_key_that_needs_a_restart_is_told_at_once() -> None:
    wanted = changed(
        '[proxy]\nport = 7\n[control]\nsocket = "/x"\n[rules]\nmark = 0x11\n[log]\nconnections = "none"'
    )
    with pytest.raises(ConfigurationError) as refused:
        require_reloadable(Settings(), wanted, "t.toml")
    assert str(refused.value).splitlines() == [
        "t.toml: proxy.port: is 7, and was 6464 at start: needs a restart",
        "t.toml: rules.mark: is 0x11, and was 0x6464 at start: needs a restart",
        't.toml: control.socket: is "/x", and was "/run/tnat64d/control.sock" at start: needs a restart',
    ]


def test_another_gateway_may_come_but_not_the_first() -> None:
    none, one, two = (changed(f"[scope]\ngateway = {names}") for names in ([], ["a0"], ["a0", "b0"]))
    require_reloadable(one, two, "t.toml")
    for running, wanted in ((none, one), (one, none)):
        with pytest.raises(ConfigurationError, match=r"scope\.gateway: the first interface"):
            require_reloadable(running, wanted, "t.toml")


def test_in_tproxy_mode_the_first_gateway_may_come_too() -> None:
    tproxy = '[rules]\nmode = "tproxy"\n'
    require_reloadable(changed(tproxy), changed(f'{tproxy}[scope]\ngateway = ["a0"]'), "t.toml")


def test_every_fixed_key_exists() -> None:
    known = {(entry.table, entry.name) for entry in entries()}
    assert {(table, name) for table, names in FIXED.items() for name in names} <= known
    assert set(FIXED) <= {field.name for field in dataclasses.fields(Settings)}
