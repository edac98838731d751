"""pytest behaves as `tests/conftest.py` says: no silent skips in CI, both event loops, labs can be left out."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tnat64d.proxy.loop import ReactorLoop

ROOT = Path(__file__).parents[2]

SKIPPING_TESTS = """
import pytest
def test_passes(): pass
@pytest.mark.skip(reason="the reason given")
def test_is_skipped(): pass
@pytest.mark.xfail(reason="expected")
def test_is_expected_to_fail(): assert False
@pytest.mark.netns("no-such-program")
def test_needs_too_much(): pass
"""


def run_pytest(directory: Path, source: str, *options: str, ci: str = "") -> tuple[int, str]:
    """Run pytest with this project's conftest and settings on one file; returns exit code and output."""
    (directory / "test_it.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={directory}"]
    command += ["-p", "tests.conftest", "-p", "no:cacheprovider", *options, str(directory)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CI": ci}, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_skip_stays_a_skip_without_ci(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, SKIPPING_TESTS)
    assert code == 0
    assert "1 passed, 2 skipped, 1 xfailed" in output
    assert "no-such-program" in output or "needs root" in output


@pytest.mark.parametrize(("ci", "options"), [("true", ()), ("", ("--no-skips",))])
def test_a_skip_ends_in_failure_with_its_reason_in_ci(tmp_path: Path, ci: str, options: tuple[str, ...]) -> None:
    code, output = run_pytest(tmp_path, SKIPPING_TESTS, *options, ci=ci)
    assert code == 1
    assert "1 passed, 1 xfailed, 2 errors" in output
    assert "the reason given (and no test may be skipped here" in output


def test_a_module_that_skips_itself_fails_in_ci(tmp_path: Path) -> None:
    source = 'import pytest\npytest.skip("the reason given", allow_module_level=True)\n'
    code, output = run_pytest(tmp_path, source, ci="true")
    assert code == 2
    assert "the reason given (and no test may be skipped here" in output


def test_async_tests_run_on_both_loops_and_others_once(tmp_path: Path) -> None:
    source = "async def test_async(): pass\ndef test_plain(): pass\n"
    _, output = run_pytest(tmp_path, source, "--collect-only", "-q")
    names = [line.rpartition("::")[2] for line in output.splitlines() if "::" in line]
    assert names == ["test_async[asyncio]", "test_async[uvloop]", "test_plain"]


async def test_an_async_test_is_given_the_loop_it_is_named_after(request: pytest.FixtureRequest) -> None:
    name = "asyncio" if isinstance(asyncio.get_running_loop(), ReactorLoop) else "uvloop"
    assert request.node.name.endswith(f"[{name}]")


def test_tests_with_a_lab_can_be_left_out_by_marker(tmp_path: Path) -> None:
    source = "def test_lab(ideal_lab): pass\ndef test_plain(): pass\n"
    code, output = run_pytest(tmp_path, source, "-m", "not netns")
    assert code == 0
    assert "1 passed, 1 deselected" in output
