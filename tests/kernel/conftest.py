"""What the tests of the kernel's rules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.bare_host import BACKENDS, BareHost
from tests.lab import Namespace
from tnat64d.core.settings import Mode
from tnat64d.kernel import cgroup as cgroups


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host with nothing but lo."""
    with BareHost() as lab:
        yield lab.host


@pytest.fixture(params=BACKENDS)
def program(request: pytest.FixtureRequest) -> str:
    """Each iptables there is."""
    name: str = request.param
    return name


@pytest.fixture(params=Mode)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each way to capture."""
    chosen: Mode = request.param
    return chosen


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A control group of version 2 with a parent of its own."""
    parent = cgroups.root() / f"tnat64d-test-{os.getpid()}"
    child = parent / "child"
    child.mkdir(parents=True)
    try:
        yield child
    finally:
        child.rmdir()
        parent.rmdir()
