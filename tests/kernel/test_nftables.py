"""The life of the table of nf_tables: made, replaced, removed, and nobody else's."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.kernel.bare_host import honest_ruleset, listed, ruleset, standing, tables
from tests.lab import Namespace
from tnat64d.core.ruleset import Match, Rule, Verdict
from tnat64d.core.settings import Mode
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.nftables import Nftables, OwnedTable

pytestmark = pytest.mark.netns("nft", "iptables-nft", "iptables-legacy", "setpriv")

FOREIGN = "table ip theirs { chain output { type filter hook output priority 0; tcp dport 25 reject; }; }"


def test_the_plan_of_held_packets_changes_nothing(host: Namespace) -> None:
    before = standing(host)
    assert "queue flags bypass to 6471" in host.call(Nftables().plan, honest_ruleset())
    assert standing(host) == before


def test_installing_again_changes_nothing(host: Namespace, mode: Mode) -> None:
    host.call(Nftables().install, ruleset(mode))
    once = standing(host)
    host.call(Nftables().install, ruleset(mode))
    assert standing(host) == once


def test_a_change_leaves_nothing_of_what_was_before(host: Namespace) -> None:
    host.call(Nftables().install, ruleset(Mode.REDIRECT))
    expected = standing(host)
    host.call(Nftables().install, ruleset(Mode.TPROXY))
    assert standing(host) != expected
    host.call(Nftables().install, ruleset(Mode.REDIRECT))
    assert standing(host) == expected


def test_a_table_that_the_kernel_refuses_leaves_the_one_before(host: Namespace) -> None:
    host.call(Nftables().install, ruleset())
    before = standing(host)
    (first, *rest) = ruleset().chains
    # A redirect is refused outside of nat chains: the last chain, when all else was taken already.
    wrong = type(rest[-1])(rest[-1].hook, (Match(),), (Rule(Match(), Verdict.REDIRECT),))
    broken = ruleset(Mode.TPROXY)
    with pytest.raises(Tnat64Error, match="nf_tables refused"):
        host.call(
            Nftables().install,
            type(broken)(
                port=broken.port,
                captured=broken.captured,
                address=broken.address,
                route=broken.route,
                policy_rules=broken.policy_rules,
                chains=(first, wrong),
            ),
        )
    assert standing(host) == before


def test_tables_of_others_stay_as_they_are(host: Namespace, mode: Mode) -> None:
    host.run(["nft", FOREIGN])
    host.run(["nft", "add table ip6 tnat64d; add table inet tnat64d"])  # of the same name, but not ours
    before = standing(host)
    host.call(Nftables().install, ruleset(mode))
    assert standing(host) != before
    host.call(Nftables().remove)
    assert standing(host) == before


def test_removing_twice_or_for_nothing_changes_nothing(host: Namespace) -> None:
    before = standing(host)
    host.call(Nftables().remove)
    assert host.call(Nftables().plan_removal) == ""
    host.call(Nftables().install, ruleset())
    assert host.call(Nftables().plan_removal) == "nft delete table ip tnat64d"
    host.call(Nftables().remove)
    host.call(Nftables().remove)
    assert standing(host) == before


def test_the_plan_changes_nothing_and_run_by_a_shell_makes_what_install_makes(host: Namespace, mode: Mode) -> None:
    before = standing(host)
    plan = host.call(Nftables().plan, ruleset(mode))
    assert standing(host) == before
    host.call(Nftables().install, ruleset(mode))
    expected = standing(host)
    host.run(["sh", "-e"], input=plan)
    host.run(["sh", "-e"], input=plan)
    assert standing(host) == expected


def test_a_plan_that_nft_does_not_like_is_told_with_its_words(host: Namespace) -> None:
    (first, *_) = ruleset().chains
    wrong = type(first)(first.hook, first.entries, (Rule(Match(in_device='"'), Verdict.RETURN),))
    broken = ruleset()
    with pytest.raises(Tnat64Error, match="nft -c refused the table"):
        host.call(
            Nftables().plan,
            type(broken)(
                port=1,
                captured=broken.captured,
                address=broken.address,
                route=broken.route,
                policy_rules=(),
                chains=(wrong,),
            ),
        )


def test_without_privileges_it_says_so(host: Namespace) -> None:
    code = """
from tests.kernel.bare_host import ruleset
from tnat64d.errors import PrivilegeError
from tnat64d.kernel.nftables import Nftables, OwnedTable
for call in (lambda: Nftables().install(ruleset()), lambda: Nftables().remove(), lambda: OwnedTable().claim()):
    try:
        call()
    except PrivilegeError as error:
        print(error)
"""
    wrapper = ["setpriv", "--bounding-set=-net_admin", "--", sys.executable, "-c", code]
    assert host.run(wrapper).stdout == "nf_tables needs root (CAP_NET_ADMIN)\n" * 3


OWNER = """
import signal
from tests.kernel.bare_host import ruleset
from tnat64d.core.settings import Mode
from tnat64d.kernel.nftables import OwnedTable
table = OwnedTable()
table.claim()
for _ in range(2):
    table.install(ruleset(Mode.REDIRECT))
print("ready", flush=True)
signal.pause()
"""


def test_an_owned_table_survives_the_flush_of_others_and_cannot_be_deleted(host: Namespace) -> None:
    host.run(["nft", FOREIGN])
    owner = host.start([sys.executable, "-c", OWNER])
    owner.wait_for_output("^ready$")
    before = listed(host)
    host.run(["nft", "flush", "ruleset"])
    assert tables(host) == ["table ip tnat64d"]
    assert listed(host) == before
    assert host.run(["nft", "delete", "table", "ip", "tnat64d"], check=False).returncode != 0
    with pytest.raises(Tnat64Error):
        host.call(Nftables().install, ruleset())
    assert listed(host) == before


def test_an_owned_table_goes_with_its_owner_however_it_ends(host: Namespace) -> None:
    host.run(["nft", FOREIGN])
    before = standing(host)
    owner = host.start([sys.executable, "-c", OWNER])
    owner.wait_for_output("^ready$")
    assert "table ip tnat64d" in tables(host)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert standing(host) == before


def test_an_owned_table_is_the_same_but_for_its_owner(host: Namespace) -> None:
    host.call(Nftables().install, ruleset())
    expected = listed(host)
    table = host.call(OwnedTable)
    try:
        host.call(table.claim)
        host.call(table.install, ruleset())
        assert listed(host) == expected
        assert "flags owner" in host.run(["nft", "list", "table", "ip", "tnat64d"]).stdout
    finally:
        table.close()
    assert tables(host) == []
