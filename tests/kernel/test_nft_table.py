"""What the table of nf_tables is made of: what netlink makes is what its text says."""

from __future__ import annotations

import re
from ipaddress import IPv4Network

import pytest

from tests.kernel.bare_host import CONFIG, HONEST, PORT, honest_ruleset, listed, tables
from tests.lab import Namespace
from tnat64d.core.config import Network
from tnat64d.core.description import describe
from tnat64d.core.ruleset import OWN_DEVICE, Ruleset
from tnat64d.core.scope import Place, Program, Scope
from tnat64d.core.settings import Mode, Rules
from tnat64d.kernel.nft_table import render
from tnat64d.kernel.nftables import Nftables

pytestmark = pytest.mark.netns("nft")

NETWORK = Network.of(IPv4Network("203.0.113.0/24"))
SCOPES = {
    "everything": Scope(),
    "users": Scope(programs=(Program(uid=1000), Program(uid=0)), not_programs=(Program(uid=65534),)),
    "groups": Scope(programs=(Program(gid=1000),), not_programs=(Program(gid=100),)),
    "places": Scope(
        places=(Place(network=NETWORK, ports=(443, 443)), Place(ports=(8000, 8100))),
        not_places=(Place(network=NETWORK), Place(ports=(22, 22))),
    ),
    "gateway": Scope(gateway=("docker0", "br-*"), places=(Place(ports=(80, 80)),)),
}


def scoped(mode: Mode, scope: Scope, device: str = "lo") -> Ruleset:
    return describe(CONFIG, Rules(mode=mode), scope, PORT, device)


def assert_netlink_makes_what_the_text_says(host: Namespace, wanted: Ruleset) -> None:
    host.run(["nft", "-f", "-"], input=render(wanted))
    expected = listed(host)
    host.run(["nft", "delete", "table", "ip", "tnat64d"])
    host.call(Nftables().install, wanted)
    assert listed(host) == expected
    host.call(Nftables().remove)
    assert tables(host) == []


@pytest.mark.parametrize("name", SCOPES)
def test_what_netlink_makes_is_what_the_text_makes(host: Namespace, mode: Mode, name: str) -> None:
    assert_netlink_makes_what_the_text_says(host, scoped(mode, SCOPES[name]))


@pytest.mark.parametrize("honest", [(), HONEST], ids=["everywhere", "somewhere"])
def test_held_packets_go_to_the_queues_that_the_text_says(
    host: Namespace, mode: Mode, honest: tuple[Place, ...]
) -> None:
    """Compared by eye where nft(8) cannot load the text: this kernel may have the queues of xtables alone."""
    wanted = honest_ruleset(mode, honest)
    host.call(Nftables().install, wanted)
    queue = re.compile(r"queue (num \d+ bypass|flags bypass to \d+)")
    numbers = [re.findall(r"\d+", words)[0] for words in queue.findall(listed(host))]
    assert numbers == [re.findall(r"\d+", words)[0] for words in queue.findall(render(wanted))]
    assert len(numbers) == 16, "the host's own programs, and those behind the gateway"
    assert listed(host).count("tcp sport & 14 == ") == len(numbers)
    assert listed(host).count("jump hold-output-rules") == (len(honest) or 1)
    host.call(Nftables().remove)
    assert tables(host) == []


def test_on_a_device_of_its_own_there_is_no_guard(host: Namespace) -> None:
    wanted = scoped(Mode.REDIRECT, Scope(), OWN_DEVICE)
    assert_netlink_makes_what_the_text_says(host, wanted)
    assert "guard" not in render(wanted)


def test_the_same_text_is_listed_as_it_was_written(host: Namespace) -> None:
    """Every rule of ours, so that `setup --dry-run` and `nft list` can be compared by eye."""
    wanted = scoped(Mode.REDIRECT, SCOPES["places"])
    host.call(Nftables().install, wanted)
    shown = listed(host).splitlines()
    for chain in wanted.chains:
        assert f"\tchain {chain.hook.name.lower().replace('_', '-')} {{" in shown
    assert listed(host).count("return") == render(wanted).count("return")
