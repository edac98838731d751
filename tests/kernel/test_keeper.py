"""The lock of who keeps rules: one in each network namespace, for as long as its process lives."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.kernel.bare_host import CONFIG, BareHost, own_traces
from tests.lab import Namespace
from tnat64d.core.settings import Settings
from tnat64d.errors import Tnat64Error
from tnat64d.kernel import keeper
from tnat64d.kernel.rules import HeldRules, StaticRules

pytestmark = pytest.mark.netns("nft", "unshare")

KEEP = """
import sys
from tests.kernel.bare_host import CONFIG
from tnat64d.core.settings import Settings
from tnat64d.kernel.rules import HeldRules
rules = HeldRules(Settings(), "t.toml", in_daemon=False)
rules.begin()
rules.install(CONFIG, Settings())
print("kept", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def kept(host: Namespace) -> Iterator[None]:
    """Rules that a process keeps, which is killed in the end."""
    command = ["nsenter", f"--net={host.path}", "--", sys.executable, "-c", KEEP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"kept\n"
        yield
        process.kill()


@pytest.fixture
def other() -> Iterator[Namespace]:
    """Another host."""
    with BareHost() as lab:
        yield lab.host


def test_it_ends_with_its_process_however_that_ends(host: Namespace) -> None:
    with kept(host):
        assert host.call(keeper.is_kept)
        with pytest.raises(Tnat64Error, match="another tnat64d setup --watch"):
            host.call(keeper.Lock)
    assert not host.call(keeper.is_kept)


def test_each_network_namespace_has_its_own(host: Namespace, other: Namespace) -> None:
    lock = host.call(keeper.Lock)
    assert host.call(keeper.is_kept)
    assert not other.call(keeper.is_kept)
    other.call(keeper.Lock).close()
    lock.close()
    assert not host.call(keeper.is_kept)


def test_while_rules_are_kept_nobody_else_of_us_changes_them(host: Namespace) -> None:
    static = host.call(StaticRules, Settings(), "t.toml")
    held = HeldRules(Settings(), "t.toml")
    with kept(host):
        stood = own_traces(host)
        assert stood
        for change in (lambda: static.install(CONFIG), static.remove, held.begin):
            with pytest.raises(Tnat64Error, match="setup --watch keeps the rules here"):
                host.call(change)
        assert own_traces(host) == stood
    host.call(static.remove)
    assert own_traces(host) == []


def test_without_a_place_for_the_lock_rules_can_be_kept_all_the_same(host: Namespace) -> None:
    code = "from tnat64d.kernel import keeper; keeper.Lock().close(); print(keeper.is_kept())"
    read_only = ["unshare", "-m", "sh", "-ec", 'mount -t tmpfs -o ro none /run; exec "$@"', "sh"]
    assert host.run([*read_only, sys.executable, "-c", code]).stdout == "False\n"
