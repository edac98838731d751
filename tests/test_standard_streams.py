"""Standard streams that cannot be written to: no traceback, and an exit code that still tells."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.bare_host import BareHost
from tests.lab import Namespace, wait_until
from tests.lab.daemon import CONF, PROGRAM, Daemon

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")

BUFFERED = {"PYTHONUNBUFFERED": ""}  # as users run it: what is written may fail as late as at the end
FULL = "tnat64d: [Errno 28] No space left on device\n"


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    """For what changes nothing."""
    with BareHost() as lab:
        yield lab.host


class Shell:
    """Runs tnat64d as a shell does, with a pipe at descriptor 9 that nobody reads any more."""

    def __init__(self, host: Namespace, directory: Path) -> None:
        self._host = host
        self._fifo = directory / "fifo"
        os.mkfifo(self._fifo)
        self._conf = directory / "tnat64.conf"
        self._conf.write_text(CONF)

    def run(self, arguments: str, redirection: str) -> tuple[int, str, str]:
        """Exit code, standard output, and standard error."""
        pipe = f"exec 8<>{self._fifo} 9>{self._fifo} 8<&-"
        script = f"{pipe}; exec {shlex.join(PROGRAM)} {arguments} {redirection}"
        env = {**BUFFERED, "TNAT64_CONF_FILE": str(self._conf)}
        done = self._host.run(["sh", "-c", script], check=False, env=env)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def shell(host: Namespace, tmp_path: Path) -> Shell:
    """See `Shell`."""
    return Shell(host, tmp_path)


@pytest.mark.parametrize(
    ("redirection", "said"), [(">&9", ""), (">&9 2>&9", ""), (">/dev/full", FULL), (">/dev/full 2>&1", "")]
)
@pytest.mark.parametrize(
    "arguments", ["--help", "check --help", "--version", "check", "check -t 192.0.2.1 --json"]
)
def test_output_that_cannot_be_written_is_a_failure(
    shell: Shell, arguments: str, redirection: str, said: str
) -> None:
    assert shell.run(arguments, redirection) == (1, "", said)


@pytest.mark.parametrize("redirection", ["2>&9", "2>/dev/full", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [("--nonsense", 2), ("check -t :", 2), ("check -t nonexistent.invalid", 69), ("check -f /nonexistent", 78)],
)
def test_an_error_that_cannot_be_written_keeps_its_exit_code(
    shell: Shell, arguments: str, exit_code: int, redirection: str
) -> None:
    assert shell.run(arguments, redirection) == (exit_code, "", "")


def test_closed_streams_are_no_failure(shell: Shell) -> None:
    assert shell.run("check", "<&- >&-") == (0, "", "")
    code, told, said = shell.run("check", "<&- 2>&-")
    assert (code, said) == (0, "")
    assert "Everything else:" in told


@pytest.mark.parametrize("redirection", ["2>/dev/full", "<&- >&- 2>&-"])
def test_a_daemon_whose_log_cannot_be_written_runs_and_ends_as_any_other(tmp_path: Path, redirection: str) -> None:
    program = ("sh", "-c", f'exec "$@" {redirection}', "sh", *PROGRAM)
    with BareHost() as lab:
        daemon = Daemon(lab.host, tmp_path, program=program, env=BUFFERED)
        daemon.start()
        wait_until(lambda: Path(daemon.control_socket).exists(), "the supervisor is there")
        wait_until(lambda: daemon.status()["state"] == "serving", "it serves")
        daemon.stop()
        assert daemon.log == ""
