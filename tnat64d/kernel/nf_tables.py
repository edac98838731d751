"""Tables and chains of nf_tables, whoever made them.

Owns what iptables-nft does not tell and cannot do: which base chains exist, and taking away an empty table.
Refuses to own rules.
"""

from __future__ import annotations

from tnat64d.errors import Tnat64Error
from tnat64d.kernel.nfnetlink import NFT_MSG_DELTABLE, NFT_MSG_GETCHAIN, NONRECURSIVE, Message, NfTables, text
from tnat64d.kernel.rtnetlink import attributes

_CHAIN_TABLE, _CHAIN_NAME = 1, 3
"""NFTA_CHAIN_* of linux/netfilter/nf_tables.h."""


def ipv4_chains() -> frozenset[tuple[str, str]]:
    """(table, chain) of every chain of family ip; empty where the kernel has no nf_tables."""
    try:
        with NfTables() as netlink:
            chains = [dict(attributes(body, 0)) for body in netlink.dump(NFT_MSG_GETCHAIN)]
    except (Tnat64Error, OSError):
        return frozenset()
    return frozenset((_string(chain[_CHAIN_TABLE]), _string(chain[_CHAIN_NAME])) for chain in chains)


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def delete_empty_ipv4_table(name: str) -> bool:
    """Delete the table `name` of family ip; False, and nothing done, if it is not there or not empty."""
    try:
        with NfTables() as netlink:
            netlink.commit([Message(NFT_MSG_DELTABLE, (text(1, name),), NONRECURSIVE)])
    except (Tnat64Error, OSError):
        return False
    return True
