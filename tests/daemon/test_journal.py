"""What is in the log, where it goes, and how much of it there is."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import IdealNat64Lab, Port, wait_until
from tests.lab.daemon import CONF, Daemon, dial, echo, expect_reset
from tnat64d.daemon import journal

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} tnat64d(\[\d+\])?: (DEBUG|INFO|WARNING|ERROR): \S.*")


def daemon_in(lab: IdealNat64Lab, command: str, *arguments: str, **environ: str) -> Daemon:
    return Daemon(lab.client, lab.directory, command=command, env=environ, arguments=arguments)


@pytest.mark.parametrize(
    ("level", "options", "shown"),
    [
        ("-1", (), set()),
        ("0", (), {"ERROR"}),
        ("1", (), {"INFO", "ERROR"}),
        ("", (), {"INFO", "ERROR"}),
        ("much", (), {"INFO", "ERROR"}),
        ("2", (), {"DEBUG", "INFO", "ERROR"}),
        ("99", (), {"DEBUG", "INFO", "ERROR"}),
        ("-1", ("-v",), {"DEBUG", "INFO", "ERROR"}),
    ],
)
def test_tnat64_debug_says_how_much_is_logged(
    ideal_lab: IdealNat64Lab, level: str, options: tuple[str, ...], shown: set[str]
) -> None:
    daemon = daemon_in(ideal_lab, "serve", *options, TNAT64_DEBUG=level)
    daemon.start()
    wait_until(lambda: Path(daemon.control_socket).exists(), "the supervisor is there")
    daemon.conf.write_text("nonsense\n")
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.run("reload").returncode == 78  # answered after the one before it
    expect_reset(ideal_lab.client, 6464, "127.0.0.1")
    daemon.wait_for_total("not_captured", 1)
    daemon.stop()
    assert set(re.findall(r" (DEBUG|INFO|WARNING|ERROR): ", daemon.log)) == shown
    assert len(daemon.log) < 2000  # the libraries' own debugging is not asked for


def test_every_line_has_time_process_and_level(ideal_lab: IdealNat64Lab) -> None:
    with daemon_in(ideal_lab, "up") as daemon:
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
        daemon.wait_for_total("relayed_nat64", 1)
        daemon.stop()
        lines = daemon.log.splitlines()
        assert len(lines) == 5
        for line in lines:
            assert LINE.fullmatch(line), line


def test_tnat64_debug_file_has_the_log_of_all_processes(ideal_lab: IdealNat64Lab) -> None:
    path = ideal_lab.directory / "debug.log"
    path.write_text("what was there before\n")
    daemon = daemon_in(ideal_lab, "up", TNAT64_DEBUG_FILE=str(path))
    daemon.start()
    wait_until(lambda: "ready: " in path.read_text(), "the daemon is ready")
    with dial(ideal_lab.client, Port.ECHO) as sock:
        echo(sock)
    daemon.wait_for_total("relayed_nat64", 1)
    daemon.stop()
    assert daemon.log == ""
    before, *lines = path.read_text().splitlines()
    assert before == "what was there before"
    assert all(map(LINE.fullmatch, lines))
    assert {"tnat64d:", "via"} <= set(" ".join(lines).split())


@pytest.mark.parametrize("path", ["/nonexistent/debug.log", "/proc/self"])
def test_a_debug_file_that_cannot_be_written_is_told_and_does_not_matter(
    ideal_lab: IdealNat64Lab, path: str
) -> None:
    with daemon_in(ideal_lab, "serve", TNAT64_DEBUG_FILE=path) as daemon:
        assert f"TNAT64_DEBUG_FILE: cannot write to {path}" in daemon.log


def test_a_full_disk_loses_the_log_and_nothing_else(ideal_lab: IdealNat64Lab) -> None:
    daemon = daemon_in(ideal_lab, "serve", TNAT64_DEBUG_FILE="/dev/full")
    daemon.start()
    wait_until(lambda: Path(daemon.control_socket).exists(), "the supervisor is there")
    wait_until(lambda: daemon.status()["state"] == "serving", "the daemon is ready")
    daemon.stop()
    assert daemon.log == ""


def test_tnat64_conf_file_names_the_configuration(ideal_lab: IdealNat64Lab) -> None:
    path = ideal_lab.directory / "elsewhere.conf"
    path.write_text(f"local = 10.0.0.0/8\n{CONF}")
    daemon = Daemon(ideal_lab.client, ideal_lab.directory, command="serve", env={"TNAT64_CONF_FILE": str(path)})
    daemon.command = tuple(word for word in daemon.command if word not in ("-f", str(daemon.conf)))
    with daemon:
        assert "1 local networks" in daemon.status()["summary"]


@contextlib.contextmanager
def standard_error(path: Path) -> Iterator[Path]:
    """Standard error is the file `path`; logging is as before afterwards."""
    root, own = logging.getLogger(), logging.getLogger("tnat64d")
    handlers, levels = root.handlers[:], (root.level, own.level)
    with path.open("w") as file, contextlib.redirect_stderr(file):
        yield path
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def test_under_systemd_each_line_begins_with_its_priority_and_has_no_time_of_its_own(tmp_path: Path) -> None:
    with standard_error(tmp_path / "journal") as path:
        stat = path.stat()
        journal.configure({"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}, verbose=True)
        logger = logging.getLogger("tnat64d.test")
        logger.debug("one")
        logger.info("two")
        logger.warning("three")
        logger.error("four\nlines")
    assert path.read_text() == "<7>one\n<6>two\n<4>three\n<3>four\n<3>lines\n"


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense"])
def test_the_journal_of_somebody_else_is_none(tmp_path: Path, stream: str) -> None:
    with standard_error(tmp_path / "stderr") as path:
        journal.configure({"JOURNAL_STREAM": stream}, verbose=False)
        logging.getLogger("tnat64d.test").info("one")
    assert LINE.fullmatch(path.read_text().rstrip("\n"))
