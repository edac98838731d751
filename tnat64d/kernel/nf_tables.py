"""Tables and chains of nf_tables, by netlink.

Owns what iptables-nft does not tell and cannot do: which base chains exist, and taking away an empty table.
Refuses to own rules.
"""

from __future__ import annotations

import socket
import struct

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST, _NLM_F_ACK = 0x1, 0x4
_NLM_F_NONREC = 0x100
"""linux/netlink.h: do not delete recursively; the kernel refuses if the table still holds anything."""

_NFNL_MSG_BATCH_BEGIN, _NFNL_MSG_BATCH_END = 0x10, 0x11
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_DELTABLE = 2
_NFTA_TABLE_NAME = 1
"""linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h."""


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
    table = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(table), _NFTA_TABLE_NAME) + table.ljust(len(table) + 3 & ~3, b"\0")
    batch = (
        _message(_NFNL_MSG_BATCH_BEGIN, 0, _NFNL_SUBSYS_NFTABLES),
        _message(_NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_DELTABLE, _NLM_F_ACK | _NLM_F_NONREC, 0, attribute),
        _message(_NFNL_MSG_BATCH_END, 0, _NFNL_SUBSYS_NFTABLES),
    )
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.send(b"".join(batch))
            # The first answer is an NLMSG_ERROR in any case, with 0 where all went well (netlink(7)).
            (error,) = struct.unpack_from("=16xi", netlink.recv(1 << 16))
            return bool(error == 0)
    except OSError:
        return False


def _message(kind: int, flags: int, resource: int, attributes: bytes = b"") -> bytes:
    """A struct nlmsghdr, a struct nfgenmsg, and `attributes`."""
    length = 20 + len(attributes)
    header = struct.pack("=IHHII", length, kind, _NLM_F_REQUEST | flags, 0, 0)
    return header + struct.pack("!BBH", socket.AF_INET, 0, resource) + attributes
