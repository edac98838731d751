"""Users, groups and units by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tnat64d.errors import ConfigurationError
from tnat64d.kernel.accounts import cgroup_of_unit, lookup


def test_users_and_groups_are_found_by_name_and_by_number() -> None:
    known = lookup("t.toml")
    assert (known.uid("root"), known.uid("1234")) == (0, 1234)
    assert (known.gid("root"), known.gid("1234")) == (0, 1234)


def test_a_name_that_does_not_exist_is_told_with_file_and_table() -> None:
    known = lookup("t.toml")
    with pytest.raises(ConfigurationError) as caught:
        known.uid("nosuchuser")
    assert caught.value.problems == ("t.toml: scope: there is no user 'nosuchuser' on this host",)
    with pytest.raises(ConfigurationError) as caught:
        known.gid("nosuchgroup")
    assert caught.value.problems == ("t.toml: scope: there is no group 'nosuchgroup' on this host",)


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program there is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\necho "/asked/$5"\n')
    program.chmod(0o755)
    return program


def test_systemd_is_asked_for_the_control_group_of_a_unit(systemctl: Path) -> None:
    assert cgroup_of_unit("backup.service") == "asked/backup.service"


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        ("backup.service", "system.slice/backup.service"),
        ("user.slice", "user.slice"),
        ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
    ],
)
def test_where_systemd_does_not_answer_the_unit_is_where_it_would_be(
    systemctl: Path, unit: str, path: str
) -> None:
    systemctl.write_text("#!/bin/sh\nexit 1\n")
    assert cgroup_of_unit(unit) == path
    systemctl.unlink()
    assert cgroup_of_unit(unit) == path
