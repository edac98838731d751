"""Daemons as the tests of the supervisor need them."""

from __future__ import annotations

import contextlib
import socket

from tests.lab import SERVER_V4, IdealNat64Lab, Port, nat64_address
from tests.lab.daemon import PROGRAM, Daemon, dial, echo, iptables_after

OTHER_PREFIX = "2001:db8:65::"
BAD_CONF = "nonsense = 1\nlocal = 10.0.0.0\nnat64_prefix = 2001:db8::1::\n"


def daemon_in(
    lab: IdealNat64Lab, command: str = "up", env: dict[str, str] | None = None, **proxy: object
) -> Daemon:
    return Daemon(lab.client, lab.directory, command=command, settings={"proxy": proxy}, env=env)


def connect_to_each_worker(lab: IdealNat64Lab, daemon: Daemon, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Connections until each of two workers has some; the kernel spreads them by a hash."""
    socks: list[socket.socket] = []
    while not all(worker["active"] for worker in daemon.status()["workers"]):
        assert len(socks) < 100, "the kernel prefers one worker"
        socks.append(stack.enter_context(dial(lab.client, Port.ECHO)))
        echo(socks[-1])
    return socks


def with_iptables(lab: IdealNat64Lab, script: str, program: tuple[str, ...] = PROGRAM) -> Daemon:
    """A daemon that installs rules with an iptables that runs `script` first."""
    settings = {"rules": {"iptables": iptables_after(lab.directory, script)}}
    return Daemon(lab.client, lab.directory, settings=settings, program=program)


def serve_other_prefix(lab: IdealNat64Lab) -> str:
    """Let the lab's server answer under another prefix, too; the server's address under it."""
    lab.ip("server", f"route add local {OTHER_PREFIX}/96 dev lo")
    return nat64_address(SERVER_V4, f"{OTHER_PREFIX}/96")
