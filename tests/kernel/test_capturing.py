"""What is said to capture, for each backend, and that other people's rules are not taken for ours."""

from __future__ import annotations

import pytest

from tests.kernel.bare_host import backend, ip, ruleset
from tests.lab import Namespace
from tnat64d.core.settings import Mode, Rules
from tnat64d.errors import PrivilegeError
from tnat64d.kernel import capabilities, capturing

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")


def places(host: Namespace) -> tuple[str, ...]:
    return capturing.places(host.call(capturing.held, Rules()))


def changed(host: Namespace, mode: Mode = Mode.REDIRECT, *, all_parts: bool = False) -> tuple[str, ...]:
    held = host.call(capturing.held, Rules())
    return host.call(lambda: capturing.changed(held, ruleset(mode), all_parts=all_parts))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", ["iptables-nft", "iptables-legacy", "nftables"])
def test_the_backend_that_holds_the_rules_is_named_while_they_stand(
    host: Namespace, name: str, mode: Mode
) -> None:
    ip(host, "link set lo up")
    assert places(host) == ()
    host.call(backend(name).install, ruleset(mode))
    (found,) = places(host)
    chain = "-t nat chain TNAT64D" if mode is Mode.REDIRECT else "-t mangle chain TNAT64D-MARK"
    wanted = "nftables table ip tnat64d, static" if name == "nftables" else chain
    assert wanted in found
    assert ("legacy" in found) == (name == "iptables-legacy")
    host.call(backend(name).remove)
    assert places(host) == ()


def test_a_chain_that_nothing_leads_to_captures_nothing(host: Namespace) -> None:
    host.run(["iptables-nft", "-t", "nat", "-N", "TNAT64D"])
    host.run(["iptables-nft", "-t", "nat", "-A", "OUTPUT", "-j", "RETURN"])
    assert places(host) == ()


def test_without_privileges_it_refuses_to_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "CAP_NET_ADMIN", 63)  # no kernel has it
    with pytest.raises(PrivilegeError, match="looking at the kernel's rules needs root"):
        capturing.held(Rules())


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", ["iptables-nft", "iptables-legacy", "nftables"])
def test_what_has_just_been_made_is_not_changed(host: Namespace, name: str, mode: Mode) -> None:
    ip(host, "link set lo up")
    host.call(backend(name).install, ruleset(mode))
    assert changed(host, mode, all_parts=True) == ()


GUTTED = {
    "nft flush chain ip tnat64d redirect-output-rules": ("nftables", "the table ip tnat64d"),
    "nft insert rule ip tnat64d redirect-output accept": ("nftables", "the table ip tnat64d"),
    "iptables-nft -t nat -F TNAT64D": ("iptables-nft", "the chain TNAT64D"),
    "iptables-legacy -t nat -F TNAT64D": ("iptables-legacy", "the chain TNAT64D"),
    "iptables-nft -t nat -F OUTPUT": ("iptables-nft", "the jump to TNAT64D"),
}


@pytest.mark.parametrize("command", GUTTED)
def test_rules_that_are_gutted_are_named(host: Namespace, command: str) -> None:
    name, part = GUTTED[command]
    ip(host, "link set lo up")
    host.call(backend(name).install, ruleset())
    host.run(command.split())
    assert changed(host) == (part,)


def test_a_lost_guard_captures_all_the_same(host: Namespace) -> None:
    ip(host, "link set lo up")
    host.call(backend("iptables-nft").install, ruleset())
    host.run(["iptables-nft", "-F", "TNAT64D-GUARD"])
    assert changed(host) == ()
    assert changed(host, all_parts=True) == ("the chain TNAT64D-GUARD",)
