"""README.md tells the truth: its commands are run, in its order, as they stand there; its links lead somewhere.

A command is run in the client of a lab, which has an /etc and a /run of its own (a mount namespace), a `sudo` that
is root already, and /etc as `make install` leaves it. Not run are `systemctl` commands, for want of systemd; of a
`make` command only `make --dry-run` is: `make demo` is run by tests/lab, `make test` is what runs this.

Also here: the examples under etc/examples, as far as no container engine and no systemd is needed.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import SERVER_V4, LabError, Nat64Lab, Process, nat64_address
from tests.lab.daemon import snapshot
from tnat64d.core import config, settings
from tnat64d.doctor.examination import CHECKS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

EXAMPLES = ROOT / "etc/examples"
SIDECAR = "tnat64d up"
CAPABILITIES = ("NET_ADMIN", "NET_RAW")
PROBE = """tnat64d status --json | grep -q '"state": "serving"'"""

COMMANDS = [
    re.sub(r"\s+#.*", "", line)
    for block in re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
_SYSTEMCTL = re.compile(r"(sudo )?systemctl ")

# What comes before a command: the host's own files and programs, and nothing of the tester's environment.
_INSIDE = """\
unset TNAT64_CONF_FILE TNAT64_DEBUG TNAT64_DEBUG_FILE
mount --bind "$1/etc" /etc && mount --bind "$1/run" /run && cd "$2" && PATH="$1/bin:$PATH" && eval "$3"
"""


class Host:
    """The client of a lab after `sudo make install`: what is typed there."""

    def __init__(self, lab: Nat64Lab) -> None:
        self._client = lab.client
        self._root = root = lab.directory / "host"
        self.terminal: Process | None = None
        self._untouched = snapshot(lab.client)
        (root / "run").mkdir(parents=True)
        shutil.copytree(
            "/etc", root / "etc", symlinks=True, ignore=shutil.ignore_patterns("*shadow*", "private", ".git")
        )
        self.write("etc/hosts", f"{SERVER_V4} ipv4.example.com\n{nat64_address('192.0.0.170')} ipv4only.arpa\n")
        self.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
        self.write("etc/sysusers.d/tnat64d.conf", (ROOT / "systemd/tnat64d.sysusers").read_text())
        for name in ("tnat64.conf", "tnat64d.toml"):
            self.write(f"etc/{name}", (ROOT / "etc" / name).read_text())
        self.write("bin/sudo", '#!/bin/sh\nexec "$@"\n', mode=0o755)
        self.write("bin/tnat64d", f'#!/bin/sh\nexec {sys.executable} -m tnat64d "$@"\n', mode=0o755)
        for directory in (lab.directory, root):
            directory.chmod(0o755)  # for users other than root

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of this host; `path` without the leading slash."""
        file = self._root / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        return (self._root / path).read_text()

    def type(self, command: str) -> str:
        """Run a command to its end; what it prints. Raises LabError where it fails."""
        done = self._client.run(self._inside(command))
        return done.stdout + done.stderr

    def start(self, command: str) -> Process:
        """Leave a command running, as in a terminal of its own."""
        return self._client.start(self._inside(f"exec {command}"))

    def assert_untouched(self) -> None:
        assert snapshot(self._client) == self._untouched

    def _inside(self, command: str) -> list[str | Path]:
        return ["unshare", "--mount", "sh", "-ec", _INSIDE, "sh", self._root, ROOT, command]


@dataclass(frozen=True, slots=True)
class Step:
    """A command of README, or what a reader does between two of them; `shows` must be in what it prints."""

    command: str
    shows: str = ""
    do: Callable[[Host, str], str] = Host.type


def _dry_run(host: Host, command: str) -> str:
    assert "make " in command
    return host.type(command.replace("make ", "make --dry-run ", 1))


def _open_terminal(host: Host, command: str) -> str:
    host.terminal = host.start(command)
    return host.terminal.wait_for_output("ready: .*").group()


def _press_ctrl_c(host: Host, _: str) -> str:
    assert host.terminal is not None
    host.terminal.send_signal(signal.SIGINT)
    assert host.terminal.wait() == 0
    host.assert_untouched()
    return host.terminal.stderr


def _kill(host: Host, _: str) -> str:
    """`tnat64d up` ends by kill -9, so that there is something to remove."""
    process = host.start("tnat64d up")
    process.wait_for_output("ready: ")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(LabError, match="Failed to connect"):
        host.type("curl -4 http://ipv4.example.com/")
    with pytest.raises(AssertionError):
        host.assert_untouched()
    return ""


def _look_untouched(host: Host, command: str) -> str:
    shown = host.type(command)
    host.assert_untouched()
    return shown


STEPS = (
    Step("sudo make demo", "tests.lab.demo", _dry_run),
    Step("sudo make test", "pytest", _dry_run),
    Step("sudo make install", "tnat64.conf", _dry_run),
    Step("sudo systemd-sysusers"),
    Step("getent ahostsv6 ipv4only.arpa", "2001:db8:64::c000:aa"),
    Step("echo 'nat64_prefix = 2001:db8:64::' | sudo tee -a /etc/tnat64.conf"),
    Step("tnat64d check", "through 2001:db8:64::/96, default prefix"),
    Step("tnat64d check -t 198.51.100.10:443", "198.51.100.10:443: NAT64 at 2001:db8:64::c633:640a"),
    Step("sudo tnat64d up", "prefix 2001:db8:64::/96", _open_terminal),
    Step("curl -4 http://ipv4.example.com/", "hello from the IPv4 server"),
    Step("sudo tnat64d status", "1 ended by NAT64"),
    Step("sudo tnat64d doctor", f"all {len(CHECKS)} checks are ok"),
    Step("(Ctrl-C)", "stopped", _press_ctrl_c),
    Step("sudo tnat64d setup --dry-run", "redirect to :6464", _look_untouched),
    Step("(kill -9)", "", _kill),
    Step("sudo tnat64d teardown", "", _look_untouched),
    Step("sudo make uninstall", "rm -f", _dry_run),
)


@pytest.fixture
def host(nat64_lab: Nat64Lab) -> Host:
    return Host(nat64_lab)


def test_every_command_is_one_that_is_run_or_is_systemctl() -> None:
    run = [step.command for step in STEPS if not step.command.startswith("(")]
    assert [command for command in COMMANDS if not _SYSTEMCTL.match(command)] == run


@pytest.mark.netns("unshare", "curl", "make", "systemd-sysusers")
def test_a_reader_who_follows_it_from_top_to_bottom_sees_what_it_says(host: Host) -> None:
    for step in STEPS:
        shown = step.do(host, step.command)
        assert step.shows in shown, f"{step.command} printed:\n{shown}"
    assert "tnat64d:x:" in host.read("etc/passwd")
    host.assert_untouched()


def test_systemctl_is_told_of_units_that_are_shipped() -> None:
    units = {command.split()[-1] for command in COMMANDS if _SYSTEMCTL.match(command)} - {"daemon-reload"}
    assert units
    assert all((ROOT / f"systemd/{unit}.service").is_file() for unit in units)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/moving-from-tnat64.md"])
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    headings = {re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-") for line in text.splitlines()}
    for target in re.findall(r"\]\((?!https:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert ((ROOT / page).parent / path).exists(), target
        assert not anchor or anchor in headings, target


def test_the_configuration_that_it_shows_is_valid() -> None:
    shown = re.search(r"^    local = .*?\n\n", README, re.MULTILINE | re.DOTALL)
    assert shown is not None
    parsed = config.parse(shown.group(), "README.md")
    assert (len(parsed.local), len(parsed.paths), str(parsed.default_prefix)) == (1, 1, "2001:db8:64::/96")


def test_both_sidecar_examples_are_what_is_tested_here() -> None:
    for file, key in (("compose.yaml", "cap_add"), ("pod.yaml", "add")):
        text = (EXAMPLES / "sidecar" / file).read_text()
        assert f"command: {json.dumps(SIDECAR.split())}" in text
        assert f"{key}: [{', '.join(CAPABILITIES)}]" in text
        assert json.dumps(PROBE) in text


@pytest.mark.netns("unshare", "setpriv", "curl")
def test_the_sidecar_serves_a_program_without_privileges_in_its_namespace(host: Host) -> None:
    capabilities = ",".join(f"+{name.lower()}" for name in CAPABILITIES)
    confined = f"setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,{capabilities}"
    application = "setpriv --no-new-privs --reuid=nobody --clear-groups --inh-caps=-all --bounding-set=-all"
    host.write("etc/tnat64.conf", (EXAMPLES / "sidecar/tnat64.conf").read_text())
    sidecar = host.start(f"{confined} {SIDECAR}")
    sidecar.wait_for_output("ready: ")
    host.type(f"{confined} {PROBE}")
    page = host.type(f"{application} curl -sS http://ipv4.example.com/")
    assert "hello from the IPv4 server" in page
    assert sidecar.terminate() == 0, sidecar.stderr
    host.assert_untouched()


def test_the_example_settings_are_valid() -> None:
    files = list(EXAMPLES.rglob("*.toml"))
    assert files
    for file in files:
        assert settings.parse(file.read_text(), str(file)) != settings.Settings()


def test_the_example_drop_ins_name_units_that_are_shipped() -> None:
    for file in EXAMPLES.rglob("service/*.conf"):
        for unit in re.findall(r"^(?:Wants|After)=(.*)$", file.read_text(), re.MULTILINE):
            assert (ROOT / "systemd" / unit).is_file()
