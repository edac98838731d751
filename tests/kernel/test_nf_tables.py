"""Chains and tables of nf_tables, against nft(8)."""

from __future__ import annotations

import pytest

from tests.kernel.bare_host import run_python, standing
from tests.lab import Namespace
from tnat64d.kernel.nf_tables import delete_empty_ipv4_table, ipv4_chains

pytestmark = pytest.mark.netns("nft", "setpriv")


def test_every_chain_of_family_ip_is_found_and_no_other(host: Namespace) -> None:
    host.run(["nft", "add table ip one; add chain ip one a; add chain ip one b; add table ip two"])
    host.run(["nft", "add table inet other; add chain inet other c; add table ip6 six; add chain ip6 six d"])
    assert host.call(ipv4_chains) == {("one", "a"), ("one", "b")}


def test_where_nothing_was_made_nothing_is_found(host: Namespace) -> None:
    assert host.call(ipv4_chains) == frozenset()


def test_an_empty_table_is_deleted(host: Namespace) -> None:
    before = standing(host)
    host.run(["nft", "add table ip empty"])
    assert host.call(delete_empty_ipv4_table, "empty") is True
    assert standing(host) == before


@pytest.mark.parametrize(
    "content", ["add chain ip theirs c", "add set ip theirs s { type ipv4_addr; }", "add counter ip theirs n"]
)
def test_a_table_that_holds_anything_stays(host: Namespace, content: str) -> None:
    host.run(["nft", f"add table ip theirs; {content}"])
    before = standing(host)
    assert host.call(delete_empty_ipv4_table, "theirs") is False
    assert standing(host) == before


def test_a_table_of_another_family_stays(host: Namespace) -> None:
    host.run(["nft", "add table inet same; add table ip6 same"])
    before = standing(host)
    assert host.call(delete_empty_ipv4_table, "same") is False
    assert standing(host) == before


def test_without_privileges_nothing_is_found_and_nothing_deleted(host: Namespace) -> None:
    host.run(["nft", "add table ip empty; add table ip other; add chain ip other c"])
    before = standing(host)
    code = "from tnat64d.kernel.nf_tables import *\nprint(sorted(ipv4_chains()), delete_empty_ipv4_table('empty'))"
    assert run_python(host, code, wrapper=["setpriv", "--bounding-set=-net_admin", "--"]) == "[] False\n"
    assert standing(host) == before
