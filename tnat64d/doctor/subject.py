"""What every check is told: the two files, the daemon's answer, and who asks.

Owns asking the daemon once. Refuses to own judging.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tnat64d.core.config import Config
from tnat64d.core.findings import Finding
from tnat64d.core.settings import Settings
from tnat64d.daemon import control
from tnat64d.errors import Tnat64Error
from tnat64d.kernel import owned

Findings = Iterator[Finding]

ANSWER_TIMEOUT_S = 3.0

_READ_CONF = ("up", "setup", "check", "doctor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """`config`: None where tnat64.conf is wrong; `problems`: the mistakes of both files.

    `conf_option` and `settings_option`: how the command line named the files, for remedies, or empty.
    `daemon`: its status, or None and `why_no_daemon`. `target`: name or address and port to try a
    connection to, None for nowhere in particular.
    """

    config: Config | None
    settings: Settings
    conf_file: str
    settings_file: str
    problems: tuple[str, ...]
    conf_option: str
    settings_option: str
    is_root: bool
    daemon: dict[str, Any] | None
    why_no_daemon: str
    target: tuple[str, int] | None

    def command(self, name: str) -> str:
        """The command `name` of this program with the same files, for a shell."""
        conf = self.conf_option if name in _READ_CONF else ""
        return f"tnat64d {name}{conf}{self.settings_option}"

    @property
    def restoring(self) -> str:
        """The command that makes all rules stand again: of the daemon that holds them, or the static ones."""
        return self.command("reload" if owned.is_held() else "setup")

    def count(self, counter: str) -> int:
        """A counter of the daemon, now. Raises UnavailableError."""
        number: int = control.ask(self.settings.control.socket, "status", ANSWER_TIMEOUT_S)["total"][counter]
        return number


def ask_daemon(settings: Settings) -> tuple[dict[str, Any] | None, str]:
    """The daemon's status, or None and why not."""
    try:
        return control.ask(settings.control.socket, "status", ANSWER_TIMEOUT_S), ""
    except Tnat64Error as error:
        return None, str(error)
