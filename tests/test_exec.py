"""`tnat64d exec`: what it starts is carried and nothing else, and is otherwise as if it had not been there."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Nat64Lab, Port, wait_until
from tests.lab.clients import NAMES, Clients
from tests.lab.daemon import PROGRAM, Daemon, Service, Tables, is_alive, snapshot
from tests.lab.units import Units
from tests.test_scopes import ALL_WAYS, WAYS
from tests.test_scopes import PROGRAM as DIAL
from tnat64d.kernel import cgroup as cgroups
from tnat64d.kernel.owned import is_held

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv", "bash")

NOBODY = 65534
STRANGER = 12345
CONNECT = ("/usr/bin/python3", "-Ic", DIAL, SERVER_V4, str(int(Port.ECHO)))


@dataclass(frozen=True)
class World:
    """A lab in which `settings` is the file of a running daemon, readable by everybody."""

    lab: IdealNat64Lab | Nat64Lab
    settings: Path

    def run(
        self, *command: str, uid: int = 0, groups: str = "", as_it_is: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` by exec (unless `as_it_is`) as user `uid`, with the supplementary `groups`."""
        identity = ["setpriv", f"--reuid={uid}", f"--regid={uid}"]
        identity += [f"--groups={groups}" if groups else "--clear-groups"]
        identity += ["--inh-caps=-all", "--"]
        launcher = [] if as_it_is else self.launcher
        return self.lab.client.run([*identity, *launcher, *command], check=False, timeout_s=20)

    @property
    def launcher(self) -> list[str]:
        """What comes before the command."""
        return [*PROGRAM, "exec", "-c", str(self.settings), "--"]

    @property
    def group(self) -> Path:
        """Where commands are put."""
        return cgroups.root() / self.lab.client.call(cgroups.of_exec)


def service(lab: IdealNat64Lab | Nat64Lab, way: str, tables: Tables) -> Service:
    for directory in (lab.directory, made := Path(tempfile.mkdtemp(prefix="exec-", dir=lab.directory))):
        directory.chmod(0o755)
    return Service(lab.client, made, settings={**ALL_WAYS[way], **tables}, is_static=way.startswith("static"))


def world_of(lab: IdealNat64Lab | Nat64Lab, running: Service) -> World:
    running.daemon.directory.chmod(0o755)
    running.daemon.settings.chmod(0o644)
    return World(lab, running.daemon.settings)


ALLOWED: Tables = {"scope": {"exec": True}, "exec": {"users": ["nobody"], "groups": ["daemon"]}}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One daemon, in a lab of its own, for all tests that change nothing."""
    with IdealNat64Lab() as lab:
        lab.start_servers()
        with service(lab, "owned", ALLOWED) as running:
            yield world_of(lab, running)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_what_is_started_is_carried_and_everything_else_fails_at_once(lab: IdealNat64Lab, way: str) -> None:
    with service(lab, way, ALLOWED) as running:
        world = world_of(lab, running)
        assert world.run(*CONNECT).stdout == "through\n"
        assert world.run("sh", "-c", '"$@"; exit 3', "sh", *CONNECT).stdout == "through\n"
        assert world.run(*CONNECT, uid=NOBODY).stdout == "through\n"
        left_alone = world.run(*CONNECT, as_it_is=True).stdout
        assert left_alone == ("ECONNREFUSED\n" if way.startswith("static") else "ENETUNREACH\n")
        assert running.daemon.total("held") == (3 if "honest" in way else 0)
    assert not world.group.exists()


@pytest.mark.parametrize("way", ALL_WAYS)
def test_it_is_carried_though_the_scope_leaves_its_user_alone(lab: IdealNat64Lab, way: str) -> None:
    scope = {"exec": True, "users": ["root"], "not_users": ["nobody"], "not_networks": ["203.0.113.0/24"]}
    with service(lab, way, {"scope": scope, "exec": {"users": ["nobody"]}}) as running:
        world = world_of(lab, running)
        assert world.run(*CONNECT, uid=NOBODY).stdout == "through\n"
        assert world.run(*CONNECT, uid=NOBODY, as_it_is=True).stdout != "through\n"
        assert world.run(*CONNECT, as_it_is=True).stdout == "through\n"
        elsewhere = [word.replace(SERVER_V4, "203.0.113.10") for word in CONNECT]
        assert world.run(*elsewhere).stdout in ("ENETUNREACH\n", "ECONNREFUSED\n")


@pytest.mark.parametrize("name", NAMES)
def test_programs_that_nothing_can_be_preloaded_into(world: World, clients: Clients, name: str) -> None:
    done = world.run(*clients.command(name, SERVER_V4, Port.HTTP))
    assert f"peer {SERVER_V4}:{Port.HTTP:d}" in done.stderr
    assert done.returncode == 0


# Who may


def test_those_whom_exec_names_may_and_nobody_else(world: World) -> None:
    assert world.run(*CONNECT, uid=STRANGER, groups="7,1,8").stdout == "through\n"  # daemon is 1
    done = world.run("true", uid=STRANGER)
    assert done.returncode == 125
    assert done.stderr == (
        f"tnat64d: user {STRANGER} may not use exec: exec.users or exec.groups in tnat64d.toml can allow it\n"
    )


def test_a_user_that_does_not_exist_is_a_mistake_in_the_file(lab: IdealNat64Lab) -> None:
    daemon = Daemon(lab.client, lab.directory, command="serve", settings={"exec": {"users": ["nosuchuser"]}})
    daemon.start()
    daemon.expect_end(78)
    assert daemon.log == f"{daemon.settings}: exec: there is no user 'nosuchuser' on this host\n"


CAPABILITIES = "-all,+net_raw,+dac_read_search"  # the second only because of where Python and the checkout may be
AS_SERVICE = (
    *("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "--no-new-privs"),
    *(f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}", f"--bounding-set={CAPABILITIES}"),
)


@pytest.fixture
def unprivileged(lab: IdealNat64Lab) -> Daemon:
    """A daemon as the shipped unit runs it, to be started; no rules so far."""
    directory = Path(tempfile.mkdtemp(prefix="exec-", dir=lab.directory))
    for each in (lab.directory, directory):
        each.chmod(0o755)
    daemon = Daemon(
        lab.client,
        directory,
        command="serve",
        settings=ALLOWED,
        program=(*AS_SERVICE, *PROGRAM),
        leaves_kernel_as_found=False,
    )
    daemon.directory.chmod(0o755)
    os.chown(daemon.directory, STRANGER, STRANGER)
    return daemon


def test_setup_lends_a_daemon_without_root_the_way_into_the_group(
    unprivileged: Daemon, lab: IdealNat64Lab
) -> None:
    world = World(lab, unprivileged.settings)
    with unprivileged:
        done = world.run("true", uid=NOBODY)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert "tnat64d setup" in done.stderr
        try:
            for _ in range(2):  # again after a change
                assert unprivileged.run("setup", "-f", str(unprivileged.conf)).returncode == 0
                assert world.run(*CONNECT, uid=NOBODY).stdout == "through\n"
                assert world.run(*CONNECT).stdout == "through\n"
                assert world.run(*CONNECT, as_it_is=True).stdout == "ECONNREFUSED\n"
                assert world.run("true", uid=STRANGER + 1).returncode == 125
        finally:
            assert unprivileged.run("teardown").returncode == 0


def test_the_service_lends_it_again_when_somebody_has_removed_the_group(
    unprivileged: Daemon, lab: IdealNat64Lab
) -> None:
    world = World(lab, unprivileged.settings)

    def gets_through() -> bool:
        return world.run(*CONNECT, uid=NOBODY).stdout == "through\n"

    with Units(unprivileged, drop_in="exec.conf") as units:
        wait_until(gets_through, "it is lent")
        world.group.rmdir()
        units.watcher.wait_for_output(f"WARNING: the control group {world.group.name} was gone .*: restored$")
        wait_until(gets_through, "it is lent again")
        units.stop()
    assert not world.group.exists()
    assert snapshot(lab.client) == units.before


# As if it had not been there


@pytest.mark.parametrize("code", [0, 1, 42, 125, 255])
def test_the_exit_code_is_that_of_the_command(world: World, code: int) -> None:
    assert world.run("sh", "-c", f"exit {code}").returncode == code


def test_a_command_that_cannot_be_run_is_told_from_one_that_is_not_found(world: World) -> None:
    done = world.run("/etc/passwd")
    assert (done.returncode, done.stderr) == (126, "tnat64d: /etc/passwd: cannot be run: Permission denied\n")
    done = world.run("no-such-command")
    assert (done.returncode, done.stderr) == (127, "tnat64d: no-such-command: no such command\n")


@pytest.mark.parametrize("options", [[], ["--"], ["--no-such-option", "true"], ["-c"]])
def test_wrong_usage_is_not_taken_for_the_commands_exit_code(lab: IdealNat64Lab, options: list[str]) -> None:
    done = lab.client.run([*PROGRAM, "exec", *options], check=False)
    assert done.returncode == 125
    assert "Traceback" not in done.stderr


def test_options_behind_the_command_are_its_own(world: World) -> None:
    without_dashes = [*world.launcher[:-1], "echo", "-c", "--", "--help"]
    assert world.lab.client.run(without_dashes).stdout == "-c -- --help\n"
    assert world.run("echo", "-c", "--", "-n").stdout == "-c -- -n\n"


def test_the_environment_and_the_signals_are_as_they_were(world: World) -> None:
    plain = ["env", "-i", "A=b=c", "EMPTY=", f"PATH={os.environ['PATH']}"]
    told = [
        "sh",
        "-c",
        "env | grep -v ^_=; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ls -l /proc/self/fd | wc -l",
    ]
    client = world.lab.client
    assert client.run([*plain, *world.launcher, *told]).stdout == client.run([*plain, *told]).stdout


def test_a_signal_ends_the_command_and_shows_as_one(world: World) -> None:
    command = world.lab.client.start([*world.launcher, "sh", "-c", "echo started; exec sleep 60"])
    command.wait_for_output("started")
    command.send_signal(signal.SIGTERM)
    assert command.wait() == -signal.SIGTERM
    done = world.lab.client.run(
        ["sh", "-c", '"$@"', "sh", *world.launcher, "sh", "-c", "kill -TERM $$"], check=False
    )
    assert done.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


# Where it cannot be


def test_without_a_daemon_nothing_is_started(lab: IdealNat64Lab, tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(f'[control]\nsocket = "{tmp_path}/none.sock"\n')
    done = lab.client.run([*PROGRAM, "exec", "-c", str(file), "echo", "started"], check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == f"tnat64d: no tnat64d answers at {tmp_path}/none.sock: is it running?\n"


def test_where_everything_is_carried_a_command_simply_runs(lab: IdealNat64Lab) -> None:
    with service(lab, "owned", {}) as running:
        world = world_of(lab, running)
        assert world.run(*CONNECT, uid=STRANGER).stdout == "through\n"
        assert not world.group.exists()


def test_where_the_scope_is_for_others_it_says_what_to_set(lab: IdealNat64Lab) -> None:
    with service(lab, "owned", {"scope": {"users": ["nobody"]}}) as running:
        done = world_of(lab, running).run("echo", "started")
        assert (done.returncode, done.stdout) == (125, "")
        assert "set scope.exec = true" in done.stderr


def test_in_another_network_namespace_than_the_daemons_it_says_so(world: World) -> None:
    done = world.lab.server.run([*world.launcher, "echo", "started"], check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert "another network namespace" in done.stderr


def test_where_the_hierarchy_cannot_be_written_to_the_rules_say_why(lab: IdealNat64Lab) -> None:
    daemon = Daemon(lab.client, lab.directory, settings=ALLOWED)
    mount = f"mount -o remount,bind,ro {cgroups.root()}" if os.path.ismount(cgroups.root()) else "false"
    read_only = ["unshare", "-m", "--propagation=private", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    done = lab.client.run([*read_only, *daemon.command], check=False)
    assert done.returncode == 69
    assert "Read-only file system; scope.exec needs it" in done.stderr.splitlines()[-1]


# Its life


@pytest.mark.parametrize("way", WAYS)
def test_a_command_outlives_the_rules_and_is_carried_again_by_the_next(lab: IdealNat64Lab, way: str) -> None:
    loop = f"while read _; do {shlex.join(CONNECT)}; done"
    with service(lab, way, ALLOWED) as running:
        world = world_of(lab, running)
        shell = subprocess.Popen(
            ["nsenter", f"--net={lab.client.path}", "--", *world.launcher, "sh", "-c", loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert outcome_now(shell) == "through\n"
    assert is_alive(shell.pid)
    assert outcome_now(shell) == "ENETUNREACH\n"
    with service(lab, way, ALLOWED):
        assert outcome_now(shell) == "through\n"
        shell.communicate(timeout=10)
    assert not world.group.exists()


def test_a_group_that_a_killed_daemon_left_goes_with_teardown(lab: IdealNat64Lab) -> None:
    daemon = Daemon(lab.client, lab.directory, settings=ALLOWED)
    with daemon:
        group = cgroups.root() / lab.client.call(cgroups.of_exec)
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
    assert group.exists()
    wait_until(lambda: not lab.client.call(is_held), "the kernel takes the device away")
    assert f"rmdir {group}" in daemon.run("teardown", "--dry-run").stdout
    assert daemon.run("teardown").returncode == 0
    assert not group.exists()
    assert snapshot(lab.client) == daemon.before


def test_a_dry_run_tells_of_the_group_and_leaves_none(lab: IdealNat64Lab) -> None:
    daemon = Daemon(lab.client, lab.directory, command="serve", settings=ALLOWED)
    done = daemon.run("setup", "--dry-run", "-f", str(daemon.conf))
    group = cgroups.root() / lab.client.call(cgroups.of_exec)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"mkdir -p {group}\n" in done.stdout
    assert not group.exists()


def outcome_now(shell: subprocess.Popen[str]) -> str:
    """What a connection comes to that a child of the running command opens."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write("now\n")
    shell.stdin.flush()
    return shell.stdout.readline()
