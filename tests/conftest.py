"""What every test can use: labs, compiled clients, both event loops; and no silent skips in CI.

Owns the markers. `alone`: no other test runs beside it. `netns`: a test that uses a lab has it by itself;
`@pytest.mark.netns("nft", "wget")` adds programs that the test needs beside those of its labs. Where one is
missing the test is skipped with the reason, and with `CI=true` in the environment or `--no-skips` every skip, of
any test, is a failure.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import pytest
import uvloop

from tests.lab import IdealNat64Lab, Nat64Lab
from tests.lab.clients import Clients, compiled_clients
from tests.lab.needs import CLIENT_PROGRAMS, NAT64_PROGRAMS, what_is_missing
from tests.proxy.reactors import new_reactor
from tnat64d.proxy.loop import ReactorLoop

# fixture: the programs it needs
LAB_FIXTURES: Mapping[str, tuple[str, ...]] = {
    "nat64_lab": NAT64_PROGRAMS,
    "ideal_lab": (),
    "lab": (),
    "clients": CLIENT_PROGRAMS,
}


@pytest.fixture
def nat64_lab() -> Iterator[Nat64Lab]:
    """An IPv6-only client behind a real NAT64, the servers of `tests.lab.servers` running. Takes 0.1 s."""
    with Nat64Lab() as lab:
        lab.start_servers()
        yield lab


@pytest.fixture
def ideal_lab() -> Iterator[IdealNat64Lab]:
    """An IPv6-only client and a server that owns the prefix, the servers of `tests.lab.servers` running."""
    with IdealNat64Lab() as lab:
        lab.start_servers()
        yield lab


@pytest.fixture(scope="module")
def lab() -> Iterator[IdealNat64Lab]:
    """An `ideal_lab` for a whole module, whose tests leave it as it was."""
    with IdealNat64Lab() as made:
        made.start_servers()
        yield made


@pytest.fixture(scope="session")
def clients() -> Iterator[Clients]:
    """The IPv4-only programs of `tests.lab.clients`, compiled."""
    with compiled_clients() as compiled:
        yield compiled


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every async test runs on both loops that the daemon can be set to."""
    return {"asyncio": lambda: ReactorLoop(new_reactor()), "uvloop": uvloop.new_event_loop}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --no-skips."""
    parser.addoption(
        "--no-skips",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="a skipped test is a failed test (the default where CI=true)",
    )


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a lab, with the programs which that lab needs; order files, those that take longest first.

    So none runs alone at the end. How long is told by what is known before: time limits, and how many tests.
    """
    for item in items:
        for fixture, programs in LAB_FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.netns(*programs))
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (_time_limit_s(item), counts[item.path], item.path), reverse=True)


def _time_limit_s(item: pytest.Item) -> float:
    usual_s, marker = float(item.config.getini("timeout")), item.get_closest_marker("timeout")
    return max(usual_s, float(marker.args[0])) if marker else usual_s


@pytest.hookimpl(tryfirst=True)  # before fixtures are made
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a `netns` test where it cannot run."""
    markers = list(item.iter_markers("netns"))
    programs = sorted({program for marker in markers for program in marker.args})
    if markers and (reason := what_is_missing(programs)):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure under --no-skips. An expected failure is none."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _fail_if_no_skips(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    report = yield
    if report.skipped:
        _fail_if_no_skips(collector.config, report)
    return report


def _fail_if_no_skips(config: pytest.Config, report: Any) -> None:
    if config.getoption("--no-skips"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} (and no test may be skipped here: CI=true or --no-skips)"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # a test's timeout begins when it does
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let no other test run beside one that is `alone`, where several processes run the tests (pytest-xdist).

    Who wants to begin takes the turnstile and then the room, as one of several or for itself alone; flock(2) is
    not fair, and without the turnstile those who share the room could keep it for ever.
    """
    if not hasattr(item.config, "workerinput"):
        return (yield)
    kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with open(__file__) as turnstile, open(item.config.rootpath / "pyproject.toml") as room:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(room, kind)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        return (yield)
