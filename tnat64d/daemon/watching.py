"""`setup --watch`: static rules, and a process that stays and restores what others take away of them.

Owns its life: signals, reloading, the service manager's protocol. Refuses to own noticing and restoring
(`daemon.healing`), the rules (`kernel.rules`), and taking them away: at its end, whatever that is, they stand as
`setup` leaves them, until `teardown`. So who ends it can let connections end first, which need them.

It imports nothing of the proxy: it is one more process, and shall be a small one.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tnat64d.core.config import Config
from tnat64d.core.reloading import require_reloadable
from tnat64d.core.settings import Settings
from tnat64d.daemon import admission
from tnat64d.daemon.hangup import reload_when
from tnat64d.daemon.healing import Healer
from tnat64d.daemon.rules import Rules, RulesThread
from tnat64d.daemon.watch_reports import Reporter
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.systemd import Notifier

_log = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 1000
"""Of an error that `status` shows: iptables is quoted with all that it was given."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What the command line gives to the watcher; the functions read the two files."""

    rules: Rules
    settings: Settings
    settings_file: str
    load_config: Callable[[], Config]
    load_settings: Callable[[], Settings]
    notifier: Notifier


def run(watch: Watch) -> None:
    """Make the rules stand, and look after them until told to end. Raises Tnat64Error if they cannot be made."""
    config = watch.load_config()
    watch.rules.begin()
    with asyncio.Runner() as runner:
        runner.run(_Watcher(watch).run(config))


class _Watcher:
    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._settings = watch.settings
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._alone = asyncio.Lock()
        self._rules = RulesThread(watch.rules)
        self._healer = Healer(self._rules, self._alone)
        self._healer.when_looked = self._tell
        self._reporter = Reporter(watch.settings.control.socket, self._report, self._lend)
        self._told: tuple[object, ...] = ()

    async def run(self, config: Config) -> None:
        """From start to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        notifier = self._watch.notifier
        try:
            async with asyncio.TaskGroup() as tasks:
                healing = tasks.create_task(self._healer.run(), name="healing")
                async with self._alone:
                    await self._rules.install(config, self._settings)
                    self._healer.made_anew()
                _log.info("ready: the rules stand, and what others remove of them is restored")
                notifier.ready(self._summary())
                companions = (
                    healing,
                    tasks.create_task(self._reporter.run(), name="reporter"),
                    tasks.create_task(reload_when(self._hangup, self._reload), name="reload"),
                    tasks.create_task(self._feed_watchdog(), name="watchdog"),
                )
                await self._stop.wait()
                for companion in companions:
                    companion.cancel()
        except* Tnat64Error as group:
            raise group.exceptions[0] from None
        notifier.stopping()
        _log.info('stopped: the rules stand until "tnat64d teardown"')

    async def _feed_watchdog(self) -> None:
        notifier = self._watch.notifier
        while notifier.watchdog_interval_s is not None:
            notifier.watchdog()
            await asyncio.sleep(notifier.watchdog_interval_s)

    async def _reload(self) -> None:
        async with self._alone:
            watch, notifier = self._watch, self._watch.notifier
            notifier.reloading()
            try:
                config = await asyncio.to_thread(watch.load_config)
                settings = await asyncio.to_thread(watch.load_settings)
                require_reloadable(self._settings, settings, watch.settings_file)
                await self._rules.install(config, settings)
                self._settings = settings
                self._healer.made_anew()
            finally:
                notifier.ready(self._summary())
            _log.info("reloaded: the rules are made anew")
            self._tell()

    def _tell(self) -> None:
        """Tell the service manager and the daemon how the rules are, if that has changed."""
        summary = self._summary()
        news = (summary, self._healer.followed)
        if news != self._told:
            self._told = news
            self._watch.notifier.status(summary)
            self._reporter.tell()

    def _summary(self) -> str:
        """One line."""
        rules = self._healer.describe()
        parts = [rules["state"]]
        if self._healer.restored:
            parts.append(f"restored {self._healer.restored} times")
        if rules["missing"]:
            parts.append(f"missing: {', '.join(rules['missing'])}")
        if rules["error"]:
            parts.append(f"cannot be restored: {rules['error']}")
        return f"rules {'; '.join(parts)}"

    def _report(self) -> dict[str, Any]:
        rules = self._healer.describe()
        error = rules["error"] and rules["error"][:MAX_ERROR_CHARACTERS]
        shown = {"state": rules["state"], "missing": rules["missing"], "error": error}
        return {"rules": shown, "rules_restored": self._healer.restored}

    async def _lend(self) -> None:
        """A daemon without root can have commands carried by the group that is there now."""
        if self._settings.scope.exec:
            with suppress(Tnat64Error):
                await asyncio.to_thread(admission.lend, self._settings.control.socket)
