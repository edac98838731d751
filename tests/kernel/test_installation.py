"""A whole ruleset in a real kernel: what it does to connections, and that it comes and goes as one."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.kernel.bare_host import BACKENDS, EXEMPT, backend, ip, own_traces, ruleset, run_python, standing
from tests.kernel.test_iptables import FOREIGN
from tests.kernel.test_routes import FOREIGN as FOREIGN_ROUTES
from tests.lab import Lab, Namespace
from tnat64d.core.settings import Mode
from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError
from tnat64d.kernel import installation
from tnat64d.kernel.installation import Installation

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")

HOST = "198.51.100.1"
SERVER = "198.51.100.10"
DNAT_TARGET = "198.51.100.77"  # of tests.kernel.test_iptables.FOREIGN
AT_ONCE_S = 0.9  # a SYN that got no answer is sent again after 1 s


@pytest.fixture(params=(*BACKENDS, "nftables"))
def program(request: pytest.FixtureRequest) -> str:
    """Each backend there is."""
    name: str = request.param
    return name


def install(host: Namespace, mode: Mode, program: str = "iptables-nft") -> None:
    host.call(Installation(backend(program)).install, ruleset(mode))


def remove(host: Namespace, program: str = "iptables-nft") -> None:
    host.call(Installation(backend(program)).remove)


def add_foreign_state(host: Namespace, program: str) -> None:
    host.run([f"{program.replace('nftables', 'iptables-nft')}-restore"], input=FOREIGN)
    ip(host, *FOREIGN_ROUTES)


def error_of_connect(
    host: Namespace, address: str, kind: int = socket.SOCK_STREAM, protocol: int = 0, mark: int = 0
) -> int:
    """The errno of connect(2), 0 for connected. Raises TimeoutError if that is not known at once."""
    with host.socket(socket.AF_INET, kind, protocol) as sock:
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.settimeout(AT_ONCE_S)
        try:
            sock.connect((address, 80))
        except TimeoutError:
            raise
        except OSError as error:
            return error.errno or -1
        return 0


class TwoHosts(Lab):
    """Two hosts on one IPv4 network."""

    roles = ("host", "neighbour")

    def build(self) -> None:
        """Wire them."""
        self.link("host", "eth0", "neighbour", "eth0")
        self.ip("host", f"addr add {HOST}/24 dev eth0", "link set eth0 up")
        self.ip("neighbour", f"addr add {SERVER}/24 dev eth0", "link set eth0 up")


def listen(host: Namespace, address: str, port: int) -> socket.socket:
    listener = host.socket()
    listener.settimeout(5)
    listener.bind((address, port))
    listener.listen()
    return listener


def connected(host: Namespace, address: str, port: int) -> socket.socket:
    sock = host.socket()
    sock.settimeout(5)
    sock.connect((address, port))
    return sock


def assert_carries(client: socket.socket, server: socket.socket) -> None:
    """What one sends arrives at the other, both ways."""
    for sender, receiver in ((client, server), (server, client)):
        sender.sendall(b"hello")
        receiver.settimeout(5)
        assert receiver.recv(5) == b"hello"


def test_installing_and_removing_leaves_everything_as_it_was(host: Namespace, program: str, mode: Mode) -> None:
    add_foreign_state(host, program)
    before = standing(host)
    install(host, mode, program)
    assert standing(host) != before
    remove(host, program)
    assert standing(host) == before
    remove(host, program)
    assert standing(host) == before


def test_a_change_of_mode_is_the_same_as_starting_in_that_mode(host: Namespace, program: str) -> None:
    add_foreign_state(host, program)
    install(host, Mode.TPROXY, program)
    expected = standing(host)
    install(host, Mode.REDIRECT, program)
    assert standing(host) != expected
    install(host, Mode.TPROXY, program)
    assert standing(host) == expected


def test_the_plan_run_by_a_shell_makes_what_install_makes(host: Namespace, program: str, mode: Mode) -> None:
    host.run([f"{program.replace('nftables', 'iptables-nft')}-restore"], input=FOREIGN)
    installation = Installation(backend(program))
    plan = host.call(installation.plan, ruleset(mode))
    host.call(installation.install, ruleset(mode))
    expected = standing(host)
    host.call(installation.remove)
    host.run(["sh", "-e"], input=plan)
    assert standing(host) == expected


def test_the_plan_of_a_removal_lists_what_stands_and_nothing_else(host: Namespace, program: str) -> None:
    add_foreign_state(host, program)
    installation = Installation(backend(program))
    assert host.call(installation.plan_removal) == ""
    host.call(installation.install, ruleset())
    plan = host.call(installation.plan_removal)
    chains = "nft delete table ip tnat64d" if program == "nftables" else "-X TNAT64D"
    for line in ("ip -4 rule del pref 32768 ", "ip -4 route del default table 6464 ", chains):
        assert line in plan
    assert "198.51.100" not in plan


def test_a_connection_to_an_exempt_network_is_refused_at_once(host: Namespace, program: str, mode: Mode) -> None:
    add_foreign_state(host, program)  # with a customary `-o lo -j ACCEPT` in filter OUTPUT
    install(host, mode, program)
    assert error_of_connect(host, EXEMPT) == errno.ECONNREFUSED


def test_a_captured_connection_is_refused_at_once_where_nobody_listens(host: Namespace) -> None:
    install(host, Mode.REDIRECT)
    assert error_of_connect(host, SERVER) == errno.ECONNREFUSED


@pytest.mark.parametrize("address", [SERVER, EXEMPT])
def test_udp_and_ping_fail_at_once(host: Namespace, mode: Mode, address: str) -> None:
    install(host, mode)
    assert error_of_connect(host, address, socket.SOCK_DGRAM) == errno.ENETUNREACH
    assert error_of_connect(host, address, socket.SOCK_RAW, socket.IPPROTO_ICMP) == errno.ENETUNREACH


def test_the_daemons_own_attempts_are_unreachable_at_once(host: Namespace, mode: Mode) -> None:
    install(host, mode)
    assert error_of_connect(host, SERVER, mark=0x6464) == errno.ENETUNREACH


def test_other_peoples_destination_nat_wins(host: Namespace, program: str, mode: Mode) -> None:
    add_foreign_state(host, program)
    install(host, mode, program)
    with (
        listen(host, "127.0.0.1", 8080) as theirs,
        connected(host, DNAT_TARGET, 80) as client,
        theirs.accept()[0] as server,
    ):
        assert_carries(client, server)


def test_loopback_and_the_hosts_own_addresses_stay_as_they_are(host: Namespace, mode: Mode) -> None:
    install(host, mode)
    for address in ("127.0.0.1", "127.1.2.3", "192.0.0.2"):
        with (
            listen(host, address, 80) as listener,
            connected(host, address, 80) as client,
            listener.accept()[0] as server,
        ):
            assert_carries(client, server)


def test_the_hosts_own_servers_stay_reachable_from_outside(mode: Mode) -> None:
    with TwoHosts() as lab:
        host, neighbour = lab.namespaces["host"], lab.namespaces["neighbour"]
        install(host, mode)
        with (
            listen(host, HOST, 22) as listener,
            connected(neighbour, HOST, 22) as client,
            listener.accept()[0] as server,
        ):
            assert_carries(client, server)


@pytest.mark.parametrize("from_here", [True, False])
@pytest.mark.parametrize("server_first", [True, False])
def test_connections_older_than_the_rules_go_on(mode: Mode, from_here: bool, server_first: bool) -> None:
    with TwoHosts() as lab:
        host, neighbour = lab.namespaces["host"], lab.namespaces["neighbour"]
        server_host, client_host = (neighbour, host) if from_here else (host, neighbour)
        address = SERVER if from_here else HOST
        with (
            listen(server_host, address, 22) as listener,
            connected(client_host, address, 22) as client,
            listener.accept()[0] as server,
        ):
            install(host, mode)
            assert_carries(server, client) if server_first else assert_carries(client, server)
            remove(host)
            assert_carries(client, server)


def test_where_loopback_is_down_nothing_is_left(host: Namespace, mode: Mode) -> None:
    ip(host, "link set lo down")
    before = standing(host)
    with pytest.raises(UnavailableError, match="ip link set lo up"):
        install(host, mode)
    assert standing(host) == before


def test_a_setup_that_fails_half_way_leaves_nothing(host: Namespace, program: str, mode: Mode) -> None:
    add_foreign_state(host, program)
    ip(host, "route add default dev lo table 6464 proto static")  # found after the chains are made
    before = standing(host)
    with pytest.raises(Tnat64Error, match="table 6464"):
        install(host, mode, program)
    assert standing(host) == before


def test_a_change_that_fails_half_way_leaves_what_was_there(host: Namespace, program: str) -> None:
    add_foreign_state(host, program)
    ip(host, "route add default dev lo table 100 proto static")
    installation = Installation(backend(program))
    host.call(installation.install, ruleset())
    before = standing(host)
    with pytest.raises(Tnat64Error, match="table 100"):
        host.call(installation.install, ruleset(Mode.TPROXY, table=100))
    assert standing(host) == before


def test_a_failure_of_iptables_leaves_nothing(host: Namespace, tmp_path: Path) -> None:
    """The first transaction is made, the second fails: iptables-restore ends a table at each COMMIT."""
    (tmp_path / "iptables-save").symlink_to("/usr/sbin/iptables-nft-save")
    script = tmp_path / "iptables-restore"
    script.write_text('#!/bin/sh\nsed "s/REJECT --reject-with tcp-reset/NONSENSE/" | iptables-nft-restore "$@"\n')
    script.chmod(0o755)
    before = standing(host)
    with pytest.raises(Tnat64Error, match="NONSENSE"):
        install(host, Mode.REDIRECT, str(tmp_path / "iptables"))
    assert standing(host) == before


def test_without_privileges_it_says_so_and_changes_nothing(host: Namespace, program: str) -> None:
    install(host, Mode.REDIRECT, program)
    before = standing(host)
    for call in ("install(ruleset(Mode.TPROXY))", "remove()"):
        code = f"""
import sys
from tests.kernel.bare_host import Mode, backend, ruleset
from tnat64d.errors import PrivilegeError
from tnat64d.kernel.installation import Installation
try:
    Installation(backend(sys.argv[1])).{call}
except PrivilegeError as error:
    print(error)
"""
        wrapper = ["setpriv", "--bounding-set=-net_admin", "--"]
        assert "CAP_NET_ADMIN" in run_python(host, code, program, wrapper=wrapper)
        assert standing(host) == before


def test_a_missing_program_changes_nothing(host: Namespace) -> None:
    before = standing(host)
    with pytest.raises(PrivilegeError, match="package iptables"):
        install(host, Mode.REDIRECT, "no-such-iptables")
    assert standing(host) == before


@pytest.mark.parametrize("what", ["install", "remove"])
def test_a_lock_that_another_keeps_is_not_waited_for_without_end(
    host: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    monkeypatch.setattr(installation, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(installation, "LOCK_TIMEOUT_S", 0.1)
    rules = Installation(backend("iptables-nft"))
    before = standing(host)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"^another process has kept .*/lock for 0\.1 s: end what"):
            host.call(rules.install, ruleset()) if what == "install" else host.call(rules.remove)
        assert standing(host) == before
    host.call(rules.install, ruleset())
    assert standing(host) != before


TAKE_TURNS = """
import sys
from tests.kernel.bare_host import Mode, backend, ruleset
from tnat64d.kernel import installation, routes
rules = installation.Installation(backend(sys.argv[1]))
rules.remove()  # everything is imported
print("ready", flush=True)
open(sys.argv[3]).close()  # waits until somebody opens the other end
for _ in range(8):
    for mode in Mode if sys.argv[2] == "installs" else ():
        rules.install(ruleset(mode))
    if sys.argv[2] == "removes":
        rules.remove()
print("done")
"""


@pytest.mark.parametrize("second", ["installs", "removes"])
def test_several_at_once_end_with_one_whole_ruleset(
    host: Namespace, program: str, second: str, tmp_path: Path
) -> None:
    install(host, Mode.TPROXY, program)
    expected = sorted(own_traces(host))
    remove(host, program)
    fifo = tmp_path / "start"
    os.mkfifo(fifo)
    arguments = [[program, what, str(fifo)] for what in ("installs", second)]
    processes = [host.start([sys.executable, "-c", TAKE_TURNS, *words]) for words in arguments]
    for process in processes:
        process.wait_for_output("^ready$")
    with fifo.open("r+b", buffering=0):
        for process in processes:
            assert process.wait(30) == 0, process.stderr
    if second == "removes":  # which of them was last is unknown
        install(host, Mode.TPROXY, program)
    assert sorted(own_traces(host)) == expected


def test_the_plan_is_empty_where_all_stands_and_else_what_is_missing(
    host: Namespace, program: str, mode: Mode
) -> None:
    installation = Installation(backend(program))
    wanted = ruleset(mode)
    host.call(installation.install, wanted)
    assert host.call(installation.plan, wanted) == ""
    ip(host, "rule del pref 32769", "address del 192.0.0.2/32 dev lo")
    assert len(host.call(installation.plan, wanted).splitlines()) >= 2
    stands = standing(host)
    plan = host.call(installation.plan, wanted)
    assert standing(host) == stands
    assert "TNAT64D" not in plan
    assert "table ip" not in plan
    host.run(["sh", "-e"], input=plan)
    assert host.call(installation.plan, wanted) == ""
    other = ruleset(mode, table=77)
    host.run(["sh", "-e"], input=host.call(installation.plan, other))
    assert host.call(installation.plan, other) == ""
    assert host.call(installation.plan, wanted) != ""
