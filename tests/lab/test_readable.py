"""`make test` works below a directory that only root may enter."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("readable.sh")
AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--")


@pytest.mark.netns("setpriv", "unshare")
@pytest.mark.parametrize("is_locked", [False, True])
def test_nobody_can_read_where_the_command_runs(is_locked: bool) -> None:
    with tempfile.TemporaryDirectory() as home:
        checkout = Path(home, "checkout")
        checkout.mkdir()
        (checkout / "pyproject.toml").write_text("read\n")
        Path(home).chmod(0o700 if is_locked else 0o755)
        show = ("sh", "-c", 'cat pyproject.toml; echo "$PWD" "$1"', "sh", "a b")
        command = ["sh", str(SCRIPT), *AS_NOBODY, *show]
        said = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True, timeout=20).stdout
    assert said.endswith(f"read\n{'/mnt' if is_locked else checkout} a b\n")
    assert ("nobody can read" in said) is is_locked
