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
    return host.call(capturing.places, Rules())


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
        capturing.places(Rules())
