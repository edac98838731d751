"""The set of destinations that are refused: made as its text says, filled, emptied, and forgetful by itself."""

from __future__ import annotations

import errno
import json
import re

import pytest

from tests.kernel.bare_host import CONFIG, PORT, ip, standing
from tests.kernel.test_nft_table import assert_netlink_makes_what_the_text_says
from tests.lab import Namespace, wait_until
from tnat64d.core.description import describe
from tnat64d.core.ruleset import MAX_REFUSED, OWN_DEVICE, Ruleset
from tnat64d.core.scope import Place, Program, Scope
from tnat64d.core.settings import Mode, Rules
from tnat64d.errors import Tnat64Error
from tnat64d.kernel import nftables
from tnat64d.kernel.nftables import Nftables, OwnedTable

pytestmark = pytest.mark.netns("nft", "iptables-nft", "iptables-legacy")

SCOPE = Scope(programs=(Program(uid=1000),), places=(Place(ports=(80, 90)),))


def remembering(memory_s: float, mode: Mode = Mode.REDIRECT, scope: Scope | None = None) -> Ruleset:
    return describe(CONFIG, Rules(mode=mode), scope or Scope(), PORT, OWN_DEVICE, refusal_memory_s=memory_s)


def try_to_connect(host: Namespace, port: int) -> None:
    """One SYN, to 192.0.2.1."""
    with host.socket() as sock:
        assert sock.connect_ex(("192.0.2.1", port)) == errno.ECONNREFUSED


def refused(host: Namespace) -> set[tuple[str, int]]:
    """What is in the set, as nft(8) sees it."""
    shown = host.run(["nft", "-j", "list", "set", "ip", "tnat64d", "refused"]).stdout
    (found,) = (item["set"] for item in json.loads(shown)["nftables"] if "set" in item)
    concatenations = [element.get("elem", element) for element in found.get("elem", [])]
    return {tuple(each.get("val", each)["concat"]) for each in concatenations}


@pytest.mark.parametrize("memory_s", [0.1, 1.5, 5.0, 90.0, 3600.0])
def test_what_netlink_makes_is_what_the_text_makes(host: Namespace, mode: Mode, memory_s: float) -> None:
    assert_netlink_makes_what_the_text_says(host, remembering(memory_s, mode, SCOPE))


def test_behind_a_gateway_too(host: Namespace) -> None:
    assert_netlink_makes_what_the_text_says(host, remembering(5.0, scope=Scope(gateway=("docker0",))))


@pytest.mark.parametrize("is_owned", [False, True], ids=["static", "owned"])
def test_destinations_are_refused_until_they_are_forgotten(host: Namespace, is_owned: bool) -> None:
    table: Nftables | OwnedTable = host.call(OwnedTable) if is_owned else Nftables()
    if isinstance(table, OwnedTable):
        host.call(table.claim)
    host.call(table.install, remembering(60.0))
    before = host.call(Nftables().standing)
    host.call(table.refuse, [("192.0.2.1", 80), ("192.0.2.1", 443)])
    host.call(table.refuse, [("192.0.2.1", 443), ("203.0.113.255", 65535)])
    assert refused(host) == {("192.0.2.1", 80), ("192.0.2.1", 443), ("203.0.113.255", 65535)}
    assert host.call(Nftables().standing) == before, "what is in the set is no change of the rules"
    host.call(table.forget_refused)
    host.call(table.forget_refused)
    assert refused(host) == set()
    if isinstance(table, OwnedTable):
        table.close()


@pytest.mark.parametrize("is_owned", [False, True], ids=["static", "owned"])
def test_it_counts_what_it_refuses_also_when_the_rules_are_made_anew(host: Namespace, is_owned: bool) -> None:
    ip(host, "link set lo up", "addr add 192.0.0.2/32 dev lo", "route add default dev lo src 192.0.0.2")
    table: Nftables | OwnedTable = host.call(OwnedTable) if is_owned else Nftables()
    if isinstance(table, OwnedTable):
        host.call(table.claim)
    assert host.call(nftables.refused_count) == 0
    for count in (0, 2):
        host.call(table.install, remembering(60.0))
        before = host.call(Nftables().standing)
        assert host.call(nftables.refused_count) == count
        try_to_connect(host, 443)
        host.call(table.refuse, [("192.0.2.1", 80)])
        for _ in range(2):
            try_to_connect(host, 80)
        assert host.call(nftables.refused_count) == count + 2
        assert host.call(Nftables().standing) == before, "what is counted is no change of the rules"
    if isinstance(table, OwnedTable):
        table.close()


def test_it_tells_for_how_long_a_destination_is_refused(host: Namespace) -> None:
    assert host.call(nftables.refused_for_s, ("192.0.2.1", 80)) is None
    host.call(Nftables().install, remembering(60.0))
    host.call(Nftables().refuse, [("192.0.2.1", 80), ("192.0.2.1", 443)])
    left_s = host.call(nftables.refused_for_s, ("192.0.2.1", 80))
    assert left_s is not None
    assert 40 < left_s <= 60
    wait_until(lambda: (host.call(nftables.refused_for_s, ("192.0.2.1", 80)) or 0) < left_s, "time passes")
    assert host.call(nftables.refused_for_s, ("192.0.2.1", 81)) is None
    host.call(Nftables().forget_refused)
    assert host.call(nftables.refused_for_s, ("192.0.2.1", 80)) is None


def test_the_kernel_forgets_by_itself_and_can_be_told_again(host: Namespace) -> None:
    host.call(Nftables().install, remembering(0.3))
    for _ in range(2):
        host.call(Nftables().refuse, [("192.0.2.1", 80)])
        assert refused(host) == {("192.0.2.1", 80)}
        wait_until(lambda: not refused(host), "the kernel forgets")


def test_making_the_rules_anew_forgets_all(host: Namespace) -> None:
    host.call(Nftables().install, remembering(60.0))
    expected = standing(host)
    host.call(Nftables().refuse, [("192.0.2.1", 80)])
    host.call(Nftables().install, remembering(60.0))
    assert standing(host) == expected


def test_a_full_set_takes_no_more(host: Namespace) -> None:
    host.call(Nftables().install, remembering(600.0))
    for start in range(0, MAX_REFUSED, 1024):
        host.call(Nftables().refuse, [("192.0.2.1", port) for port in range(start, start + 1024)])
    with pytest.raises(Tnat64Error, match=re.escape("Too many open files in system")):
        host.call(Nftables().refuse, [("192.0.2.2", 80)])


def test_where_there_is_no_set_nothing_can_be_refused(host: Namespace) -> None:
    host.call(Nftables().install, remembering(0.0))
    for change in (lambda: Nftables().refuse([("192.0.2.1", 80)]), Nftables().forget_refused):
        with pytest.raises(Tnat64Error):
            host.call(change)
