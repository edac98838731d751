"""What a program sees of connect(): every outcome a network has, by every kind of program, over every way.

    python -m tests.lab.connects        prints the table of docs/honest-connect.md

Owns the destinations, the programs and what each of them says. Refuses to own what must be equal (the tests).

The destinations lie behind the real NAT64, each with the outcome that its address stands for. `direct` is the same
program with the IPv6 address of the destination under the prefix: the truth that the others are compared with.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Self, TypeVar

from tests.lab.daemon import Daemon, Tables
from tests.lab.namespace import LabError, Namespace
from tests.lab.nat64 import SERVER_V4, Nat64Lab, nat64_address
from tests.lab.servers import Port
from tnat64d.kernel.nfqueue import Syn, SynQueue

T = TypeVar("T")

OPEN = "accepts"
REFUSED = "refuses"
FILTERED = "is silent"
NO_NEIGHBOUR = "is gone from its network"
NO_ROUTE = "has no route to it"
PROHIBITED = "is prohibited"
SLOW = "accepts after 0.7 s"
DESTINATIONS = {
    OPEN: SERVER_V4,
    REFUSED: "198.51.100.11",
    FILTERED: "198.51.100.12",
    NO_NEIGHBOUR: "198.51.100.13",
    NO_ROUTE: "198.51.100.14",
    PROHIBITED: "198.51.100.15",
    SLOW: "198.51.100.16",
}
SLOW_S = 0.7
CURL = "curl, two addresses"
CURL_GRID_S = 1.0
"""curl(1) leaves a silent address when it looks and half of --connect-timeout is over (baller_connect() in
lib/connect.c). It sets a timer for that, but a millisecond may be missing then, and without a timer it looks once
a second (easy_transfer() in lib/easy.c)."""

PATIENCE_S = 4.0
"""After that a program that still waits is said to; its own start is in it."""

WAITS = "waits"

_PYTHON = """
import errno, json, os, select, socket, sys, time
how, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET

def blocking():
    with socket.socket(family) as sock:
        return sock.connect_ex((address, port))

def polling():
    with socket.socket(family) as sock:
        sock.setblocking(False)
        sock.connect_ex((address, port))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        poll.poll()
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

if how == "in_asyncio":
    import asyncio  # takes longer than all the rest

def in_asyncio():
    async def connect():
        _, writer = await asyncio.open_connection(address, port)
        writer.close()
    asyncio.run(connect())
    return 0

def with_timeout():
    with socket.create_connection((address, port), timeout=1.2):
        return 0

try:  # see before_others()
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
except PermissionError:
    pass
started = time.monotonic()
try:
    code = locals()[how]()
except TimeoutError as error:
    code = error.errno or errno.ETIMEDOUT
except OSError as error:
    code = error.errno
outcomes = {0: "connected", **errno.errorcode}
print(json.dumps([outcomes[code], time.monotonic() - started]))
"""
_C = r"""
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM}, *found;
	struct timespec before, after;
	const char *name;
	int fd;

	if (argc != 3 || getaddrinfo(argv[1], argv[2], &hints, &found) != 0)
		return 125;
	fd = socket(found->ai_family, SOCK_STREAM, 0);
	clock_gettime(CLOCK_MONOTONIC, &before);
	name = connect(fd, found->ai_addr, found->ai_addrlen) == 0 ? "connected" : strerrorname_np(errno);
	clock_gettime(CLOCK_MONOTONIC, &after);
	printf("[\"%s\", %f]\n", name, after.tv_sec - before.tv_sec + (after.tv_nsec - before.tv_nsec) / 1e9);
	return 0;
}
"""


@dataclass(frozen=True)
class Seen:
    """What a program saw of one connect(), and after how many seconds."""

    outcome: str
    after_s: float

    def __str__(self) -> str:
        return f"{self.outcome}, {self.after_s:.2f} s"


PROGRAMS = ("blocking", "polling", "in_asyncio", "with_timeout", "compiled", "nc -z", CURL)
ROWS = tuple((destination, program) for destination in DESTINATIONS for program in PROGRAMS)


_AT_ONCE = (OPEN, REFUSED, NO_ROUTE, PROHIBITED)
_LANES = (
    *(tuple((destination, program) for program in PROGRAMS) for destination in (*_AT_ONCE, NO_NEIGHBOUR)),
    *(((destination, program),) for destination in (FILTERED, SLOW) for program in PROGRAMS),
)
"""Rows (destination, program) one after another in each lane: what takes time does so by waiting, and can wait for
several at once; but the router asks for a neighbour once for all who wait for it."""


def measure_rows(measure: Callable[[str, str], T]) -> dict[tuple[str, str], T]:
    """`measure(destination, program)` of every row, of several at the same time."""

    def measure_lane(lane: tuple[tuple[str, str], ...]) -> dict[tuple[str, str], T]:
        return {row: measure(*row) for row in lane}

    with ThreadPoolExecutor(len(_LANES)) as pool:
        measured = {row: seen for lane in pool.map(measure_lane, _LANES) for row, seen in lane.items()}
    return {row: measured[row] for row in ROWS}


class ConnectsLab(Nat64Lab):
    """A real NAT64 with DESTINATIONS behind it, and the programs that connect to them."""

    def build(self) -> None:
        super().build()
        self.ip("server", *(f"addr add {DESTINATIONS[name]}/24 dev eth0" for name in (REFUSED, SLOW)))
        for name, target in (
            (FILTERED, "DROP"),
            (NO_ROUTE, "REJECT --reject-with icmp-net-unreachable"),
            (PROHIBITED, "REJECT --reject-with icmp-admin-prohibited"),
        ):
            self.router.run(["iptables", "-A", "FORWARD", "-d", DESTINATIONS[name], "-j", *target.split()])
        reset = f"-p tcp -d {DESTINATIONS[REFUSED]} -j REJECT --reject-with tcp-reset"
        hold = f"-p tcp --syn -d {DESTINATIONS[SLOW]} -j NFQUEUE --queue-num 1"
        for rule in (reset, hold):
            self.server.run(["iptables", "-A", "INPUT", *rule.split()])
        # A router whose neighbour does not answer says so after a second or three: here sooner, and always after
        # the same time, as the kernel's timers are the coarser the later they are (kernel/time/timer.c).
        self.router.write_sysctl("net.ipv6.neigh.to_client.mcast_solicit", 1)
        self.router.write_sysctl("net.ipv6.neigh.to_client.retrans_time_ms", 100)
        self.ip("router", f"route add {nat64_address(DESTINATIONS[NO_NEIGHBOUR])}/128 via fe80::98 dev to_client")
        self._delayer = _Delayer(self.server)
        self._conf = self.directory / "tnat64.conf"
        self._conf.write_text(f"nat64_prefix = {self.prefix.removesuffix('/96')}\n")
        self._compiled = self.directory / "connect"
        compiler = ["gcc", "-O1", "-D_GNU_SOURCE", "-x", "c", "-", "-o", str(self._compiled)]
        subprocess.run(compiler, input=_C, text=True, check=True)

    def __enter__(self) -> Self:
        super().__enter__()
        self.start_servers()
        return self

    def close(self) -> None:
        """See Lab."""
        if hasattr(self, "_delayer"):
            self._delayer.stop()
        super().close()

    def connect(self, program: str, destination: str, way: str) -> Seen:
        """What `program` sees of connect() to `destination`; `way`: direct, or by IPv4, behind `tnat64` or not."""
        address, second = DESTINATIONS[destination], SERVER_V4
        if way == "direct":
            address, second = nat64_address(address), nat64_address(second)
        wrapper = ["tnat64"] if way == "tnat64" else []
        if program == "nc -z":
            return self._nc(wrapper, address)
        if program == CURL:
            return self._curl(wrapper, (address, second))
        if program == "compiled":
            argv = [str(self._compiled), address, str(int(Port.HTTP))]
        else:
            argv = ["chrt", "--other", "0", sys.executable, "-ISc", _PYTHON, program, address, str(int(Port.HTTP))]
        done = self.client.run(["timeout", str(PATIENCE_S), *wrapper, *argv], check=False, env=self._environment())
        if done.returncode == 124:
            return Seen(WAITS, PATIENCE_S)
        if done.returncode != 0:
            raise LabError(f"{argv} ended with {done.returncode}: {done.stderr}")
        return Seen(*json.loads(done.stdout))

    def _curl(self, wrapper: list[str], addresses: tuple[str, str]) -> Seen:
        resolved = ",".join(f"[{each}]" if ":" in each else each for each in addresses)
        options = ["--resolve", f"server.example:{int(Port.HTTP)}:{resolved}", "--connect-timeout", "2.5"]
        options += ["--max-time", "4", "--output", "/dev/null", "--write-out", "%{time_total}"]
        argv = [*wrapper, "curl", "-s", *options, "http://server.example/"]
        done = self.client.run(argv, check=False, env=self._environment())
        return Seen(f"exit code {done.returncode}", float(done.stdout))

    def _nc(self, wrapper: list[str], address: str) -> Seen:
        argv = ["bash", "-c", 'TIMEFORMAT=%R; time "$@"', "-", *wrapper, "nc", "-z", "-w", "1"]
        done = self.client.run([*argv, address, str(int(Port.HTTP))], check=False, env=self._environment())
        return Seen(f"exit code {done.returncode}", float(done.stderr.splitlines()[-1]))

    def _environment(self) -> dict[str, str]:
        """For tnat64, which reads its file in each process."""
        return {"TNAT64_CONF_FILE": str(self._conf)}


class _Delayer:
    """Lets SYNs to SLOW wait for a while, in a namespace. The queue is its thread's: it is not thread-safe."""

    def __init__(self, namespace: Namespace) -> None:
        self._queue = namespace.call(SynQueue, [1], 1000)
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        held: deque[tuple[float, Syn]] = deque()
        readable: list[int] = []
        while self._woken.fileno() not in readable:
            held.extend((time.monotonic() + SLOW_S, syn) for syn in self._queue.read())
            while held and held[0][0] <= time.monotonic():
                self._queue.accept(held.popleft()[1])
            self._queue.send()
            wait_s = max(0.0, held[0][0] - time.monotonic()) if held else None
            readable, _, _ = select.select([self._queue.fileno(), self._woken.fileno()], [], [], wait_s)

    def stop(self) -> None:
        """Hold no more."""
        self._wake.close()
        self._thread.join()
        self._queue.close()
        self._woken.close()


@contextmanager
def before_others() -> Iterator[None]:
    """What is started meanwhile has the processors before all others (sched(7)), where that is allowed.

    So that the times are those of what is measured, not of what else the machine does; a Python that starts is
    among the latter, until it connects.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


_SOON = {"drain_timeout_s": 0.2}
"""Nobody is left whose connection to a silent destination would be worth waiting for."""

HONEST: Tables = {"proxy": {"workers": 2, "connect": "honest", **_SOON}}


@contextmanager
def honest_daemon(lab: ConnectsLab) -> Iterator[Daemon]:
    """A daemon, connects honest."""
    with Daemon(lab.client, lab.directory, settings=HONEST) as daemon:
        yield daemon


_ROUNDS = 3


def _main() -> None:
    """Of each row the quickest: what else the machine does takes time, and never gives any."""
    ways = ["direct", *(["tnat64"] if shutil.which("tnat64") else []), "honest", "plain"]
    settings: dict[str, Tables] = {"honest": HONEST, "plain": {"proxy": {"workers": 2, **_SOON}}}
    columns: dict[str, dict[tuple[str, str], Seen]] = {}
    with before_others(), ConnectsLab() as lab, ExitStack() as stack:

        def quickest(destination: str, program: str) -> Seen:
            return min(
                (lab.connect(program, destination, way) for _ in range(_ROUNDS)), key=lambda seen: seen.after_s
            )

        for way in ways:
            if way in settings:
                stack.enter_context(Daemon(lab.client, lab.directory, settings=settings[way]))
            columns[way] = measure_rows(quickest)
            stack.close()
    print(f"| the destination | program | {' | '.join(ways)} |")
    print("|---" * (len(ways) + 2) + "|")
    for destination, program in ROWS:
        cells = (str(columns[way][destination, program]) for way in ways)
        print(f"| {destination} | {program.replace('_', ' ')} | {' | '.join(cells)} |")


if __name__ == "__main__":
    _main()
