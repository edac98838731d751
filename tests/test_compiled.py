"""The same program with its data plane compiled: the tests of the data plane and of whole connections hold for it.

They run in a copy of the tests beside the compiled package, since whatever is tested is imported from there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/core/test_policy.py",
    "tests/daemon/test_bookkeeping.py",
    "tests/proxy",
    "tests/test_end_to_end.py",
    "tests/test_rewritten_mark.py",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose package is compiled."""
    subprocess.run(["make", "--silent", ".stamps/compiled"], cwd=ROOT, check=True, timeout=300)
    tree = tmp_path_factory.mktemp("compiled") / "tnat64d"
    shutil.copytree(ROOT / ".stamps/compiled", tree)
    for name in ("tests", "etc", "man", "systemd"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


@pytest.mark.netns("gcc", "make", "tayga", "iptables")
@pytest.mark.timeout(600)
def test_the_compiled_data_plane_passes_the_same_tests(tree: Path) -> None:
    is_compiled = "import tnat64d.proxy.relay as relay; print(relay.__file__)"
    imported = subprocess.run(
        [sys.executable, "-c", is_compiled], cwd=tree, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(rf"{re.escape(str(tree))}/tnat64d/proxy/relay\.[^/]+\.so\n", imported.stdout)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not interpreted", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
