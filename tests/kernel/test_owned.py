"""A ruleset that is held: device, table, address and route come together and go together."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator

import pytest

from tests.kernel.bare_host import CONFIG, EXEMPT, PORT, ip, own_traces, standing
from tests.kernel.test_installation import error_of_connect
from tests.lab import Namespace
from tnat64d.core.description import describe
from tnat64d.core.ruleset import OWN_DEVICE, Ruleset
from tnat64d.core.scope import Scope
from tnat64d.core.settings import Rules
from tnat64d.errors import Tnat64Error
from tnat64d.kernel import owned as owned_rules
from tnat64d.kernel.installation import Installation
from tnat64d.kernel.nftables import Nftables
from tnat64d.kernel.owned import OwnedInstallation, is_held, stays_held

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")

SERVER = "198.51.100.10"


def ruleset(**rules: object) -> Ruleset:
    return describe(CONFIG, Rules(**rules), Scope(), PORT, OWN_DEVICE)  # type: ignore[arg-type]


def make(host: Namespace) -> OwnedInstallation:
    return host.call(OwnedInstallation, Installation(Nftables()))


@pytest.fixture
def owned(host: Namespace) -> Iterator[OwnedInstallation]:
    """Installed; a thread answers for the device."""
    before = standing(host)
    installation = make(host)
    host.call(installation.install, ruleset())
    ended = threading.Event()

    def answer() -> None:
        while not ended.is_set():
            installation.answer()
            time.sleep(0.001)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield installation
    finally:
        ended.set()
        thread.join()
        host.call(installation.remove)
    assert standing(host) == before


def test_what_is_captured_is_redirected_and_what_is_not_is_unreachable(
    host: Namespace, owned: OwnedInstallation
) -> None:
    assert error_of_connect(host, SERVER) == errno.ECONNREFUSED  # nobody listens
    assert error_of_connect(host, EXEMPT) == errno.ENETUNREACH
    assert error_of_connect(host, SERVER, mark=0x6464) == errno.ENETUNREACH


def test_installing_again_and_a_change_leave_one_ruleset(host: Namespace, owned: OwnedInstallation) -> None:
    traces = own_traces(host)
    host.call(owned.install, ruleset())
    assert own_traces(host) == traces
    host.call(owned.install, ruleset(table=77))
    assert own_traces(host) == [line.replace("6464 proto", "77 proto") for line in traces]
    host.call(owned.install, ruleset())
    assert own_traces(host) == traces


def test_it_goes_with_its_last_descriptor(host: Namespace) -> None:
    before = standing(host)
    installation = make(host)
    host.call(installation.install, ruleset())
    stands = standing(host)
    copies = [os.dup(fd) for fd in installation.shared]
    for fd in installation.shared:
        os.close(fd)
    assert standing(host) == stands
    for fd in copies:
        os.close(fd)
    after = standing(host)
    assert [line for line in own_traces(host) if "proto 64" in line] == own_traces(host)
    assert {key: text for key, text in after.items() if key != "ip rule"} == {
        key: text for key, text in before.items() if key != "ip rule"
    }
    installation._table._netlink._socket.detach()  # its descriptor is closed already


def test_removing_takes_it_away_although_another_process_has_it_open(host: Namespace) -> None:
    before = standing(host)
    installation = make(host)
    host.call(installation.install, ruleset())
    copies = [os.dup(fd) for fd in installation.shared]
    host.call(installation.remove)
    assert standing(host) == before
    for fd in copies:
        os.close(fd)


def test_only_one_can_be_held_and_that_is_known(host: Namespace) -> None:
    assert not host.call(is_held)
    installation = make(host)
    host.call(installation.install, ruleset())
    before = standing(host)
    assert host.call(is_held)
    with pytest.raises(Tnat64Error, match="another tnat64d runs here"):
        make(host)
    assert standing(host) == before
    host.call(installation.remove)
    assert not host.call(is_held)


@pytest.mark.parametrize("last", ["device", "table"])
def test_it_stays_held_until_device_and_table_are_gone(
    host: Namespace, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    installation = make(host)
    host.call(installation.install, ruleset())
    close_device, close_table = installation.device.close, installation._table.close
    close_first, close_last = (close_table, close_device) if last == "device" else (close_device, close_table)
    monkeypatch.setattr(owned_rules, "LETTING_GO_S", 0.1)
    assert host.call(stays_held)
    monkeypatch.setattr(owned_rules, "LETTING_GO_S", 10.0)
    letting_go = (threading.Timer(0.1, close_first), threading.Timer(0.4, close_last))
    for each in letting_go:
        each.start()
    assert not host.call(stays_held)
    assert not host.call(is_held)
    host.call(Installation(Nftables()).remove)  # a table with an owner could not be
    for each in letting_go:
        each.join()


def test_a_change_that_fails_half_way_puts_back_what_stood(host: Namespace, owned: OwnedInstallation) -> None:
    ip(host, "route add default dev lo table 77")
    stands = standing(host)
    with pytest.raises(Tnat64Error, match="somebody else"):
        host.call(owned.install, ruleset(table=77))
    assert standing(host) == stands
    ip(host, "route del default dev lo table 77")


def test_a_first_ruleset_that_fails_half_way_leaves_nothing(host: Namespace) -> None:
    ip(host, "route add default dev lo table 77")
    before = standing(host)
    installation = make(host)
    with pytest.raises(Tnat64Error, match="somebody else"):
        host.call(installation.install, ruleset(table=77))
    assert standing(host) == before
