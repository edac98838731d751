"""Workers that die, hang, and share what they know."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import sys
import time

import pytest

from tests.daemon.daemons import connect_to_each_worker
from tests.lab import IdealNat64Lab, Port, wait_until
from tests.lab.daemon import Daemon, dial, echo, expect_refused, expect_reset, is_alive, seconds_of
from tnat64d.core.settings import Proxy, Rules, Settings
from tnat64d.daemon.pool import DEATHS_IN_A_ROW, connection_limit, queues_of, share


def daemon_in(lab: IdealNat64Lab, command: str = "up", **proxy: object) -> Daemon:
    return Daemon(lab.client, lab.directory, command=command, settings={"proxy": {"workers": 2} | proxy})


def lives(sock: socket.socket) -> bool:
    try:
        echo(sock)
    except (AssertionError, ConnectionError):
        return False
    return True


def test_a_killed_worker_takes_only_its_own_connections_along_and_is_replaced(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon, contextlib.ExitStack() as stack:
        socks = connect_to_each_worker(ideal_lab, daemon, stack)
        victim, other = daemon.status()["workers"]
        os.kill(victim["pid"], signal.SIGKILL)
        daemon.wait_for_log(rf"worker 0 \(pid {victim['pid']}\) ended by signal 9 .*; a new one is started")
        assert sum(map(lives, socks)) == other["active"]
        wait_until(lambda: daemon.worker_pids()[0] not in (victim["pid"], None), "the worker is replaced")
        assert daemon.worker_pids()[1] == other["pid"]
        for sock in socks:
            sock.close()
        daemon.wait_for_total("active", 0)
        connect_to_each_worker(ideal_lab, daemon, stack)


def test_what_connects_while_a_worker_is_replaced_is_served(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, workers=1) as daemon:
        (pid,) = daemon.worker_pids()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the worker is gone")
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)


def test_a_new_worker_knows_the_configuration_and_the_sticky_state(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, workers=1) as daemon:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
        daemon.conf.write_text(
            "nat64_prefix = 2001:db8:64::\npath {\nsubnet = 198.51.100.10:9/32\n"
            "nat64_prefix = 2001:db8:dead::\n}\n"
        )
        daemon.run("reload")
        (pid,) = daemon.worker_pids()
        os.kill(pid, signal.SIGKILL)
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
        daemon.wait_for_log(r":7 via NAT64 .*\(NAT64 sticky\)")
        expect_reset(ideal_lab.client, Port.SINK)  # the server's host has no route to that prefix


def test_a_worker_that_dies_again_and_again_ends_the_daemon_with_a_sentence(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon, contextlib.ExitStack() as stack:
        socks = connect_to_each_worker(ideal_lab, daemon, stack)
        of_the_other = daemon.status()["workers"][1]["active"]
        killed: set[int] = set()
        for _ in range(DEATHS_IN_A_ROW):
            pid = first_worker(daemon, killed)
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        daemon.expect_end(1)
        last = daemon.log.splitlines()[-1]
        times = f"worker 0 failed {DEATHS_IN_A_ROW} times in a row"
        assert re.fullmatch(rf"tnat64d: {times}, the last time it \(pid \d+\) ended by signal 9 .*", last), last
        assert sum(map(was_reset, socks)) >= of_the_other


def first_worker(daemon: Daemon, known: set[int]) -> int:
    """Wait until its pid is none of `known`."""
    return wait_until(lambda: {daemon.worker_pids()[0]} - known, "there is a new worker").pop()


def was_reset(sock: socket.socket) -> bool:
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def test_a_worker_that_hangs_does_not_keep_the_daemon_from_ending(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon:
        hung, other = daemon.worker_pids()
        os.kill(hung, signal.SIGSTOP)
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_alive(other), "the other worker ends")
        started = time.monotonic()
        daemon.stop()  # the second signal
        assert seconds_of(started) < 5


IMPATIENT = """
import sys
from tnat64d.cli.main import main
from tnat64d.daemon import supervisor
supervisor.PING_INTERVAL_S, supervisor.HANG_TIMEOUT_S = 0.2, 3.0
sys.exit(main())
"""


def test_a_worker_that_hangs_is_killed_and_replaced_without_a_service_manager(ideal_lab: IdealNat64Lab) -> None:
    daemon = Daemon(
        ideal_lab.client,
        ideal_lab.directory,
        settings={"proxy": {"workers": 2}},
        program=(sys.executable, "-c", IMPATIENT),
    )
    with daemon, contextlib.ExitStack() as stack:
        connect_to_each_worker(ideal_lab, daemon, stack)
        hung, other = daemon.worker_pids()
        os.kill(hung, signal.SIGSTOP)
        daemon.wait_for_log(rf"worker 0 \(pid {hung}\) does not answer: it is killed")
        daemon.wait_for_log(rf"worker 0 \(pid {hung}\) ended by signal 9 .*; a new one is started")
        wait_until(lambda: daemon.worker_pids()[0] not in (hung, None), "the worker is replaced")
        assert daemon.worker_pids()[1] == other
        for _ in range(10):
            with dial(ideal_lab.client, Port.ECHO) as sock:
                echo(sock)
        assert daemon.log.count("does not answer") == 1


def test_what_one_worker_learns_the_other_knows(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon, contextlib.ExitStack() as stack:
        stack.enter_context(dial(ideal_lab.client, Port.ECHO)).close()
        daemon.wait_for_log("all destinations go through NAT64 from now on")
        wait_until(lambda: daemon.status()["sticky"] == [None], "the supervisor knows")
        socks = connect_to_each_worker(ideal_lab, daemon, stack)
        for sock in socks:
            sock.close()
        wait_until(lambda: daemon.log.count("(NAT64 sticky)") == len(socks), "every one of them was sticky")
        assert daemon.log.count("go through NAT64 from now on") == 1


def test_the_counters_add_up(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab) as daemon, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(dial(ideal_lab.client, Port.ECHO)) for _ in range(20)]
        for size_bytes, sock in enumerate(socks, start=1):
            echo(sock, b"x" * size_bytes)
        assert daemon.total("active") == 20
        for sock in socks[:15]:
            sock.close()
        for _ in range(3):
            expect_reset(ideal_lab.client, Port.REFUSED)
        expect_refused(ideal_lab.client, 6464, "127.0.0.1")
        for counter, value in (("relayed_nat64", 15), ("refused", 3), ("not_captured", 1), ("active", 5)):
            daemon.wait_for_total(counter, value)
        shown = daemon.status()
        total, workers = shown["total"], shown["workers"]
        assert total["accepted"] == 23 == total["relayed_nat64"] + total["refused"] + total["active"]
        assert total["up_bytes"] == total["down_bytes"] == sum(range(1, 16))
        assert total["relayed_ipv4"] == total["reset"] == total["accept_pauses"] == 0
        assert total == {counter: sum(worker[counter] for worker in workers) for counter in total}


def test_a_destination_without_prefix_is_said_once_for_all_workers(ideal_lab: IdealNat64Lab) -> None:
    conf = "path {\nsubnet = 198.51.100.10/32\nnat64_prefix = 2001:db8:64::\n}\n"
    settings = {"proxy": {"workers": 2}}
    with Daemon(ideal_lab.client, ideal_lab.directory, conf=conf, settings=settings) as daemon:
        for _ in range(2):
            for last in range(20, 40):
                expect_reset(ideal_lab.client, Port.ECHO, f"198.51.100.{last}")
            said = re.findall(r"198\.51\.100\.\d+:7 is tried by IPv4 only: no prefix", daemon.log)
            daemon.run("reload")
        assert len(said) == 2


def test_connections_are_limited_by_what_is_configured_and_by_descriptors() -> None:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = (descriptors - 100) // 2
    assert connection_limit(0, workers=1) == connection_limit(0, workers=8) == possible
    assert connection_limit(possible + 1, workers=1) == possible
    assert connection_limit(100, workers=1) == 100
    assert connection_limit(100, workers=3) == 34


def test_a_share_of_a_limit_is_rounded_up_and_none_stays_none() -> None:
    assert [share(limit, workers=4) for limit in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_every_queue_has_one_worker_and_every_worker_a_queue(workers: int) -> None:
    settings = Settings(proxy=Proxy(connect="honest"), rules=Rules(queue=100))
    queues = [queues_of(slot, workers, settings) for slot in range(workers)]
    assert sorted(queue for own in queues for queue in own) == list(range(100, 108))
    assert all(queues)


def test_where_connects_are_plain_no_worker_has_a_queue() -> None:
    assert queues_of(0, 2, Settings()) == ()
