"""What every check is told: the two files, the daemon's answers, and who asks.

Owns asking the daemon once. Refuses to own judging.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tnat64d.core.config import Config
from tnat64d.core.files import Files
from tnat64d.core.findings import Finding
from tnat64d.core.settings import Settings
from tnat64d.daemon import control, explaining, watch_reports
from tnat64d.errors import Tnat64Error
from tnat64d.kernel import owned

Findings = Iterator[Finding]

ANSWER_TIMEOUT_S = 3.0

_READ_CONF = ("up", "serve", "setup", "check", "doctor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """`written_config` and `written_settings`: the files as they are now, None for one that is wrong; `problems`:
    the mistakes of both. `loaded`: the files as the running daemon has read them, None where none tells.

    `conf_option` and `settings_option`: how the command line named the files, for remedies, or empty.
    `daemon`: its status, or None and `why_no_daemon`. `target`: name or address and port to try a
    connection to, None for nowhere in particular.
    """

    written_config: Config | None
    written_settings: Settings | None
    loaded: Files | None
    conf_file: str
    settings_file: str
    problems: tuple[str, ...]
    conf_option: str
    settings_option: str
    is_root: bool
    daemon: dict[str, Any] | None
    why_no_daemon: str
    target: tuple[str, int] | None

    @property
    def config(self) -> Config | None:
        """What the daemon goes by, or else what the file says."""
        return self.written_config if self.loaded is None else self.loaded.config

    @property
    def settings(self) -> Settings:
        """As `config`, or else the defaults."""
        return (self.written_settings or Settings()) if self.loaded is None else self.loaded.settings

    def command(self, name: str) -> str:
        """The command `name` of this program with the same files, for a shell."""
        conf = self.conf_option if name in _READ_CONF else ""
        return f"tnat64d {name}{conf}{self.settings_option}"

    @property
    def restoring(self) -> str:
        """The command that makes all rules stand again: of the process that holds or watches them, or `setup`."""
        if self.watcher is not None:
            return watch_reports.reloading(self.watcher)
        holds = self._rules.get("way") in ("owned", "static") or owned.is_held()
        return self.command("reload" if holds else "setup")

    @property
    def watcher(self) -> int | None:
        """The process of `setup --watch` that the daemon has heard of."""
        pid: int | None = self._rules.get("watcher")
        return pid

    @property
    def _rules(self) -> dict[str, Any]:
        rules: dict[str, Any] = (self.daemon or {}).get("rules", {})
        return rules

    def count(self, counter: str) -> int:
        """A counter of the daemon, now. Raises UnavailableError."""
        number: int = control.ask(self.settings.control.socket, "status", ANSWER_TIMEOUT_S)["total"][counter]
        return number


def ask_daemon(socket: str) -> tuple[dict[str, Any] | None, str]:
    """The status of the daemon at the control socket, or None and why not."""
    try:
        return control.ask(socket, "status", ANSWER_TIMEOUT_S), ""
    except Tnat64Error as error:
        return None, str(error)


def ask_loaded(socket: str) -> Files | None:
    """The files as the daemon has read them; None if it does not say, as one of an older version."""
    try:
        return explaining.ask_files(socket)
    except Tnat64Error:
        return None
