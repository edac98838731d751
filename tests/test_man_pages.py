"""The manual pages: free of mistakes, and tnat64d(8) has each command, option and exit code, and nothing else.

What tnat64d.toml(5) says is compared in tests/core/test_settings.py.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tnat64d.cli import inputs, main
from tnat64d.core.settings import Settings
from tnat64d.errors import Tnat64Error
from tnat64d.kernel import installation

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "man").iterdir())
TNAT64D = (ROOT / "man/tnat64d.8").read_text()

Option = tuple[frozenset[str], str]
"""All names of an option, and its metavar in lower case, empty if it takes none."""


def plain(text: str) -> str:
    """Without font changes, and with every escaped hyphen as it is typed: groff_man(7)."""
    return re.sub(r"\\f[BIR]", "", text).replace(r"\-", "-")


def section(title: str) -> str:
    found = re.search(rf"^\.SH {title}\n(.*?)(?=^\.SH |\Z)", TNAT64D, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found.group(1)


def tags(title: str) -> list[str]:
    """What each `.TP` of a section explains."""
    return [
        plain(re.sub(r"^\.B[IR]? ", "", line))
        for line in re.findall(r"^\.TP\n(.*)$", section(title), re.MULTILINE)
    ]


def commands() -> dict[str, list[Option]]:
    """What argparse knows; under "" the options of tnat64d itself."""
    parser = main.parser()
    (choices,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    # Every command has --help, and the page says so once.
    return {"": _options(parser)} | {
        name: [option for option in _options(command) if "--help" not in option[0]]
        for name, command in choices.items()
    }


def _options(parser: argparse.ArgumentParser) -> list[Option]:
    return [
        (frozenset(action.option_strings), str(action.metavar or "").lower())
        for action in parser._actions
        if action.option_strings
    ]


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_no_fault(page: Path) -> None:
    verdict = subprocess.run(
        ["mandoc", "-T", "lint", page], capture_output=True, text=True, timeout=60, check=False
    )
    assert verdict.stdout + verdict.stderr == ""


def test_the_synopsis_has_each_command_with_its_options() -> None:
    synopses = re.findall(r'^\.SY "?tnat64d ?(\w*)"?\n(.*?)^\.YS$', section("SYNOPSIS"), re.MULTILINE | re.DOTALL)
    page = {name: re.findall(r"^\.OP (.+)$", plain(body), re.MULTILINE) for name, body in synopses}
    # The short name of an option where it has one.
    wanted = {
        name: [f"{min(names, key=len)} {value}".strip() for names, value in options]
        for name, options in commands().items()
    }
    assert page == wanted


def test_each_command_is_explained_and_no_other() -> None:
    assert tags("COMMANDS") == [name for name in commands() if name]


def test_each_option_is_explained_and_no_other() -> None:
    page = set()
    for tag in tags("OPTIONS"):
        spellings = [spelling.partition(" ") for spelling in tag.split(", ")]
        (value,) = {value for _, _, value in spellings}
        page.add((frozenset(name for name, _, _ in spellings), value))
    assert page == {option for options in commands().values() for option in options}


def test_each_exit_code_is_explained() -> None:
    kinds: set[type[Tnat64Error]] = {Tnat64Error, *Tnat64Error.__subclasses__()}
    not_running, interrupted = 3, 130
    assert set(map(int, tags("EXIT STATUS"))) == {0, not_running, interrupted, *(kind.exit_code for kind in kinds)}


def test_each_environment_variable_of_the_program_is_explained() -> None:
    source = "".join(path.read_text() for path in (ROOT / "tnat64d").rglob("*.py"))
    assert set(tags("ENVIRONMENT")) == set(re.findall(r'"(TNAT64_\w+)"', source))


def test_the_defaults_it_names_are_the_defaults() -> None:
    settings = Settings()
    files = {inputs.CONF, inputs.SETTINGS, settings.control.socket, installation.LOCK}
    assert files == {tag.removeprefix(".I ") for tag in tags("FILES")}
    kernel = section("WHAT STANDS IN THE KERNEL")
    for value in (settings.rules.address, settings.rules.table, hex(settings.rules.mark), settings.proxy.port):
        assert str(value) in kernel
    assert f"fallback_delay_s\n({settings.proxy.fallback_delay_s:.0f} seconds)" in plain(TNAT64D)
    assert f"drain_timeout_s\n({settings.proxy.drain_timeout_s:.0f} seconds)" in plain(TNAT64D)
