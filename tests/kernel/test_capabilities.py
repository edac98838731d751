"""What a process with and without a capability is told of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tnat64d.kernel import capabilities

pytestmark = pytest.mark.netns("setpriv")

ASK = "import sys; from tnat64d.kernel import capabilities; print(capabilities.has(int(sys.argv[1])))"
CAP_CHOWN, CAP_NET_RAW = 0, 13  # linux/capability.h


def has(capability: int, *setpriv: str) -> bool:
    """What a process behind `setpriv ARGUMENTS` is told."""
    command = ["setpriv", *setpriv, "--", sys.executable, "-c", ASK, str(capability)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"True\n": True, "False\n": False}[done.stdout]


def test_root_has_it() -> None:
    assert os.geteuid() == 0
    assert capabilities.has(capabilities.CAP_NET_ADMIN)


def test_root_without_it_does_not() -> None:
    assert not has(capabilities.CAP_NET_ADMIN, "--bounding-set=-net_admin")


@pytest.mark.parametrize(
    ("capability", "expected"), [(CAP_CHOWN, False), (capabilities.CAP_NET_ADMIN, True), (CAP_NET_RAW, False)]
)
def test_each_is_told_from_its_neighbours(capability: int, expected: bool) -> None:
    assert has(capability, "--bounding-set=-all,+net_admin") is expected


def test_what_could_be_had_but_is_not_effective_does_not_count() -> None:
    code = f"import os; from tnat64d.kernel import capabilities; os.seteuid(65534); {ASK}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(capabilities.CAP_NET_ADMIN)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout == "False\n"


def test_what_the_kernel_does_not_know_is_not_there() -> None:
    assert not capabilities.has(63)
