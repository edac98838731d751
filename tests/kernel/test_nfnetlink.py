"""Batches to nf_tables: all or nothing, and the kernel's answer."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.kernel.bare_host import run_python, standing
from tests.lab import Namespace
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.nfnetlink import (
    CREATE,
    NFT_MSG_DELTABLE,
    NFT_MSG_GETCHAIN,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWTABLE,
    NFT_TABLE_F_OWNER,
    Message,
    NfTables,
    attribute,
    nested,
    number,
    text,
)

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")


def new_table(name: str, flags: int = 0) -> Message:
    return Message(NFT_MSG_NEWTABLE, (text(1, name), number(2, flags)), CREATE)


def new_chain(table: str, name: str) -> Message:
    return Message(NFT_MSG_NEWCHAIN, (text(1, table), text(3, name)), CREATE)


def commit(host: Namespace, *messages: Message) -> None:
    with host.call(NfTables) as netlink:
        netlink.commit(messages)


def tables(host: Namespace) -> list[str]:
    return host.run(["nft", "list", "tables"]).stdout.splitlines()


def test_attributes_are_padded_to_four_bytes() -> None:
    assert attribute(1, b"abc") == struct.pack("=HH", 7, 1) + b"abc\0"
    assert text(2, "abc") == struct.pack("=HH", 8, 2) + b"abc\0"
    assert number(3, -5) == struct.pack("=HH", 8, 3) + b"\xff\xff\xff\xfb"
    assert nested(4, text(2, "abc")) == struct.pack("=HH", 12, 0x8004) + text(2, "abc")


def test_all_of_a_batch_is_done(host: Namespace) -> None:
    commit(host, new_table("one"), new_table("two"), new_chain("one", "c"))
    assert tables(host) == ["table ip one", "table ip two"]
    assert "chain c" in host.run(["nft", "list", "table", "ip", "one"]).stdout


def test_a_refused_batch_changes_nothing_and_tells_the_first_refusal(host: Namespace) -> None:
    commit(host, new_table("one"))
    before = standing(host)
    with pytest.raises(Tnat64Error, match="nf_tables refused: No such file or directory") as caught:
        commit(host, Message(NFT_MSG_DELTABLE, (text(1, "one"),)), new_table("two"), new_chain("three", "c"))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOENT
    assert standing(host) == before


def test_a_batch_of_thousands_of_messages_is_one(host: Namespace) -> None:
    chains = [new_chain("one", f"chain{number}") for number in range(3000)]
    commit(host, new_table("one"), *chains)
    assert host.run(["nft", "list", "table", "ip", "one"]).stdout.count("chain ") == 3000
    with pytest.raises(Tnat64Error, match="No such file"):
        commit(host, new_table("two"), *chains, new_chain("three", "c"))
    assert tables(host) == ["table ip one"]


def test_one_socket_makes_many_batches_also_after_a_refusal(host: Namespace) -> None:
    with host.call(NfTables) as netlink:
        for number_ in range(3):
            netlink.commit([new_table(f"t{number_}")])
            with pytest.raises(Tnat64Error):
                netlink.commit([new_chain("none", "c")] * 3)
            assert netlink.has_table(f"t{number_}")
            assert not netlink.has_table("none")


def test_one_thing_is_what_there_is_or_nothing(host: Namespace) -> None:
    commit(host, new_table("one"), new_chain("one", "c"), new_chain("one", "d"))
    with host.call(NfTables) as netlink:
        for name in ("c", "d"):
            found = netlink.get(NFT_MSG_GETCHAIN, text(1, "one"), text(3, name))
            assert found is not None
            assert text(3, name) in found
        assert netlink.get(NFT_MSG_GETCHAIN, text(1, "one"), text(3, "e")) is None
        with pytest.raises(Tnat64Error, match="nf_tables refused: Invalid argument"):
            netlink.get(NFT_MSG_GETCHAIN, text(1, "one"))


def test_a_table_with_an_owner_goes_when_the_socket_is_closed(host: Namespace) -> None:
    with host.call(NfTables) as netlink:
        netlink.commit([new_table("mine", NFT_TABLE_F_OWNER), new_table("everybodys")])
        assert tables(host) == ["table ip mine", "table ip everybodys"]
    assert tables(host) == ["table ip everybodys"]


def test_without_privileges_it_says_so(host: Namespace) -> None:
    code = """
from tnat64d.errors import PrivilegeError
from tnat64d.kernel.nfnetlink import NfTables
from tests.kernel.test_nfnetlink import new_table
with NfTables() as netlink:
    for call in (lambda: netlink.commit([new_table("one")] * 5), lambda: netlink.has_table("one")):
        try:
            call()
        except PrivilegeError as error:
            print(error)
"""
    said = run_python(host, code, wrapper=["setpriv", "--bounding-set=-net_admin", "--"])
    assert said == "nf_tables needs root (CAP_NET_ADMIN)\n" * 2
