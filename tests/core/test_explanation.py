"""The chain of reasons as people and programs read it."""

from __future__ import annotations

from tests.core.test_reasons import explained


def test_the_text_has_the_verdict_first_and_a_line_for_each_step() -> None:
    lines = explained().as_text().splitlines()
    assert (
        lines[0] == "198.51.100.10:443: NAT64 at 2001:db8:64::c633:640a, because IPv4 is unreachable (ENETUNREACH)"
    )
    assert lines[1].startswith(
        "  route         default dev tnat64d table 6464: that of tnat64d, there is no other  [ip"
    )
    assert len(lines) == 1 + len(explained().steps)
    assert explained(port=0).as_text().startswith("198.51.100.10: NAT64 at")


def test_the_object_for_programs_has_an_address_only_where_nat64_is_the_way() -> None:
    said = explained().as_json()
    assert (said["prefix"], said["nat64_address"]) == ("2001:db8:64::/96", "2001:db8:64::c633:640a")
    assert (said["address"], said["port"], said["way"]) == ("198.51.100.10", 443, "nat64")
    assert said["steps"][0].keys() == {"name", "fact", "source"}
    said = explained(standing=(), port=0).as_json()
    assert (said["prefix"], said["nat64_address"], said["port"]) == (None, None, None)
