"""The figures: what each key of a result means, and what tnat64d has to reach.

Owns names, units, grouping into tables and pictures, and the targets. Pure data: what produces the figures is in
`measures`, and what is made of them in `samples`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Better(Enum):
    """Which way a figure is good."""

    HIGHER = "more is better"
    LOWER = "less is better"


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure. `digits`: after the decimal point. `level`: its place on a growth curve, connections."""

    key: str
    title: str
    unit: str
    better: Better
    digits: int = 0
    level: int | None = None

    def show(self, value: float) -> str:
        """The value without its unit; large ones without decimals."""
        return f"{value:,.{self.digits if abs(value) < 100 else 0}f}"


@dataclass(frozen=True, slots=True)
class Group:
    """One table and one picture; all metrics are good in the same way unless they have different units."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """`key` of `ours` is to be at least `factor` times that of `peer`; at most, where less is better.

    Without a peer, `factor` is the bound itself; where it is `beyond` the peer, that of the difference.
    """

    key: str
    peer: str | None
    factor: float
    ours: str = "tnat64d"
    beyond: bool = False


IDLE_LEVELS = (1000, 4000, 9000)
BUSY_LEVELS = (1, 10, 100, 1000)
ADDED = "added_"
"""A metric `added_X` is X beyond that of the direct way in the same round."""

_BESIDE = "One byte every 20 ms, the whole round trip; all CPUs are busy."
_ON_ONE_CPU = "Added: beyond the direct way. Client, proxy and server on one CPU."


def _throughput(flows: int) -> tuple[Metric, ...]:
    label = f"{flows} flow{'s' * (flows > 1)}"
    return tuple(
        Metric(f"flow{flows}_{way}_gbit_s", f"{label} {way}", "Gbit/s", Better.HIGHER, 2) for way in ("up", "down")
    )


def _added(what: str) -> tuple[Metric, ...]:
    """What is added at p50 and p99; p99.9 as a whole, since the direct way's own is too restless to subtract."""
    added = (Metric(f"{ADDED}{what}_{p}_us", f"added, {p}", "µs", Better.LOWER, 1) for p in ("p50", "p99"))
    return (*added, Metric(f"{what}_p999_us", "whole, p99.9", "µs", Better.LOWER, 1))


def _growth(key: str, unit: str, better: Better, digits: int) -> tuple[Metric, ...]:
    return tuple(Metric(f"growth_{key}_{n}", f"{n:,}", unit, better, digits, level=n) for n in BUSY_LEVELS)


GROUPS: tuple[Group, ...] = (
    Group("throughput", "Throughput", (*_throughput(1), *_throughput(8))),
    Group(
        "cpu-per-gb",
        "CPU time per gigabyte, one flow",
        tuple(Metric(f"cpu_s_per_gb_{way}", way, "s/GB", Better.LOWER, 3) for way in ("up", "down")),
        "Of the proxy's processes. What the kernel does outside of them is not counted.",
    ),
    Group(
        "connections",
        "New connections, 64 at a time, one small HTTP exchange each",
        (
            Metric("connections_per_s", "connections", "1/s", Better.HIGHER),
            Metric("cpu_s_per_1000_connections", "CPU time per 1,000", "s", Better.LOWER, 3),
        ),
    ),
    Group(
        "requests",
        "Small HTTP requests on 64 kept connections",
        (
            Metric("requests_per_s", "requests", "1/s", Better.HIGHER),
            Metric("cpu_s_per_1000_requests", "CPU time per 1,000", "s", Better.LOWER, 3),
        ),
    ),
    Group("latency", "Latency of one byte there and back", _added("ping"), _ON_ONE_CPU),
    Group(
        "first-byte",
        "Latency from connect() to the first byte",
        _added("first_byte"),
        _ON_ONE_CPU,
    ),
    Group(
        "crowd",
        "Round trip of one byte beside many new connections",
        tuple(Metric(f"crowd_ping_{p}_us", p, "µs", Better.LOWER) for p in ("p50", "p99")),
        f"{_BESIDE} 32 clients connect again and again.",
    ),
    Group(
        "idle-memory",
        "Resident memory per idle connection",
        tuple(Metric(f"idle_rss_kib_{n}", f"at {n:,}", "KiB", Better.LOWER, 2, level=n) for n in IDLE_LEVELS),
        "Growth of the RSS of all processes, divided by the number of connections.",
    ),
    Group(
        "idle-cpu",
        f"CPU at {IDLE_LEVELS[-1]:,} idle connections",
        (
            Metric("idle_cpu_percent", "CPU", "%", Better.LOWER, 2),
            Metric("idle_wakeups_per_s", "wake-ups", "1/s", Better.LOWER, 1),
        ),
    ),
    Group(
        "growth-throughput",
        "Throughput of many concurrent downloads",
        _growth("gbit_s", "Gbit/s", Better.HIGHER, 2),
    ),
    Group(
        "growth-latency-p50",
        "Round trip of one byte beside many concurrent downloads, p50",
        _growth("ping_p50_us", "µs", Better.LOWER, 0),
        _BESIDE,
    ),
    Group(
        "growth-latency-p99",
        "Round trip of one byte beside many concurrent downloads, p99",
        _growth("ping_p99_us", "µs", Better.LOWER, 0),
        _BESIDE,
    ),
)

METRICS = {metric.key: metric for group in GROUPS for metric in group.metrics}

_LATENCIES = tuple(f"{ADDED}{what}_{p}_us" for what in ("ping", "first_byte") for p in ("p50", "p99"))
_IDLE_MEMORY = tuple(f"idle_rss_kib_{n}" for n in IDLE_LEVELS)
_FLOW1 = ("flow1_up_gbit_s", "flow1_down_gbit_s")
_FLOW8 = ("flow8_up_gbit_s", "flow8_down_gbit_s")
PYTHON_FACTOR = 5.0
_COMPARED_WITH_PYTHON = (
    *_FLOW1,
    *_FLOW8,
    "connections_per_s",
    "cpu_s_per_1000_connections",
    "requests_per_s",
    *_LATENCIES,
    *_IDLE_MEMORY,
)

_PER_CONNECTION = (
    ("connections_per_s", "haproxy", 1.0),
    ("connections_per_s", "nginx", 0.9),
    ("cpu_s_per_1000_connections", "nginx", 1.15),
    ("requests_per_s", "nginx", 1.0),
    ("requests_per_s", "haproxy", 1.1),
    *((key, "haproxy", 1.0) for key in _LATENCIES),
)
"""What the interpreter has a part in: (key, peer, factor)."""

TARGETS: tuple[Target, ...] = (
    *(Target(key, peer, factor)
      for key in _FLOW1
      for peer, factor in (("haproxy", 1.3), ("tayga-1480", 8.0), ("tayga-1260", 8.0), ("direct", 0.65))),
    *(Target(key, "haproxy", 1.2) for key in _FLOW8),
    *(Target(key, "haproxy-2", 1.2, "tnat64d-2") for key in _FLOW8),
    *(Target(key, peer, factor, ours)
      for ours in ("tnat64d", "tnat64d-compiled")
      for key, peer, factor in _PER_CONNECTION),
    Target("connections_per_s", "haproxy-2", 1.0, "tnat64d-2"),
    Target("connections_per_s", "nginx-2", 0.9, "tnat64d-2"),
    Target("cpu_s_per_1000_connections", "tnat64d", 1.5, "tnat64d-honest"),
    Target("added_first_byte_p50_us", "tnat64d", 200.0, "tnat64d-honest", beyond=True),
    *(Target(key, None, 2.0) for key in _IDLE_MEMORY),
    *(Target(key, peer, 1.0) for key in _IDLE_MEMORY for peer in ("haproxy", "nginx")),
    *(Target(key, "socat", 1.0) for key in _IDLE_MEMORY[:-1]),  # it is not asked for the most
    Target("idle_cpu_percent", None, 0.1),
    Target("idle_wakeups_per_s", None, 2.0),
    *(Target(key, "pproxy", 1 / PYTHON_FACTOR if METRICS[key].better is Better.LOWER else PYTHON_FACTOR)
      for key in _COMPARED_WITH_PYTHON),
)  # fmt: skip
