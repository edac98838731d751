"""Honest connects: what a program sees is what it would see on a direct IPv6 connection to the NAT64 address."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Namespace, Port, nat64_address, wait_until
from tests.lab.connects import (
    CURL,
    CURL_GRID_S,
    FILTERED,
    NO_NEIGHBOUR,
    NO_ROUTE,
    OPEN,
    PROHIBITED,
    REFUSED,
    ROWS,
    SLOW,
    SLOW_S,
    WAITS,
    ConnectsLab,
    Seen,
    before_others,
    honest_daemon,
    measure_rows,
)
from tests.lab.daemon import PROGRAM, Daemon, Service, Tables, dial, echo, expect_reset, run_cli, seconds_of
from tests.test_gateway import CONTAINER, GATEWAY_WAYS, GatewayLab, gateway_lab, gateway_way
from tnat64d.kernel.icmp import checksum

__all__ = ["gateway_lab", "gateway_way"]

pytestmark = pytest.mark.netns("tayga", "iptables-nft", "iptables-legacy", "nft", "nc", "curl", "gcc", "setpriv")

SAME_TIME_S = 0.02
SAME_SHARE = 0.9
ATTEMPTS = 12
MOST_BY_CHANCE = 3
"""In so many rows the times may differ because of what else the machine does: a busy one spoiled two in a run."""

ATTEMPTS_TO_FILTERED = 3
"""What takes time there is the program's own: it waits for nothing that a daemon could say too late."""

OUTCOMES = {
    OPEN: ("connected", 0),
    REFUSED: ("ECONNREFUSED", 1),
    FILTERED: (WAITS, 1),
    NO_NEIGHBOUR: ("EHOSTUNREACH", 1),
    NO_ROUTE: ("ENETUNREACH", 1),
    PROHIBITED: ("EACCES", 1),
    SLOW: ("connected", 0),
}
"""What the direct connect() comes to, and the exit code of `nc -z`."""

HONEST_OUTCOMES = {**OUTCOMES, PROHIBITED: ("EHOSTUNREACH", 1)}
"""No message of IPv4 makes EACCES (icmp_err_convert in net/ipv4/icmp.c)."""

ORIGINAL_DIFFERS = {(NO_ROUTE, "blocking"): "ECONNREFUSED", (NO_ROUTE, "compiled"): "ECONNREFUSED"}
"""Its connect() says so when it has met ENETUNREACH by NAT64 and by IPv4; who does not wait in connect() asks the
kernel (tnat64.c)."""

SILENT = "198.51.100.200"
STATIC_WAYS: dict[str, dict[str, Mapping[str, object]]] = {
    "nftables": {"rules": {"backend": "nftables"}},
    "iptables-nft": {"rules": {"backend": "iptables", "iptables": "iptables-nft"}},
    "iptables-legacy": {"rules": {"backend": "iptables", "iptables": "iptables-legacy"}},
    "tproxy": {"rules": {"mode": "tproxy", "backend": "nftables"}},
}


@dataclass(frozen=True)
class Row:
    """What a program saw of a destination, directly and honestly in turn.

    `grid_s`: the program itself may take any multiple of this longer.
    """

    grid_s: float = math.inf
    direct: list[Seen] = field(default_factory=list)
    honest: list[Seen] = field(default_factory=list)

    @property
    def same_share(self) -> float:
        """How many attempts of each take the same time, of 1: the quickest are compared, the next, and so on."""
        pairs = list(zip(self._times_s(self.direct), self._times_s(self.honest), strict=True))
        return sum(abs(direct - honest) <= SAME_TIME_S for direct, honest in pairs) / len(pairs)

    def __str__(self) -> str:
        attempts = zip(self.direct, self.honest, strict=True)
        return f"direct and honest: {'; '.join(f'{direct} and {honest}' for direct, honest in attempts)}"

    def _times_s(self, seen: list[Seen]) -> list[float]:
        return sorted(each.after_s % self.grid_s for each in seen)


def expected_outcome(destination: str, program: str, outcomes: Mapping[str, tuple[str, int]]) -> str:
    """Of `program`, where connect() and `nc -z` end as in `outcomes`."""
    of_connect, exit_code = outcomes[destination]
    if program == "nc -z":
        return f"exit code {exit_code}"
    if program == CURL:
        return "exit code 0"  # by its second address
    if program == "with_timeout" and of_connect == WAITS:
        return "ETIMEDOUT"  # its own
    return of_connect


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], list[Row]]:
    """The whole table; a row whose times differ is there twice: the second time nothing else ran beside it.

    What is late for a reason is late again, or in many rows.
    """

    def measure(destination: str, program: str) -> Row:
        row = Row(CURL_GRID_S if (destination, program) == (FILTERED, CURL) else math.inf)
        for _ in range(ATTEMPTS_TO_FILTERED if destination == FILTERED else ATTEMPTS):
            row.direct.append(lab.connect(program, destination, "direct"))
            row.honest.append(lab.connect(program, destination, "honest"))
        return row

    with before_others(), ConnectsLab() as lab, honest_daemon(lab):
        table = {row: [measured] for row, measured in measure_rows(measure).items()}
        late = [row for row, (measured,) in table.items() if measured.same_share < SAME_SHARE]
        for row in late if len(late) <= MOST_BY_CHANCE else ():
            table[row].append(measure(*row))
        return table


@pytest.fixture(scope="module")
def original_outcomes() -> dict[tuple[str, str], str]:
    """Behind tnat64, the original."""
    with ConnectsLab() as lab:
        return measure_rows(lambda destination, program: lab.connect(program, destination, "tnat64").outcome)


@pytest.mark.alone
@pytest.mark.netns("bash", "chrt")
@pytest.mark.parametrize(("destination", "program"), ROWS)
def test_a_connect_ends_as_the_direct_one_and_at_the_same_time(
    rows: dict[tuple[str, str], list[Row]], destination: str, program: str
) -> None:
    tries = rows[destination, program]
    for row in tries:
        outcomes = {seen.outcome for seen in row.direct}, {seen.outcome for seen in row.honest}
        expected = (expected_outcome(destination, program, each) for each in (OUTCOMES, HONEST_OUTCOMES))
        assert outcomes == tuple({each} for each in expected), str(row)
        if destination == SLOW:
            assert min(seen.after_s for seen in row.direct) >= SLOW_S, str(row)
    assert tries[-1].same_share >= SAME_SHARE, "\nthen ".join(map(str, tries))


@pytest.mark.alone
@pytest.mark.netns("bash", "chrt", "tnat64")
@pytest.mark.parametrize(("destination", "program"), ROWS)
def test_the_original_shows_a_program_what_the_direct_connect_would(
    original_outcomes: dict[tuple[str, str], str], destination: str, program: str
) -> None:
    row = (destination, program)
    assert original_outcomes[row] == ORIGINAL_DIFFERS.get(row, expected_outcome(*row, OUTCOMES))


def silence(lab: IdealNat64Lab) -> None:
    """Nobody answers for SILENT."""
    lab.server.run(["ip6tables-nft", "-A", "INPUT", "-d", nat64_address(SILENT), "-j", "DROP"])


def honest(proxy: Mapping[str, object] | None = None, **tables: Mapping[str, object]) -> Tables:
    """Settings with honest connects: keys of [proxy], and other tables."""
    return {"proxy": {"connect": "honest", **(proxy or {})}, **tables}


def connect_code(host: Namespace, port: int, address: str = SERVER_V4, timeout_s: float = 5.0) -> int:
    with host.socket() as sock:
        sock.settimeout(timeout_s)
        return sock.connect_ex((address, port))


def spread(daemon: Daemon, counter: str) -> list[int]:
    """The counter of each worker."""
    return [worker[counter] for worker in daemon.status()["workers"]]


@pytest.mark.parametrize("way", STATIC_WAYS)
def test_the_worker_that_has_dialled_accepts(ideal_lab: IdealNat64Lab, way: str) -> None:
    settings = honest({"workers": 3}, **STATIC_WAYS[way])
    with Service(ideal_lab.client, ideal_lab.directory, settings=settings) as service:
        for _ in range(60):
            with dial(ideal_lab.client, Port.ECHO) as sock:
                echo(sock)
        service.daemon.wait_for_total("relayed_nat64", 60)
        held, accepted = spread(service.daemon, "held"), spread(service.daemon, "accepted")
        assert held == accepted
        assert min(held) > 0
        assert connect_code(ideal_lab.client, Port.REFUSED) == errno.ECONNREFUSED
        assert service.daemon.total("accepted") == 60


@pytest.mark.parametrize("way", ["owned", *STATIC_WAYS])
def test_the_worker_that_has_dialled_accepts_also_behind_a_port_that_nat_has_changed(
    ideal_lab: IdealNat64Lab, way: str
) -> None:
    settings = honest({"workers": 4}, **STATIC_WAYS.get(way, {}))
    with (
        Service(ideal_lab.client, ideal_lab.directory, settings=settings, is_static=way != "owned") as service,
        contextlib.ExitStack() as stack,
    ):
        for last in range(1, 41):  # from one port to forty servers: to one listener it must be forty ports
            sock = stack.enter_context(ideal_lab.client.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(5)
            sock.bind(("192.0.0.2", 50001))
            sock.connect((f"198.51.100.{last}", Port.ECHO))
            echo(sock)
        shown = ideal_lab.server.run(["ss", "-Htn", "state", "established", "sport", "=", f":{int(Port.ECHO)}"])
        assert len(shown.stdout.splitlines()) == 40
        assert spread(service.daemon, "held") == spread(service.daemon, "accepted")


@pytest.mark.parametrize("way", ["owned", *STATIC_WAYS])
@pytest.mark.parametrize(
    "place", ["type route hook output priority raw", "type filter hook output priority filter"]
)
def test_the_worker_that_has_dialled_accepts_also_where_others_mark_syns(
    ideal_lab: IdealNat64Lab, way: str, place: str
) -> None:
    """Before the SYN is held, and after it has gone on."""
    host = ideal_lab.client
    host.run(["nft", f"table ip others {{ chain others {{ {place}; meta mark set meta mark or 0x10000000; }}; }}"])
    settings = honest({"workers": 3}, **STATIC_WAYS.get(way, {}))
    with Service(host, ideal_lab.directory, settings=settings, is_static=way != "owned") as service:
        for _ in range(60):
            with dial(host, Port.ECHO) as sock:
                echo(sock)
        service.daemon.wait_for_total("relayed_nat64", 60)
        held, accepted = spread(service.daemon, "held"), spread(service.daemon, "accepted")
        assert held == accepted
        assert min(held) > 0


def test_a_mask_that_leaves_no_bits_to_lead_to_a_worker_is_told_once(ideal_lab: IdealNat64Lab) -> None:
    settings = honest({"workers": 3}, rules={"mark_mask": 0xFFFFFFFF})
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=settings) as daemon:
        for _ in range(20):
            with dial(ideal_lab.client, Port.ECHO) as sock:
                echo(sock)
        daemon.wait_for_total("relayed_nat64", 20)
        assert spread(daemon, "held") == spread(daemon, "accepted"), "the port tells, where NAT leaves it alone"
        assert daemon.log.count("rules.mark_mask in tnat64d.toml is 0xffffffff") == 1


@pytest.mark.parametrize("way", ["owned", *STATIC_WAYS])
def test_refusals_pass_a_firewall_that_drops_what_conntrack_calls_invalid(
    ideal_lab: IdealNat64Lab, way: str
) -> None:
    host = ideal_lab.client
    rules = "".join(
        f"chain {hook} {{ type filter hook {hook} priority 0; ct state invalid drop; }};"
        for hook in ("input", "output")
    )
    host.run(["nft", f"table inet firewall {{ {rules} }}"])
    settings = honest(**STATIC_WAYS.get(way, {}))
    with Service(host, ideal_lab.directory, settings=settings, is_static=way != "owned"):
        assert connect_code(host, Port.REFUSED, timeout_s=0.9) == errno.ECONNREFUSED
        ideal_lab.ip("client", "route add unreachable 2001:db8:64::/96")
        assert connect_code(host, Port.ECHO, timeout_s=0.9) == errno.EHOSTUNREACH
        ideal_lab.ip("client", "route del unreachable 2001:db8:64::/96")


def test_only_named_ports_and_networks_are_honest(ideal_lab: IdealNat64Lab) -> None:
    proxy = {"honest_ports": ["1-1003"], "honest_networks": ["198.51.100.0/24"]}
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=honest(proxy)) as daemon:
        assert connect_code(ideal_lab.client, Port.REFUSED) == errno.ECONNREFUSED
        assert daemon.total("accepted") == 0
        expect_reset(ideal_lab.client, 1004)
        expect_reset(ideal_lab.client, Port.REFUSED, "203.0.113.10")
        assert (daemon.total("accepted"), daemon.total("held")) == (2, 1)


def test_a_program_that_gives_up_leaves_nothing_behind(ideal_lab: IdealNat64Lab) -> None:
    silence(ideal_lab)
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=honest({"workers": 1})) as daemon:
        (worker,) = daemon.worker_pids()

        def descriptors() -> int:
            return len(list(Path(f"/proc/{worker}/fd").iterdir()))

        with dial(ideal_lab.client, Port.ECHO) as sock:  # what is opened once is open now
            echo(sock)
        daemon.wait_for_total("active", 0)
        before = descriptors()
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                sock = stack.enter_context(ideal_lab.client.socket())
                sock.setblocking(False)
                sock.connect_ex((SILENT, 80))
            daemon.wait_for_total("active", 50)
            assert descriptors() == before + 50
        wait_until(lambda: daemon.total("active") == 0, "the dials end", timeout_s=5)
        assert descriptors() == before
        assert daemon.total("refused") == 50


def test_connects_wait_in_the_backlog_while_there_are_no_descriptors(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=honest({"workers": 1})) as daemon:
        (worker,) = daemon.worker_pids()
        with dial(ideal_lab.client, Port.ECHO) as sock:  # what is opened once is open now
            echo(sock)
        daemon.wait_for_total("active", 0)
        enough = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        open_now = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (open_now, enough[1]))
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(dial(ideal_lab.client, Port.ECHO)) for _ in range(5)]
            resource.prlimit(worker, resource.RLIMIT_NOFILE, enough)
            for sock in waiting:
                echo(sock)
        assert daemon.total("not_held") > 0
        assert connect_code(ideal_lab.client, Port.REFUSED) == errno.ECONNREFUSED, "honest again"


def test_without_a_daemon_static_rules_let_every_syn_pass(ideal_lab: IdealNat64Lab) -> None:
    host = ideal_lab.client
    daemon = Daemon(host, ideal_lab.directory, command="serve", settings=honest())
    assert daemon.run("setup", "-f", str(daemon.conf)).returncode == 0
    started = time.monotonic()
    assert connect_code(host, Port.ECHO) == errno.ECONNREFUSED, "as in plain mode: nobody listens"
    assert seconds_of(started) < 0.9
    with daemon:
        assert connect_code(host, Port.ECHO) == 0
        assert daemon.total("held") == 1
    assert daemon.run("teardown").returncode == 0


def test_connects_while_a_worker_is_replaced_do_not_hang(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=honest({"workers": 1})) as daemon:
        (worker,) = daemon.worker_pids()
        os.kill(worker, signal.SIGKILL)
        with dial(ideal_lab.client, Port.ECHO) as sock:  # plain, and accepted by the next worker
            echo(sock)
        daemon.wait_for_log("a new one is started")
        wait_until(lambda: daemon.worker_pids() not in ([worker], [None]), "another worker")
        wait_until(lambda: connect_code(ideal_lab.client, Port.REFUSED) == errno.ECONNREFUSED, "honest again")


def test_those_who_wait_when_the_daemon_ends_are_refused(ideal_lab: IdealNat64Lab) -> None:
    silence(ideal_lab)
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=honest({"workers": 2})) as daemon:
        with ideal_lab.client.socket() as sock:
            sock.setblocking(False)
            sock.connect_ex((SILENT, 80))
            daemon.wait_for_total("held", 1)
            daemon.stop()
            wait_until(
                lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED, "refused"
            )


def test_connects_to_a_daemon_that_drains_are_refused(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=honest({"workers": 1})) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for_log("draining 1 connections")
            wait_until(lambda: connect_code(ideal_lab.client, Port.ECHO) == errno.ECONNREFUSED, "refused")
            echo(sock)
        daemon.expect_end(0)


@pytest.mark.parametrize("workers", [1, 3])
def test_programs_behind_a_gateway_see_the_truth(gateway_lab: GatewayLab, gateway_way: str, workers: int) -> None:
    settings = honest({"workers": workers}, scope={"gateway": ["br-test"]}, **GATEWAY_WAYS[gateway_way])
    with Service(
        gateway_lab.client, gateway_lab.directory, settings=settings, is_static=gateway_way != "owned"
    ) as service:
        daemon = service.daemon
        for _ in range(12):
            with dial(gateway_lab.container, Port.ECHO) as sock:
                echo(sock, b"x" * 100_000)
        daemon.wait_for_total("relayed_nat64", 12)
        assert spread(daemon, "held") == spread(daemon, "accepted"), "who has dialled accepts"
        assert connect_code(gateway_lab.container, Port.REFUSED) == errno.ECONNREFUSED
        assert (daemon.total("held"), daemon.total("accepted")) == (13, 12)
        gateway_lab.ip("client", "route add unreachable 2001:db8:64::/96")
        assert connect_code(gateway_lab.container, Port.ECHO) == errno.EHOSTUNREACH
        gateway_lab.ip("client", "route del unreachable 2001:db8:64::/96")


def forge_syns(host: Namespace, count: int) -> None:
    """From CONTAINER to SERVER_V4's echo server, each from another port; the answers find nobody."""
    host.run(["iptables-nft", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP"])
    source, target = socket.inet_aton(CONTAINER), socket.inet_aton(SERVER_V4)
    with host.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for port in range(20000, 20000 + count):
            fields = (port, Port.ECHO, 1, 0, 0x50, 0x02, 1000)
            without = struct.pack("!HHIIBBHHH", *fields, 0, 0)
            pseudo_header = source + target + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(without))
            content = struct.pack("!HHIIBBHHH", *fields, checksum(pseudo_header + without), 0)
            header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0, source, target)
            sock.sendto(header + content, (SERVER_V4, 0))


def test_a_source_behind_a_gateway_is_limited_from_its_syn_on(gateway_lab: GatewayLab) -> None:
    settings = honest({"workers": 1, "max_connections_per_source": 3}, scope={"gateway": ["br-test"]})
    with Daemon(gateway_lab.client, gateway_lab.directory, settings=settings) as daemon:
        forge_syns(gateway_lab.container, 50)
        daemon.wait_for_total("over_limit", 47)
        assert daemon.total("held") == 3
        assert connect_code(gateway_lab.container, Port.ECHO) == errno.ECONNREFUSED
        with dial(gateway_lab.client, Port.ECHO) as sock:  # the host's own programs have no limit
            echo(sock)
        wait_until(lambda: daemon.total("unclaimed") == 3, "nobody came", timeout_s=15)
        with dial(gateway_lab.container, Port.ECHO) as sock:
            echo(sock)


def test_a_syn_that_comes_again_from_behind_a_gateway_is_dialled_once(gateway_lab: GatewayLab) -> None:
    silence(gateway_lab)
    settings = honest({"workers": 3}, scope={"gateway": ["br-test"]})
    with Daemon(gateway_lab.client, gateway_lab.directory, settings=settings) as daemon:
        started = time.monotonic()
        assert connect_code(gateway_lab.container, 80, SILENT, timeout_s=3.5) == errno.EAGAIN
        assert daemon.total("held") == 1, "it was sent again after 1 s and after 3 s"
        wait_until(lambda: daemon.total("active") == 0, "the dial ends", timeout_s=15)
        assert time.monotonic() - started < 15
        assert daemon.total("held") == 1


def test_the_daemon_needs_no_more_than_two_capabilities(ideal_lab: IdealNat64Lab) -> None:
    """Those of etc/examples/service/honest-connect.conf, added to those of the unit."""
    powers = ("setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--")
    host = ideal_lab.client
    daemon = Daemon(host, ideal_lab.directory, command="serve", settings=honest(), program=(*powers, *PROGRAM))
    assert daemon.run("setup", "-f", str(daemon.conf)).returncode == 0
    with daemon:
        with dial(host, Port.ECHO) as sock:
            echo(sock)
        assert connect_code(host, Port.REFUSED) == errno.ECONNREFUSED
        assert daemon.total("held") == 2
    assert daemon.run("teardown").returncode == 0


def test_without_the_capability_the_daemon_says_so(ideal_lab: IdealNat64Lab) -> None:
    daemon = Daemon(ideal_lab.client, ideal_lab.directory, command="serve", settings=honest())
    done = run_cli(
        ideal_lab.client,
        "serve",
        *daemon.command[-4:],
        program=("setpriv", "--bounding-set=-net_admin", *daemon.command[:3]),
    )
    assert done.returncode == 77
    assert 'connect = "honest" in tnat64d.toml needs CAP_NET_ADMIN (or root)' in done.stderr


def test_queues_that_another_program_has_are_named(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory, command="serve", settings=honest()):
        settings = honest({"port": 6465})
        second = Daemon(ideal_lab.client, ideal_lab.directory, command="serve", settings=settings)
        done = run_cli(ideal_lab.client, "serve", *second.command[-4:])
        assert done.returncode == 1
        assert "packet queue 6464 is another program's" in done.stderr
