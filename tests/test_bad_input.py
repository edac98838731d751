"""What is wrong with a file, an argument or a host is told in clear sentences, and nothing is left behind.

Every command runs through `run_cli` or `Daemon`, which do not let a traceback pass.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import IdealNat64Lab, Port, wait_until
from tests.lab.daemon import (
    CONF,
    PROGRAM,
    Daemon,
    as_toml,
    dial,
    echo,
    expect_reset,
    iptables_after,
    run_cli,
    seconds_of,
    snapshot,
)

pytestmark = pytest.mark.netns("iptables-nft", "nft", "setpriv")

NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", *PROGRAM)
NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *PROGRAM)
SOON_S = 15  # on a busy machine; what is not linear in the file's size takes minutes
MIB = 1 << 20


@pytest.fixture(autouse=True)
def kernel_state_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing here may leave anything in the kernel of `lab`."""
    if "lab" not in request.fixturenames:
        yield
        return
    host = request.getfixturevalue("lab").client
    before = snapshot(host)
    yield
    assert snapshot(host) == before


class Files:
    """A tnat64.conf and a tnat64d.toml that are right, until a test says otherwise."""

    def __init__(self, directory: Path) -> None:
        self.conf = directory / "tnat64.conf"
        self.settings = directory / "tnat64d.toml"
        self.control_socket = directory / "control.sock"
        self.conf.write_text(CONF)
        self.set()

    def set(self, **tables: dict[str, object]) -> None:
        self.settings.write_text(as_toml({"control": {"socket": str(self.control_socket)}, **tables}))

    def arguments(self, command: str) -> tuple[str, ...]:
        return (command, "-f", str(self.conf), "-c", str(self.settings))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def expect(done: subprocess.CompletedProcess[str], exit_code: int, *sentences: str) -> None:
    """Require the exit code, and sentences of a length that people read, on standard error only."""
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert 0 < len(lines) <= 22
    assert max(map(len, lines)) < 500
    assert done.stderr.isascii() or done.stderr.replace("\n", "").isprintable()
    for sentence in sentences:
        assert sentence in done.stderr


# Files

JUNK = {
    "words": b"this is not a configuration file\n",
    "binary": random.Random(1).randbytes(100_000),
    "zeros": bytes(MIB),
    "a line of a megabyte": b"x" * MIB,
    "a value of a megabyte": b"port = " + b"1" * MIB,
    "a megabyte of lines": b"x = [\n" * (MIB // 6),
    "a long dotted key": b"a." * (1 << 12) + b"a = 1",
    "Windows": b"local = 10.0.0.0/8\r\n\r\n",
    "UTF-16": "nat64_prefix = 64:ff9b::\n".encode("utf-16"),
    "terminal control": b"\x1b[2Jnat64_prefix = \x1b]0;owned\x07\n",
}


@pytest.mark.parametrize("junk", JUNK)
def test_junk_for_a_configuration(lab: IdealNat64Lab, files: Files, junk: str) -> None:
    files.conf.write_bytes(JUNK[junk])
    started = time.monotonic()
    expect(run_cli(lab.client, *files.arguments("serve")), 78, f"{files.conf}:1:")
    assert seconds_of(started) < SOON_S


@pytest.mark.parametrize("junk", sorted(JUNK.keys() - {"Windows"}))
def test_junk_for_settings(lab: IdealNat64Lab, files: Files, junk: str) -> None:
    files.settings.write_bytes(JUNK[junk])
    started = time.monotonic()
    expect(run_cli(lab.client, *files.arguments("serve")), 78, f"{files.settings}:")
    assert seconds_of(started) < SOON_S


@pytest.mark.parametrize(
    "command", ["up", "serve", "setup", "check", "why", "teardown", "status", "reload", "drain"]
)
def test_every_command_finds_the_mistakes_of_the_files_it_reads(
    lab: IdealNat64Lab, files: Files, command: str
) -> None:
    operands = ("192.0.2.1",) if command == "why" else ()
    if command in ("up", "serve", "setup", "check", "why"):
        files.conf.write_text("nonsense")
        expect(
            run_cli(lab.client, *files.arguments(command), *operands), 78, f"{files.conf}:1:1: unknown directive"
        )
    files.settings.write_text("[proxy]\nport = 'http'")
    expect(
        run_cli(lab.client, command, "-c", str(files.settings), *operands), 78, f"{files.settings}: proxy.port: "
    )


def make_nothing(path: Path) -> None:
    pass


def make_directory(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_unreadable(path: Path) -> None:
    path.write_text(CONF)
    os.chown(path, 65534, 65534)
    path.chmod(0o600)


def make_unreachable(path: Path) -> None:
    path.parent.joinpath("closed").mkdir()
    make_unreadable(path.parent / "closed" / "file")
    os.chown(path.parent / "closed", 65534, 65534)
    path.parent.joinpath("closed").chmod(0o700)
    path.symlink_to("closed/file")


UNREADABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (make_nothing, "there is no such file"),
    "a dangling link": (make_dangling, "there is no such file"),
    "a directory": (make_directory, "cannot be read: Is a directory"),
    "a loop of links": (make_loop, "cannot be read: Too many levels of symbolic links"),
    "somebody else's": (make_unreadable, "cannot be read: Permission denied"),
    "in somebody else's directory": (make_unreachable, "cannot be read: Permission denied"),
}


@pytest.mark.parametrize("which", ["conf", "settings"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_cannot_be_read(lab: IdealNat64Lab, files: Files, kind: str, which: str) -> None:
    path: Path = getattr(files, which)
    path.unlink()
    make, sentence = UNREADABLE[kind]
    make(path)
    done = run_cli(lab.client, *files.arguments("check"), program=NO_CAPABILITIES)
    expect(done, 78, f"{path}: {sentence}")


def test_a_name_that_is_too_long_for_a_file(lab: IdealNat64Lab) -> None:
    expect(run_cli(lab.client, "check", "-f", "x" * 300), 78, "cannot be read: File name too long")


def test_an_endless_file(lab: IdealNat64Lab, files: Files) -> None:
    for option in ("-f", "-c"):
        done = run_cli(lab.client, *files.arguments("check"), option, "/dev/zero")
        expect(done, 78, "/dev/zero: has more than ", " characters: name the right file")


def test_every_problem_of_a_file_is_told_at_once(lab: IdealNat64Lab, files: Files) -> None:
    files.conf.write_text("local = 10.0.0.1/8\nnonsense\nnat64_prefix = 192.0.2.1\npath {\n")
    done = run_cli(lab.client, *files.arguments("serve"))
    expect(done, 78)
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == ["1", "2", "3", "4"]


# Arguments


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("--nonsense",),
        ("up", "now"),
        ("serve", "--dry-run"),
        ("check", "-t"),
        ("check", "--json"),
        ("check", "-t", ""),
        ("check", "-t", ":80"),
        ("check", "-t", "192.0.2.1:"),
        ("check", "-t", "192.0.2.1:0"),
        ("check", "-t", "192.0.2.1:65536"),
        ("check", "-t", "192.0.2.1:" + "9" * 5000),
        ("check", "-t", "192.0.2.1:\N{ARABIC-INDIC DIGIT ONE}"),
        ("check", "-t", "2001:db8::1"),
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_what_cannot_be_acted_on_is_wrong_usage(
    lab: IdealNat64Lab, files: Files, arguments: tuple[str, ...]
) -> None:
    if arguments and arguments[0] == "check":
        arguments = (*files.arguments("check"), *arguments[1:])
    done = run_cli(lab.client, *arguments)
    assert done.returncode == 2
    assert done.stderr


@pytest.mark.parametrize("name", ["nonexistent.invalid", "a..b", "x" * 300, "256.1.1.1", "\udcff", "-"])
def test_a_name_without_address_is_unavailable(lab: IdealNat64Lab, files: Files, name: str) -> None:
    expect(run_cli(lab.client, *files.arguments("check"), "-t", name), 69, "has no IPv4 address")


# The host


def test_a_port_that_is_taken(lab: IdealNat64Lab, files: Files) -> None:
    with lab.client.socket() as other:
        other.bind(("127.0.0.1", 6464))
        other.listen()
        for command in ("up", "serve"):
            expect(
                run_cli(lab.client, *files.arguments(command)), 1, "port 6464 on 127.0.0.1 is taken", "proxy.port"
            )


@pytest.mark.parametrize("program", [NO_CAPABILITIES, NOBODY], ids=["root without capabilities", "nobody"])
@pytest.mark.parametrize("command", ["up", "serve", "setup", "teardown"])
def test_privileges_that_are_missing(
    lab: IdealNat64Lab, files: Files, command: str, program: tuple[str, ...]
) -> None:
    files.conf.parent.chmod(0o755)
    for parent in files.conf.parents[1:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    arguments = files.arguments(command) if command != "teardown" else ("teardown", "-c", str(files.settings))
    expect(run_cli(lab.client, *arguments, program=program), 77, "CAP_NET_")


@pytest.mark.parametrize("program", ["no-such-program", "/etc/passwd", "/"])
def test_an_iptables_that_is_not_there(lab: IdealNat64Lab, files: Files, program: str) -> None:
    files.set(rules={"iptables": program})
    for command in ("up", "setup"):
        done = run_cli(lab.client, *files.arguments(command))
        lines = [line for line in done.stderr.splitlines() if " INFO: " not in line]
        assert done.returncode == 77
        assert len(lines) == 1
        assert f"cannot run {program}-save: install the package iptables" in lines[0]


def test_a_path_without_iptables(lab: IdealNat64Lab, files: Files) -> None:
    programs = files.conf.with_name("bin")
    programs.mkdir()
    files.set(rules={"backend": "iptables"})
    for command in ("up", "setup", "teardown"):
        arguments = files.arguments(command) if command != "teardown" else ("teardown", "-c", str(files.settings))
        done = run_cli(lab.client, *arguments, env={"PATH": str(programs)})
        assert done.returncode == 77
        assert "cannot run iptables-save: install the package iptables" in done.stderr


def test_an_iptables_that_fails(lab: IdealNat64Lab, files: Files) -> None:
    files.set(rules={"iptables": "/bin/false"})
    program = files.conf.parent / "broken"
    for suffix in ("save", "restore"):
        path = Path(f"{program}-{suffix}")
        path.write_text("#!/bin/sh\necho the table is on fire >&2; exit 3\n")
        path.chmod(0o755)
    files.set(rules={"iptables": str(program)})
    for command in ("up", "setup"):
        done = run_cli(lab.client, *files.arguments(command))
        assert done.returncode == 1
        assert "the table is on fire" in done.stderr


def test_rules_that_cannot_be_taken_away_are_told_and_left_to_teardown(ideal_lab: IdealNat64Lab) -> None:
    flag = ideal_lab.directory / "fail"
    script = f"if [ -e {flag} ]; then rm {flag}; echo the table is on fire >&2; exit 3; fi"
    settings = {"rules": {"iptables": iptables_after(ideal_lab.directory, script)}}
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=settings, leaves_kernel_as_found=False) as daemon:
        flag.touch()
        daemon.stop(exit_code=1)
        assert "the table is on fire" in daemon.log
        assert daemon.run("teardown").returncode == 0
        assert snapshot(ideal_lab.client) == daemon.before


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("file", "there is something else of this name"),
        ("directory", "there is something else of this name"),
        ("file/control.sock", "File exists"),
        ("loop/control.sock", "File exists"),
    ],
)
def test_a_control_socket_that_cannot_be_made(lab: IdealNat64Lab, files: Files, place: str, sentence: str) -> None:
    # Nothing that is not the test's own: a daemon with a mistake in it would take it away.
    directory = files.conf.parent
    (directory / "file").write_text("precious")
    (directory / "directory").mkdir()
    (directory / "loop").symlink_to("loop")
    path = directory / place
    files.set(control={"socket": str(path)})
    for command in ("up", "serve"):
        done = run_cli(lab.client, *files.arguments(command))
        expect(done, 1, f"cannot make the control socket {path}: {sentence}; set control.socket in tnat64d.toml")
    assert (directory / "file").read_text() == "precious"


def test_a_control_socket_without_the_right_to_make_one(lab: IdealNat64Lab, files: Files) -> None:
    directory = files.conf.parent / "somebody else's"
    directory.mkdir(mode=0o755)
    os.chown(directory, 65534, 65534)
    files.set(control={"socket": str(directory / "control.sock")})
    program = ("setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all", *PROGRAM)
    expect(
        run_cli(lab.client, *files.arguments("serve"), program=program), 1, "control.sock: Permission denied; set"
    )


@pytest.mark.parametrize("command", ["up", "serve"])
def test_a_second_daemon_leaves_the_first_and_its_rules_alone(ideal_lab: IdealNat64Lab, command: str) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory) as first:
        standing = snapshot(ideal_lab.client)
        for port, sentence in (
            (6465, f"another tnat64d is running: it answers at {first.control_socket}"),
            (6464, "port 6464 on 127.0.0.1 is taken"),
        ):
            settings = first.directory / "second.toml"
            settings.write_text(as_toml({"control": {"socket": first.control_socket}, "proxy": {"port": port}}))
            done = run_cli(ideal_lab.client, command, "-f", str(first.conf), "-c", str(settings))
            # Before the control socket, `up` takes the device that only one can have.
            expect(done, 1, "another tnat64d runs here" if (command, port) == ("up", 6465) else sentence)
            assert snapshot(ideal_lab.client) == standing
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
        assert first.run("status").returncode == 0


def test_a_host_without_an_ipv6_route_refuses_and_serves_when_there_is_one(ideal_lab: IdealNat64Lab) -> None:
    ideal_lab.ip("client", "route del ::/0")
    with Daemon(ideal_lab.client, ideal_lab.directory, leaves_kernel_as_found=False) as daemon:
        started = time.monotonic()
        for _ in range(3):
            expect_reset(ideal_lab.client, Port.ECHO)
        assert seconds_of(started) < 1
        daemon.wait_for_log("refused: IPv4: Network is unreachable, NAT64: Network is unreachable")
        ideal_lab.ip("client", "route add ::/0 via 2001:db8:1::1")
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)


@pytest.mark.parametrize("loopback", ["up", "down"])
def test_a_host_without_any_network(lab: IdealNat64Lab, files: Files, loopback: str) -> None:
    command = f"ip link set lo {loopback}; exec {' '.join(PROGRAM)} {' '.join(files.arguments('up'))}"
    program = ("unshare", "-n", "sh", "-c", command)
    process = lab.client.start(program)
    if loopback == "up":
        process.wait_for_output("ready: ")
        assert process.terminate() == 0
    else:
        assert process.wait() == 69
        assert "the loopback device is down: ip link set lo up" in process.stderr
    assert "Traceback" not in process.stderr


def test_few_file_descriptors(ideal_lab: IdealNat64Lab) -> None:
    program = ("prlimit", "--nofile=110:110", *PROGRAM)
    settings = {"proxy": {"workers": 1}}
    with Daemon(ideal_lab.client, ideal_lab.directory, program=program, settings=settings) as daemon:
        socks = [dial(ideal_lab.client, Port.ECHO) for _ in range(20)]
        for sock in socks:
            sock.sendall(b"!")
        for sock in socks:  # five at a time; the others wait
            assert sock.recv(1) == b"!"
            sock.close()
        daemon.wait_for_total("relayed_nat64", 20)


# Standard streams

STREAMS = {
    "no input": "<&-",
    "no output": ">&-",
    "neither": "<&- >&-",
    "none": "<&- >&- 2>&-",
    "a full disk": ">/dev/full",
    "all full": ">/dev/full 2>&1",
}


@pytest.mark.parametrize("redirection", STREAMS.values(), ids=STREAMS.keys())
def test_a_daemon_whose_standard_streams_are_closed_serves(ideal_lab: IdealNat64Lab, redirection: str) -> None:
    program = ("sh", "-c", f'exec "$@" {redirection}', "sh", *PROGRAM)
    env = {"TNAT64_DEBUG_FILE": str(ideal_lab.directory / "log")}
    settings = {"proxy": {"workers": 2}}
    daemon = Daemon(ideal_lab.client, ideal_lab.directory, settings=settings, program=program, env=env)
    daemon.start()
    log = ideal_lab.directory / "log"
    wait_until(lambda: log.exists() and "ready: " in log.read_text(), "the daemon is ready")
    for _ in range(5):
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
    daemon.stop()
    assert "Traceback" not in log.read_text()
    assert daemon.log == daemon.process.stdout == ""
