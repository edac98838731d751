"""ICMP errors; that the kernel believes them is shown in test_tun.py and test_refusals.py."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest

from tnat64d.kernel.icmp import checksum, destination_unreachable

SOURCE, TARGET = IPv4Address("192.0.0.1").packed, IPv4Address("192.0.0.2").packed


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xFFFF),
        (bytes.fromhex("0001f203f4f5f6f7"), 0x220D),  # RFC 1071 section 3
        (b"\xff", 0x00FF),
        (b"\xff\xff" * 70_000, 0x0000),
    ],
)
def test_the_checksum_is_that_of_rfc_1071(data: bytes, expected: int) -> None:
    assert checksum(data) == expected


@pytest.mark.parametrize("code", [0, 1, 13])
def test_an_error_quotes_the_packet_and_both_its_checksums_are_right(code: int) -> None:
    quote = bytes(range(28))
    packet = destination_unreachable(code, SOURCE, TARGET, quote)
    assert struct.unpack_from("!H", packet, 2) == (len(packet),)
    assert (packet[9], packet[12:16], packet[16:20]) == (1, SOURCE, TARGET)
    assert (packet[20], packet[21], packet[28:]) == (3, code, quote)
    assert checksum(packet[:20]) == checksum(packet[20:]) == 0


@pytest.mark.parametrize("data", [b"", b"\x01", bytes(range(20)), b"\xff" * 61])
def test_data_with_its_checksum_sums_up_to_nothing(data: bytes) -> None:
    even = data + b"\0" * (len(data) % 2)
    assert checksum(even + struct.pack("!H", checksum(data))) == 0
