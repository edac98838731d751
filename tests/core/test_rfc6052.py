"""RFC 6052: the table of section 2.4, the round trip over all lengths, and what a prefix must not be."""

import copy
import pickle
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnat64d.core.rfc6052 import LENGTHS, WELL_KNOWN, Prefix

OWN = Prefix("2001:db8:64::/96")


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    length = draw(st.sampled_from(LENGTHS))
    bits = draw(st.integers(0, 2**length - 1)) << (128 - length)
    if length == 96:
        bits &= ~(0xFF << 56)
    return Prefix(IPv6Network((bits, length)))


@pytest.mark.parametrize(
    ("prefix", "embedded"),
    [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
    ],
)
def test_the_addresses_are_those_of_the_table_in_section_2_4(prefix: str, embedded: str) -> None:
    address = IPv4Address("192.0.2.33")
    assert Prefix(prefix).embed(address) == IPv6Address(embedded)
    assert Prefix(prefix).extract(IPv6Address(embedded)) == address


@given(prefixes(), st.ip_addresses(v=4))
def test_what_is_embedded_can_be_extracted_for_every_length(prefix: Prefix, address: IPv4Address) -> None:
    embedded = prefix.embed(address)
    assert embedded in prefix.network
    assert embedded.packed[8] == 0
    assert prefix.extract(embedded) == address


@given(prefixes(), st.ip_addresses(v=4), st.integers(1, 255))
def test_an_address_with_a_set_u_octet_holds_nothing(prefix: Prefix, address: IPv4Address, u: int) -> None:
    embedded = IPv6Address(int(prefix.embed(address)) | u << 56)
    assert prefix.extract(embedded) is None


@given(prefixes().filter(lambda prefix: prefix.network.prefixlen <= 64), st.ip_addresses(v=4))
def test_a_suffix_is_ignored_when_extracting(prefix: Prefix, address: IPv4Address) -> None:
    assert prefix.extract(IPv6Address(int(prefix.embed(address)) | 0xFFFFFF)) == address


def test_an_address_of_another_prefix_holds_nothing() -> None:
    assert OWN.extract(IPv6Address("2001:db8:65::c000:221")) is None
    assert OWN.extract(IPv6Address("2001:db8:64::1:c000:221")) is None


def test_a_prefix_is_the_same_from_text_and_from_a_network() -> None:
    assert Prefix("2001:db8:64::/96") == Prefix(IPv6Network("2001:db8:64::/96")) == Prefix("2001:db8:64::")
    assert str(OWN) == "2001:db8:64::/96"
    assert len({OWN, Prefix("2001:db8:64::")}) == 1


def test_a_prefix_survives_copying_and_pickling() -> None:
    assert pickle.loads(pickle.dumps(OWN)) == copy.deepcopy(OWN) == OWN


def test_only_64_ff9b_96_is_well_known() -> None:
    assert WELL_KNOWN.is_well_known
    assert Prefix("64:ff9b::").is_well_known
    assert not Prefix("64:ff9b:1::/48").is_well_known
    assert not OWN.is_well_known


# RFC 5735 section 3 and RFC 6598.
@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32"),
    ],
)
def test_the_well_known_prefix_carries_nothing_of_a_non_global_network(text: str) -> None:
    network = IPv4Network(text)
    assert not WELL_KNOWN.carries(network[0])
    assert not WELL_KNOWN.carries(network[-1])
    assert OWN.carries(network[0])
    assert Prefix("64:ff9b:1::/96").carries(network[-1])


@pytest.mark.parametrize(
    "address",
    [
        *("1.0.0.0", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255"),
        *("128.0.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.167.255.255"),
        *("192.169.0.0", "198.17.255.255", "198.20.0.0", "203.0.114.0", "223.255.255.255"),
    ],
)
def test_the_well_known_prefix_carries_what_lies_beside_the_non_global_networks(address: str) -> None:
    assert IPv4Address(address).is_global
    assert WELL_KNOWN.carries(IPv4Address(address))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64:ff9b::1/96", "64:ff9b::1 has bits set behind its first 96: write 64:ff9b::/96"),
        ("2001:db8:1::/32", "2001:db8:1:: has bits set behind its first 32: write 2001:db8::/32"),
        (
            "64:ff9b::/95",
            "'/95' is no length of a NAT64 prefix: use /32, /40, /48, /56, /64 or /96 (RFC 6052 2.2)",
        ),
        ("64:ff9b::/", "'/' is no length of a NAT64 prefix:"),
        ("64:ff9b::/128", "'/128' is no length of a NAT64 prefix:"),
        ("64:ff9b::/096", "'/096' is no length of a NAT64 prefix:"),
        ("64:ff9b::/\N{DEVANAGARI DIGIT NINE}6", "is no length of a NAT64 prefix:"),
        (
            "2001:db8:0:0:ff00::/96",
            "bits 64 to 71 of 2001:db8:0:0:ff00::/96 are set, but RFC 6052 2.2 reserves them: "
            "use a prefix with zeros there, such as 2001:db8::/96",
        ),
        ("10.0.0.0", "'10.0.0.0' is not an IPv6 prefix: write one such as 64:ff9b::/96"),
        ("fe80::%eth0", "'fe80::%eth0' is not an IPv6 prefix:"),
        ("", "'' is not an IPv6 prefix:"),
        ("\udcff\n::", r"'\udcff\n::' is not an IPv6 prefix:"),
    ],
)
def test_a_bad_prefix_is_refused_with_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"prefix|bits") as caught:
        Prefix(text)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_network_of_an_illegal_length_is_refused() -> None:
    with pytest.raises(ValueError, match="'/44' is no length"):
        Prefix(IPv6Network("2001:db8::/44"))


def test_a_prefix_in_use_is_taken_as_it_is_when_not_strict() -> None:
    prefix = Prefix("2001:db8:0:0:ccc:616::1", strict=False)
    assert str(prefix) == "2001:db8::ccc:616:0:0/96"
    assert prefix.embed(IPv4Address("192.0.2.33")) == IPv6Address("2001:db8:0:0:ccc:616:c000:221")
    assert prefix.extract(IPv6Address("2001:db8:0:0:ccc:616:c000:221")) == IPv4Address("192.0.2.33")
