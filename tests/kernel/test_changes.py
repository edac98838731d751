"""What is a reason to look, announced by a real kernel."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import Namespace
from tnat64d.kernel.changes import ChangeMonitor, legacy_shapes

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")

TIMEOUT_S = 5
AS_NOBODY = """
import asyncio, os
from tnat64d.kernel.changes import ChangeMonitor, legacy_shapes
os.setgroups([]); os.setgid(65534); os.setuid(65534)
loop = asyncio.new_event_loop()
ChangeMonitor(loop, print, packet_rules=False).close()
assert legacy_shapes() == {}
try:
    ChangeMonitor(loop, print, packet_rules=True)
except PermissionError:
    print("refused")
loop.close()
"""


def watch(host: Namespace, change: Callable[[], object], *, packet_rules: bool = True) -> bool:
    """Whether `change` is noticed."""

    async def main() -> bool:
        noticed = asyncio.Event()
        monitor = ChangeMonitor(asyncio.get_running_loop(), noticed.set, packet_rules=packet_rules)
        try:
            await asyncio.to_thread(change)
            async with asyncio.timeout(TIMEOUT_S):
                await noticed.wait()
        finally:
            monitor.close()
        return True

    return host.call(lambda: asyncio.run(main()))


@pytest.mark.parametrize(
    "command",
    [
        "ip rule del pref 32766",
        "ip addr del 192.0.2.1/32 dev lo",
        "ip route flush table 77",
        "ip link set lo down",
        "nft flush ruleset",
        "iptables-nft -t nat -F",
        "iptables-legacy -t nat -F",
        "iptables-legacy -t nat -D OUTPUT -j ACCEPT",
    ],
)
def test_a_change_is_noticed(host: Namespace, command: str) -> None:
    for before in (
        "ip addr add 192.0.2.1/32 dev lo",
        "ip route add default dev lo table 77",
        "nft add table ip theirs",
        "iptables-nft -t nat -A OUTPUT -j ACCEPT",
        "iptables-legacy -t nat -A OUTPUT -j ACCEPT",
    ):
        host.run(before.split())
    assert watch(host, lambda: host.run(command.split()))


def test_a_control_group_that_is_made_anew_or_goes_or_comes_is_noticed(host: Namespace, cgroup: Path) -> None:
    async def noticed(change: Callable[[], object]) -> None:
        noticed = asyncio.Event()
        monitor = ChangeMonitor(asyncio.get_running_loop(), noticed.set, packet_rules=False)
        monitor.watch_groups((f"{cgroup.parent.name}/{cgroup.name}", "no/such.slice"))
        change()
        async with asyncio.timeout(TIMEOUT_S):
            await noticed.wait()
        monitor.close()

    def remake() -> None:
        cgroup.rmdir()
        cgroup.mkdir()

    for change in (remake, cgroup.rmdir, cgroup.mkdir):
        host.call(lambda change=change: asyncio.run(noticed(change)))


def test_announcements_that_were_lost_are_a_reason_to_look(host: Namespace) -> None:
    flood = "\n".join(f"route add 198.18.{n // 256}.{n % 256} dev lo" for n in range(4096))

    async def main() -> None:
        noticed = asyncio.Event()
        monitor = ChangeMonitor(asyncio.get_running_loop(), noticed.set, packet_rules=False)
        host.run(["ip", "-batch", "-"], input=flood)  # the loop cannot read meanwhile
        async with asyncio.timeout(TIMEOUT_S):
            await noticed.wait()
        monitor.close()

    host.call(lambda: asyncio.run(main()))


def test_without_privileges_only_routing_can_be_watched(host: Namespace) -> None:
    done = subprocess.run([sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


def test_the_shape_of_a_table_tells_rules_that_came_and_went(host: Namespace) -> None:
    host.run(["iptables-legacy", "-t", "nat", "-S"])
    empty = host.call(legacy_shapes)["nat"]
    assert len(empty) == 84
    host.run(["iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT"])
    assert host.call(legacy_shapes)["nat"] != empty
    host.run(["iptables-legacy", "-t", "nat", "-F"])
    assert host.call(legacy_shapes)["nat"] == empty
