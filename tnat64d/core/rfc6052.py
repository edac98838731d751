"""IPv4 addresses embedded in IPv6 addresses, the way a NAT64 translates them (RFC 6052).

Owns the address format and the rule which IPv4 addresses the well-known prefix may carry. Does not own which
prefix a destination gets (`core.config`) nor how a network announces its prefix.

RFC 6052 2.2, one character an octet: P prefix, 4 IPv4 address, u reserved and zero, . suffix (sent as zero,
ignored when received):

    /32  PPPP 4444 u... ....      /56  PPPP PPP4 u444 ....
    /40  PPPP P444 u4.. ....      /64  PPPP PPPP u444 4...
    /48  PPPP PP44 u44. ....      /96  PPPP PPPP uPPP 4444
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

LENGTHS = (32, 40, 48, 56, 64, 96)

_U_OCTET = 8
_IPV4_OCTETS = {length: tuple(o for o in range(length // 8, 16) if o != _U_OCTET)[:4] for length in LENGTHS}

# RFC 5735 section 3, which RFC 6052 3.1 refers to, and the shared space of RFC 6598. Not
# IPv4Address.is_global: its answer for some of these changed between patch releases of Python.
NON_GLOBAL = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)


@dataclass(frozen=True, slots=True, init=False)
class Prefix:
    """An IPv6 prefix under which a NAT64 answers for all of IPv4."""

    network: IPv6Network

    def __init__(self, source: str | IPv6Network, *, strict: bool = True) -> None:
        """`source`: a network, or text such as "64:ff9b::/96"; text without a length means /96.

        `strict=False` is for prefixes that are in use already: bits behind the length are cleared and bits 64
        to 71 of a /96 may be set, which RFC 6052 2.2 forbids and translators work with all the same.
        Raises ValueError with a sentence that says what would be right.
        """
        network = _parse(source, strict) if isinstance(source, str) else source
        _require_legal_length(str(network.prefixlen))
        if strict and network.network_address.packed[_U_OCTET] != 0:
            octets = bytearray(network.network_address.packed)
            octets[_U_OCTET] = 0
            raise ValueError(
                f"bits 64 to 71 of {network} are set, but RFC 6052 2.2 reserves them:"
                f" use a prefix with zeros there, such as {IPv6Address(bytes(octets))}/96"
            )
        object.__setattr__(self, "network", network)

    def __str__(self) -> str:
        return str(self.network)

    @property
    def is_well_known(self) -> bool:
        """Whether this is 64:ff9b::/96 (RFC 6052 2.1)."""
        return self == WELL_KNOWN

    def carries(self, address: IPv4Address) -> bool:
        """Whether `address` may be embedded: the well-known prefix carries no non-global address
        (RFC 6052 3.1), a network's own prefix carries all."""
        return not (self.is_well_known and any(address in network for network in NON_GLOBAL))

    def embed(self, address: IPv4Address) -> IPv6Address:
        """The IPv6 address under which the NAT64 reaches `address` (RFC 6052 2.2)."""
        octets = bytearray(self.network.network_address.packed)
        for position, octet in zip(_IPV4_OCTETS[self.network.prefixlen], address.packed, strict=True):
            octets[position] = octet
        return IPv6Address(bytes(octets))

    def extract(self, address: IPv6Address) -> IPv4Address | None:
        """The IPv4 address embedded in `address` (RFC 6052 2.3), None where it is not of this prefix."""
        if address not in self.network:
            return None
        octets = address.packed
        if self.network.prefixlen < 96 and octets[_U_OCTET] != 0:
            return None
        return IPv4Address(bytes(octets[position] for position in _IPV4_OCTETS[self.network.prefixlen]))


def _parse(text: str, strict: bool) -> IPv6Network:
    address_text, slash, length_text = text.partition("/")
    length = _require_legal_length(length_text) if slash else 96
    try:
        address = IPv6Address(address_text)
    except ValueError:
        address = None
    if address is None or address.scope_id is not None:
        raise ValueError(f"{text[:50]!r} is not an IPv6 prefix: write one such as 64:ff9b::/96")
    network = IPv6Network((address, length), strict=False)
    if strict and network.network_address != address:
        raise ValueError(f"{address} has bits set behind its first {length}: write {network}")
    return network


def _require_legal_length(text: str) -> int:
    for length in LENGTHS:
        if text == str(length):
            return length
    *shorter, longest = (f"/{length}" for length in LENGTHS)
    raise ValueError(
        f"{'/' + text[:8]!r} is no length of a NAT64 prefix: use {', '.join(shorter)} or {longest} (RFC 6052 2.2)"
    )


WELL_KNOWN = Prefix("64:ff9b::/96")
