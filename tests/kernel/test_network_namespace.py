"""A namespace that is there for one function."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tnat64d.errors import UnavailableError
from tnat64d.kernel.network_namespace import in_new, number

pytestmark = pytest.mark.netns

AS_NOBODY = """
import os
from tnat64d.errors import UnavailableError
from tnat64d.kernel.network_namespace import in_new
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    in_new(os.getpid)
except UnavailableError as error:
    print(error)
"""


def here() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_the_function_sees_a_network_of_its_own_and_the_caller_keeps_his() -> None:
    before = here()
    assert in_new(here) != before
    assert here() == before
    assert in_new(number) != number() == int(before.partition("[")[2][:-1])
    assert [name for _, name in in_new(socket.if_nameindex) if name == "lo"] == ["lo"]


def test_what_the_function_raises_is_raised() -> None:
    def fail() -> None:
        raise UnavailableError("so it is")

    with pytest.raises(UnavailableError, match="so it is"):
        in_new(fail)


def test_without_the_right_to_it_that_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, check=False)
    assert done.stdout == "making a network namespace needs root (CAP_SYS_ADMIN)\n", done.stderr
