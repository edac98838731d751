"""Tables and chains of nf_tables, whoever made them.

Owns what iptables-nft does not tell and cannot do: which base chains exist, and taking away an empty table.
Refuses to own rules.
"""

from __future__ import annotations

import socket

from tnat64d.errors import Tnat64Error
from tnat64d.kernel.nfnetlink import NFT_MSG_DELTABLE, NONRECURSIVE, Message, NfTables, text


def ipv4_chains() -> frozenset[tuple[str, str]]:
    """(table, chain) of every chain of family ip; empty where the kernel has no nf_tables."""
    from pyroute2.netlink.exceptions import NetlinkError  # takes 0.3 s to import
    from pyroute2.nftables.main import NFTables

    try:
        with NFTables(nfgen_family=socket.AF_INET) as nft:
            return frozenset(
                (chain.get_attr("NFTA_CHAIN_TABLE"), chain.get_attr("NFTA_CHAIN_NAME"))
                for chain in nft.get_chains()
            )
    except (NetlinkError, OSError):
        return frozenset()


def delete_empty_ipv4_table(name: str) -> bool:
    """Delete the table `name` of family ip; False, and nothing done, if it is not there or not empty.

    Not by pyroute2 (0.9.7), which waits for ever where the kernel refuses a batch as a whole.
    """
    try:
        with NfTables() as netlink:
            netlink.commit([Message(NFT_MSG_DELTABLE, (text(1, name),), NONRECURSIVE)])
    except (Tnat64Error, OSError):
        return False
    return True
