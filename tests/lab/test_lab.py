"""The labs are what they claim to be, and leave nothing behind."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import (
    CLIENT_V4,
    SERVER_V4,
    IdealNat64Lab,
    Lab,
    LabError,
    Nat64Failure,
    Nat64Lab,
    Port,
    nat64_address,
    wait_until,
)
from tests.lab.clients import NAMES, Clients
from tests.lab.namespace import RUN_DIRECTORY, Namespace, pids_in
from tests.lab.servers import BANNER, INDEX_PAGE

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def connect(namespace: Namespace, address: str, port: int, timeout_s: float = 5.0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = namespace.socket(family)
    connection.settimeout(timeout_s)
    try:
        connection.connect((address, port))
    except BaseException:
        connection.close()
        raise
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def read_exactly(connection: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        chunk = connection.recv(size_bytes - len(data))
        assert chunk, f"the stream ended after {len(data)} of {size_bytes} bytes"
        data += chunk
    return data


def processes_and_traces(lab: Lab) -> list[object]:
    """What is still there of a lab."""
    paths = [path for path in RUN_DIRECTORY.iterdir() if path.name.startswith(f"{lab.name}-")]
    return [*paths, *[pid for path in paths for pid in pids_in(path)], *[d for d in [lab.directory] if d.exists()]]


@pytest.mark.netns("curl", "tnat64")
def test_a_preloaded_curl_reaches_the_ipv4_server_through_tayga(nat64_lab: Nat64Lab) -> None:
    conf = nat64_lab.directory / "tnat64.conf"
    conf.write_text(f"nat64_prefix = {nat64_lab.prefix.removesuffix('/96')}\n")
    url = f"http://{SERVER_V4}/"
    done = nat64_lab.client.run(["tnat64", "curl", "-4sS", url], env={"TNAT64_CONF_FILE": str(conf)})
    assert done.stdout.encode() == INDEX_PAGE


def test_the_client_has_no_way_over_ipv4(nat64_lab: Nat64Lab) -> None:
    with pytest.raises(OSError, match="Network is unreachable"):
        connect(nat64_lab.client, SERVER_V4, Port.HTTP)


@pytest.mark.parametrize(
    "prefix", ["3fff:64::/32", "3fff:64::/40", "3fff:64::/48", "3fff:64::/56", "3fff:64::/64"]
)
@pytest.mark.netns("tayga", "iptables")
def test_tayga_translates_under_shorter_prefixes(prefix: str) -> None:
    with Nat64Lab(prefix=prefix) as lab:
        lab.start_servers()
        connect(lab.client, lab.server_nat64, Port.ECHO).close()


@pytest.mark.parametrize(
    ("prefix", "expected"),  # RFC 6052 section 2.4
    [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100:0"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::c000:221"),
    ],
)
def test_addresses_are_embedded_as_in_rfc_6052(prefix: str, expected: str) -> None:
    assert nat64_address("192.0.2.33", prefix) == expected


@pytest.mark.parametrize("how", [Nat64Failure.UNREACHABLE, Nat64Failure.NO_ROUTE])
def test_a_stopped_nat64_is_unreachable_at_once_until_it_is_started(
    nat64_lab: Nat64Lab, how: Nat64Failure
) -> None:
    nat64_lab.stop_nat64(how)
    for _ in range(100):  # no rate limit on ICMP errors is in the way
        with pytest.raises(OSError, match="Network is unreachable"):
            connect(nat64_lab.client, nat64_lab.server_nat64, Port.ECHO, timeout_s=0.5)
    nat64_lab.start_nat64()
    connect(nat64_lab.client, nat64_lab.server_nat64, Port.ECHO).close()


def test_a_silent_nat64_gives_no_answer_until_it_is_started(nat64_lab: Nat64Lab) -> None:
    nat64_lab.stop_nat64(Nat64Failure.SILENT)
    with pytest.raises(TimeoutError):
        connect(nat64_lab.client, nat64_lab.server_nat64, Port.ECHO, timeout_s=0.2)
    nat64_lab.start_nat64()
    connect(nat64_lab.client, nat64_lab.server_nat64, Port.ECHO).close()


def test_ipv4_of_the_client_can_be_given_dropped_rejected_and_taken(nat64_lab: Nat64Lab) -> None:
    nat64_lab.add_ipv4_to_client()
    with connect(nat64_lab.client, SERVER_V4, Port.ECHO) as connection:
        assert connection.getsockname()[0] == CLIENT_V4
    nat64_lab.blackhole_ipv4()
    with pytest.raises(TimeoutError):
        connect(nat64_lab.client, SERVER_V4, Port.ECHO, timeout_s=0.2)
    nat64_lab.reject_ipv4()
    with pytest.raises(OSError, match="Network is unreachable"):
        connect(nat64_lab.client, SERVER_V4, Port.ECHO, timeout_s=0.5)
    connect(nat64_lab.client, nat64_lab.server_nat64, Port.ECHO).close()  # not concerned
    nat64_lab.add_ipv4_to_client()
    connect(nat64_lab.client, SERVER_V4, Port.ECHO).close()
    nat64_lab.remove_ipv4_route()
    with pytest.raises(OSError, match="Network is unreachable"):
        connect(nat64_lab.client, SERVER_V4, Port.ECHO)


@pytest.mark.parametrize("name", NAMES)
def test_every_client_talks_over_ipv4_and_names_its_peer(nat64_lab: Nat64Lab, clients: Clients, name: str) -> None:
    unreachable = nat64_lab.client.run(clients.command(name, SERVER_V4, Port.HTTP), check=False)
    assert os.strerror(unreachable.returncode) == "Network is unreachable"
    nat64_lab.add_ipv4_to_client()
    refused = nat64_lab.client.run(clients.command(name, SERVER_V4, Port.REFUSED), check=False)
    assert os.strerror(refused.returncode) == "Connection refused"
    page = nat64_lab.client.run(clients.command(name, SERVER_V4, Port.HTTP))
    assert page.stdout.endswith(INDEX_PAGE.decode())
    assert page.stderr == f"peer {SERVER_V4}:{Port.HTTP}\n"
    banner = nat64_lab.client.run(clients.command(name, SERVER_V4, Port.BANNER, banner=True))
    assert banner.stdout.encode().splitlines() == BANNER.splitlines()


def test_the_setuid_client_notices_when_it_is_not_setuid(nat64_lab: Nat64Lab, clients: Clients) -> None:
    plain = [
        word.replace("setuid_root", "static_connect") for word in clients.command("setuid_root", SERVER_V4, 80)
    ]
    assert nat64_lab.client.run(plain, check=False).returncode == 202


def test_echo_returns_what_comes(ideal_lab: IdealNat64Lab) -> None:
    with connect(ideal_lab.client, ideal_lab.server_nat64, Port.ECHO) as connection:
        connection.sendall(b"one")
        assert read_exactly(connection, 3) == b"one"
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b""


def test_source_sends_the_size_asked_for_and_its_hash(ideal_lab: IdealNat64Lab) -> None:
    size_bytes = 3 * MIB + 1
    with connect(ideal_lab.client, ideal_lab.server_nat64, Port.SOURCE) as connection:
        connection.sendall(f"{size_bytes}\n".encode())
        data = read_to_end(connection)
    assert len(data) == size_bytes + 64
    assert hashlib.sha256(data[:size_bytes]).hexdigest().encode() == data[size_bytes:]


def test_sink_answers_with_size_and_hash(ideal_lab: IdealNat64Lab) -> None:
    data = os.urandom(3 * MIB + 1)
    with connect(ideal_lab.client, ideal_lab.server_nat64, Port.SINK) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection).decode() == f"{len(data)} {hashlib.sha256(data).hexdigest()}\n"


def test_half_close_answers_only_after_the_end_of_the_stream(ideal_lab: IdealNat64Lab) -> None:
    with connect(ideal_lab.client, ideal_lab.server_nat64, Port.HALF_CLOSE, timeout_s=0.1) as connection:
        connection.sendall(b"all of it")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(5.0)
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b"all of it"


def test_reset_comes_after_all_the_bytes_and_without_an_end_of_stream(ideal_lab: IdealNat64Lab) -> None:
    with connect(ideal_lab.client, ideal_lab.server_nat64, Port.RESET) as connection:
        connection.sendall(b"100000\n")
        read_exactly(connection, 100_000)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


@pytest.mark.netns("curl")
def test_http_serves_the_files_it_was_given() -> None:
    with IdealNat64Lab() as lab:
        lab.start_servers({"file": b"content"})
        done = lab.client.run(["curl", "-sS", f"http://[{lab.server_nat64}]/file"])
        assert done.stdout == "content"


def test_the_pid_of_a_started_program_is_its_own(ideal_lab: IdealNat64Lab) -> None:
    process = ideal_lab.client.start(["sh", "-c", "echo $$; exec sleep 600"])
    assert int(process.wait_for_output(r"^\d+$")[0]) == process.pid
    assert process.terminate() == -signal.SIGTERM


def test_waiting_for_output_ends_with_the_program_and_shows_what_it_wrote(ideal_lab: IdealNat64Lab) -> None:
    process = ideal_lab.client.start(["sh", "-c", "echo something else >&2; exit 3"])
    with pytest.raises(LabError, match=r"exit code 3(.|\n)*something else"):
        process.wait_for_output("ready")


def test_a_failing_command_says_what_it_printed(ideal_lab: IdealNat64Lab) -> None:
    with pytest.raises(LabError, match=r"ended with 3:\nwhy"):
        ideal_lab.client.run(["sh", "-c", "echo why >&2; exit 3"])
    assert ideal_lab.client.run(["sh", "-c", "cat; exit 3"], check=False, input="in").stdout == "in"


def test_several_labs_at_once_do_not_meet(ideal_lab: IdealNat64Lab, nat64_lab: Nat64Lab) -> None:
    with Nat64Lab() as third:
        third.start_servers()
        third.stop_nat64()
        for lab in (ideal_lab, nat64_lab):
            connect(lab.client, lab.server_nat64, Port.ECHO).close()


@pytest.mark.netns("tayga", "iptables")
def test_nothing_is_left_of_a_lab_not_even_programs_that_ignore_signals() -> None:
    with Nat64Lab() as lab:
        lab.start_servers()
        stubborn = "trap '' TERM; sleep 600 & setsid sleep 600 & echo started; wait"
        lab.client.start(["sh", "-c", stubborn]).wait_for_output("started")
        assert processes_and_traces(lab)
    assert processes_and_traces(lab) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.netns
def test_nothing_is_left_of_a_lab_that_failed_while_it_was_made(error: type[BaseException]) -> None:
    class Broken(IdealNat64Lab):
        def build(self) -> None:
            super().build()
            self.client.start(["sleep", "600"])
            raise error

    lab = Broken()
    with pytest.raises(error), lab:
        pass
    assert processes_and_traces(lab) == []


@pytest.mark.netns
def test_ctrl_c_in_a_program_with_a_lab_leaves_nothing() -> None:
    script = (
        "import signal; from tests.lab import IdealNat64Lab\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits it ignored
        "with IdealNat64Lab() as lab:\n"
        "    lab.start_servers(); print(lab.name, lab.directory, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=-1, stderr=-1, text=True) as program:
        assert program.stdout is not None
        left = Lab()
        left.name, directory = program.stdout.readline().split()
        left.directory = Path(directory)
        assert processes_and_traces(left)
        program.send_signal(signal.SIGINT)
        try:
            assert "KeyboardInterrupt" in program.communicate(timeout=10)[1]
        finally:
            program.kill()
    assert processes_and_traces(left) == []


@pytest.mark.netns
def test_the_next_run_removes_what_a_killed_one_left() -> None:
    script = (
        "import os, signal; from tests.lab import IdealNat64Lab\n"
        "with IdealNat64Lab() as lab:\n"
        "    lab.start_servers(); print(lab.name, lab.directory, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script]
    killed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    left = Lab()
    left.name, directory = killed.stdout.split()
    left.directory = Path(directory)
    assert processes_and_traces(left)
    subprocess.run([*command[:2], "from tests.lab import Lab\nwith Lab(): pass"], cwd=ROOT, check=True)
    wait_until(lambda: not processes_and_traces(left), "the left-over lab is gone")
