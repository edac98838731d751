"""What is done to each peer, and the figures that it gives.

Owns the load: how much of it, for how long, and what is read off. A measure is a function of a peer that runs
(`Running`) and the `Plan`; it returns figures by the keys of `metrics`. Refuses to own peers and statistics.

CPU time and memory are those of the peer's processes; a peer without any (direct, LD_PRELOAD) has none of these
figures. Latencies are whole round trips; what a peer adds to the direct way is worked out in `samples`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.lab import PlainLab, Service
from benchmarks.peer import Peer
from tests.lab import LabError, Process

Figures = dict[str, float]

HTTP_CONNECTIONS = 64
CROWD = 32
"""Clients that connect as fast as they can, each one connection after the other."""

BESIDE_INTERVAL_US = "20000"
"""Long enough for a round trip on a host whose CPUs are all busy: what is late is not by its own doing."""

LONGER_S = 0.2
"""How much longer than what is measured beside them the flows are busy: it takes a moment to start."""

WORK = "work"
"""The key of how much was done, in the `Measure.unit`; beside the figures in the raw results."""

TIMEOUT_S = 120.0
SETTLE_S = 0.4
QUIET_S = 1.2
"""Idle means that what follows a burst of new connections (timers, freed memory) is over, too."""

FIRST_BYTE_S = 0.3
"""Each connection leaves an entry in connection tracking. Of ten thousand a second, the kernel's thread that
clears them away (gc_worker in nf_conntrack_core.c) has the one CPU for milliseconds at a time."""

_GIGABYTE = 1e9
_KIB = 1024
_WRK_REPORT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done. Times are those of one measurement."""

    rounds: int = 5
    duration_s: float = 2.0
    idle_levels: tuple[int, ...] = (1000, 4000, 9000)
    idle_window_s: float = 5.0
    busy_levels: tuple[int, ...] = (1, 10, 100, 1000)


QUICK = Plan(rounds=1, duration_s=0.4, idle_levels=(1000,), idle_window_s=0.5, busy_levels=(1, 100))
"""For a look: one round, and neither 9,000 connections nor every step of the growth."""


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that relays to `service`, and the programs that load it."""

    peer: Peer
    lab: PlainLab
    service: Service
    process: Process | None

    @property
    def address(self) -> str:
        """Where the load connects to."""
        return self.peer.address(self.lab)

    def run(self, *command: str | Path) -> dict[str, Any]:
        """Run a load program to its end; the JSON object in its last line. Raises LabError."""
        under = self.peer.under(self.lab)
        done = self.lab.client.run([*under, *command], timeout_s=TIMEOUT_S)
        return last_object(done.stdout)

    def load(self, command: str, seconds: float, *options: str) -> dict[str, Any]:
        """`load COMMAND ADDRESS PORT SECONDS OPTIONS…`."""
        return self.run(self.lab.load, command, self.address, str(self.service.value), str(seconds), *options)

    def start_load(self, *arguments: object) -> Process:
        """A `load` that goes on."""
        return self.lab.client.start([*self.peer.under(self.lab), self.lab.load, *(str(a) for a in arguments)])

    def cpu_s(self) -> float:
        """CPU time that the peer has used; 0 without a process."""
        return processes.cpu_s(self.process.pid) if self.process is not None else 0.0

    def usage(self) -> processes.Usage:
        """Everything that the peer uses."""
        return processes.usage(self.process.pid) if self.process is not None else processes.Usage()

    def wrk(self, seconds: float, *options: str) -> dict[str, Any]:
        """HTTP_CONNECTIONS at a time for `seconds`, rounded to whole ones, which is all that wrk knows."""
        whole_s = max(1, round(seconds))
        size = ("-t", "1", "-c", str(HTTP_CONNECTIONS), "-d", str(whole_s))
        host = f"[{self.address}]" if ":" in self.address else self.address
        found = self.run("wrk", *size, "-s", _WRK_REPORT, *options, f"http://{host}:{self.service.value}/small")
        if found["errors"] * 100 > found["requests"] or not found["requests"]:
            raise LabError(f"{found['errors']} errors in {found['requests']} requests")
        return found


def last_object(output: str) -> dict[str, Any]:
    """The JSON object in the last line of what a load program wrote. Raises LabError without one."""
    line = output.strip().rpartition("\n")[2]
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        raise LabError(f"no result in {output!r}") from None
    return found


def throughput(running: Running, plan: Plan, flows: int, direction: str) -> Figures:
    """Bulk data on `flows` connections, "up" (from the client) or "down"."""
    before_s = running.cpu_s()
    load = _busy(running, flows, direction, plan.duration_s)
    result = _result(load)
    cpu_s = running.cpu_s() - before_s
    gigabytes = result["total_bytes"] / _GIGABYTE
    figures = {f"flow{flows}_{direction}_gbit_s": _gbit_s(result), WORK: gigabytes}
    if running.process is not None and flows == 1:
        figures[f"cpu_s_per_gb_{direction}"] = cpu_s / gigabytes
    return figures


def connections(running: Running, plan: Plan) -> Figures:
    """A new connection for each small HTTP exchange."""
    before_s = running.cpu_s()
    result = running.wrk(plan.duration_s, "-H", "Connection: close")
    cpu_s = running.cpu_s() - before_s
    figures = {"connections_per_s": result["requests"] / result["seconds"], WORK: result["requests"]}
    if running.process is not None:
        figures["cpu_s_per_1000_connections"] = cpu_s / (result["requests"] / 1000)
    return figures


def requests(running: Running, plan: Plan) -> Figures:
    """Small HTTP exchanges on connections that stay."""
    before_s = running.cpu_s()
    result = running.wrk(plan.duration_s)
    cpu_s = running.cpu_s() - before_s
    figures = {"requests_per_s": result["requests"] / result["seconds"], WORK: result["requests"]}
    if running.process is not None:
        figures["cpu_s_per_1000_requests"] = cpu_s / (result["requests"] / 1000)
    return figures


def ping(running: Running, plan: Plan) -> Figures:
    """One byte there and back, on one connection, on an otherwise idle host."""
    with _on_one_cpu(running):
        return _percentiles("ping", running.load("ping", plan.duration_s))


def first_byte(running: Running, plan: Plan) -> Figures:
    """From connect() to the first byte of the answer, one connection after the other."""
    with _on_one_cpu(running):
        return _percentiles("first_byte", running.load("first", min(plan.duration_s, FIRST_BYTE_S)))


def idle(running: Running, plan: Plan) -> Figures:
    """Connections that carried one byte each way and are silent since: memory at each level, CPU at the last."""
    if running.process is None:
        return {}
    time.sleep(SETTLE_S)
    nothing, figures, held = running.usage(), {}, 0
    limit = running.peer.most_idle
    levels = [level for level in plan.idle_levels if limit is None or level <= limit]
    for level in levels:
        holder = running.start_load("hold", level - held, running.address, running.service.value)
        holder.wait_for_output("^held$", TIMEOUT_S)
        held = level
        time.sleep(SETTLE_S)
        usage = running.usage()
        figures[f"idle_rss_kib_{level}"] = (usage.rss_bytes - nothing.rss_bytes) / level / _KIB
        figures[f"idle_pss_kib_{level}"] = (usage.pss_bytes - nothing.pss_bytes) / level / _KIB
        figures[f"idle_total_rss_mib_{level}"] = usage.rss_bytes / _KIB / _KIB
    if levels[-1] == plan.idle_levels[-1]:
        figures |= _idle_cpu(running, plan.idle_window_s)
    return figures


def growth(running: Running, plan: Plan) -> Figures:
    """Downloads on more and more connections, and the round trip of one byte on another beside them."""
    figures: Figures = {}
    for level in plan.busy_levels:
        load = _busy(running, level, "down", plan.duration_s + LONGER_S)
        waited = running.load("ping", plan.duration_s, BESIDE_INTERVAL_US)
        figures[f"growth_gbit_s_{level}"] = _gbit_s(_result(load))
        figures[f"growth_ping_p50_us_{level}"] = waited["p50_us"]
        figures[f"growth_ping_p99_us_{level}"] = waited["p99_us"]
    return figures


def crowd(running: Running, plan: Plan) -> Figures:
    """The round trip of one byte on a connection that stands, beside many that begin and end."""
    once = (running.address, running.service.value, plan.duration_s + LONGER_S)
    loads = [running.start_load("first", *once) for _ in range(CROWD)]
    waited = running.load("ping", plan.duration_s, BESIDE_INTERVAL_US)
    came = sum(_result(load)["count"] for load in loads)
    return {f"crowd_ping_{p}_us": waited[f"{p}_us"] for p in ("p50", "p99")} | {WORK: came}


@contextlib.contextmanager
def _on_one_cpu(running: Running) -> Iterator[None]:
    """Peer, load and server share one CPU.

    Otherwise the figure is mostly the time that an idle CPU takes to wake up, and depends on where the scheduler
    happened to put the three: the direct way takes 6 or 60 µs.
    """
    cpus = os.sched_getaffinity(0)
    one = {max(cpus)}
    if running.process is not None:
        processes.pin(running.process.pid, one)
    try:
        processes.pin(running.lab.load_server.pid, one)
        os.sched_setaffinity(0, one)  # inherited by what is started
        yield
    finally:
        os.sched_setaffinity(0, cpus)
        processes.pin(running.lab.load_server.pid, cpus)


def _busy(running: Running, flows: int, direction: str, seconds: float) -> Process:
    """Flows that all carry data by now, for `seconds` from now."""
    target = (running.address, running.service.value)
    load = running.start_load("flows", direction, flows, *target, seconds, running.lab.counter)
    load.wait_for_output("^busy$", TIMEOUT_S)
    return load


def _result(load: Process) -> dict[str, Any]:
    if load.wait(TIMEOUT_S) != 0:
        raise LabError(f"{load}: {load.stderr}")
    return last_object(load.stdout)


def _gbit_s(result: Mapping[str, Any]) -> float:
    return float(result["bytes"] * 8 / result["seconds"] / 1e9)


def _percentiles(name: str, result: Mapping[str, Any]) -> Figures:
    figures = {f"{name}_{which}": result[which] for which in ("p50_us", "p99_us", "p999_us")}
    return {**figures, WORK: result["count"]}


def _idle_cpu(running: Running, window_s: float) -> Figures:
    time.sleep(QUIET_S)
    before, begin = running.usage(), time.monotonic()
    time.sleep(window_s)
    passed_s, after = time.monotonic() - begin, running.usage()
    return {
        "idle_cpu_percent": (after.cpu_s - before.cpu_s) / passed_s * 100,
        "idle_wakeups_per_s": (after.wakeups - before.wakeups) / passed_s,
    }


@dataclass(frozen=True, slots=True)
class Measure:
    """A name for the command line and the progress line, the server and programs it needs, and the function.

    unit: that in which the figure WORK counts what was done; empty where the measure gives none.
    """

    name: str
    service: Service
    run: Callable[[Running, Plan], Figures]
    unit: str = ""
    programs: tuple[str, ...] = ()


def _throughput(flows: int, direction: str) -> Measure:
    def run(running: Running, plan: Plan) -> Figures:
        return throughput(running, plan, flows, direction)

    return Measure(f"flow{flows}-{direction}", Service.LOAD, run, "gigabyte")


MEASURES: tuple[Measure, ...] = (
    *(_throughput(flows, direction) for flows in (1, 8) for direction in ("up", "down")),
    Measure("connections", Service.HTTP, connections, "connection", ("wrk",)),
    Measure("requests", Service.HTTP, requests, "request", ("wrk",)),
    Measure("ping", Service.LOAD, ping, "round trip"),
    Measure("first-byte", Service.LOAD, first_byte, "connection"),
    Measure("crowd", Service.LOAD, crowd, "connection"),
    Measure("idle", Service.LOAD, idle),
    Measure("growth", Service.LOAD, growth),
)
