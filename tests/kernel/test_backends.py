"""Which backend is chosen, by what the host has, and what is said of it."""

from __future__ import annotations

import pytest

from tests.kernel.bare_host import standing
from tests.lab import Namespace
from tnat64d.core.settings import Rules
from tnat64d.kernel.backends import Choice, choose
from tnat64d.kernel.iptables import Iptables
from tnat64d.kernel.nftables import Nftables

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")

NAT_RULE = ("-t", "nat", "-A", "OUTPUT", "-d", "198.51.100.77", "-j", "ACCEPT")
FILTER_RULE = ("-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
NFT_NAT = "table ip theirs { chain o { type nat hook output priority -100; tcp dport 25 redirect to :2525; }; }"


def chosen(host: Namespace, backend: str = "auto", iptables: str = "iptables") -> Choice:
    return host.call(choose, Rules(backend=backend, iptables=iptables))  # type: ignore[arg-type]


@pytest.mark.parametrize("table", ["nat", "filter"])
def test_beside_nat_rules_of_an_iptables_it_is_that_iptables(host: Namespace, program: str, table: str) -> None:
    host.run([program, *(NAT_RULE if table == "nat" else FILTER_RULE)])
    choice = chosen(host)
    if table == "nat":
        assert (choice.name, choice.because) == (program, f"this host's NAT rules are {program}'s")
        assert isinstance(choice.backend, Iptables)
    else:  # rules that filter do not decide
        assert choice.name == "nftables"


def test_without_any_nat_rules_it_is_a_table_of_its_own(host: Namespace) -> None:
    choice = chosen(host)
    assert (choice.name, choice.because) == ("nftables", "no NAT rules of iptables are here")
    assert isinstance(choice.backend, Nftables)


def test_beside_a_nat_table_of_nft_it_is_a_table_of_its_own(host: Namespace) -> None:
    host.run(["nft", NFT_NAT])
    assert chosen(host).name == "nftables"


def test_with_rules_of_both_it_is_the_legacy_one(host: Namespace) -> None:
    for each in ("iptables-nft", "iptables-legacy"):
        host.run([each, *NAT_RULE])
    assert chosen(host).name == "iptables-legacy"


def test_an_empty_nat_table_decides_nothing(host: Namespace, program: str) -> None:
    host.run([program, "-t", "nat", "-L"])
    assert chosen(host).name == "nftables"


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_what_the_settings_ask_for_is_taken(host: Namespace, program: str, backend: str) -> None:
    other = {"iptables-nft": "iptables-legacy", "iptables-legacy": "iptables-nft"}[program]
    host.run([program, *NAT_RULE])
    choice = chosen(host, backend, other)
    assert choice.name == (other if backend == "iptables" else "nftables")
    assert choice.because == "rules.backend asks for it"


def test_the_other_backends_are_cleaned_and_the_chosen_one_under_another_name_is_not(host: Namespace) -> None:
    assert len(chosen(host, "nftables").others) == 2
    for name in ("iptables", "iptables-nft", "iptables-legacy"):
        assert len(chosen(host, "iptables", name).others) == 2  # nftables, and the other iptables


def test_choosing_changes_nothing(host: Namespace, program: str) -> None:
    host.run([program, *NAT_RULE])
    before = standing(host)
    chosen(host)
    assert standing(host) == before


def test_with_no_iptables_installed_it_is_a_table_of_its_own(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    choice = chosen(host)
    assert (choice.name, choice.others) == ("nftables", ())
