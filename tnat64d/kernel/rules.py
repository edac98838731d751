"""The kernel's rules for a configuration, kept in one of two ways.

Owns which way: `StaticRules` (setup, teardown), whose work stands until it is removed, and `HeldRules` (up,
serve --own-rules), whose work goes with the process; where that cannot be had, they are static until the end.
Refuses to own what stands (`core.ruleset`) and how it gets there (`kernel.installation`, `kernel.owned`).
"""

from __future__ import annotations

import logging

from tnat64d.core import ruleset, scope
from tnat64d.core.config import Config
from tnat64d.core.ruleset import LOOPBACK, OWN_DEVICE, Ruleset
from tnat64d.core.settings import Mode, Rules, Settings
from tnat64d.errors import Tnat64Error, UnavailableError
from tnat64d.kernel import accounts, backends, owned
from tnat64d.kernel.installation import Installation
from tnat64d.kernel.owned import OwnedInstallation

_log = logging.getLogger(__name__)


class StaticRules:
    """Every method raises PrivilegeError, UnavailableError, ConfigurationError (scope) and Tnat64Error."""

    def __init__(self, settings: Settings, settings_file: str) -> None:
        self._settings = settings
        self._settings_file = settings_file
        self.choice = backends.choose(settings.rules)
        self.installation = Installation(self.choice.backend, self.choice.others)

    def install(self, config: Config) -> None:
        """Make the rules for `config` stand, and no others of ours."""
        _require_not_held()
        self.installation.install(_describe(config, self._settings, self._settings_file, LOOPBACK))

    def remove(self) -> None:
        """Leave no rules of ours."""
        _require_not_held()
        self.installation.remove()

    def plan(self, config: Config) -> str:
        """What `install` does, for a shell."""
        plan = self.installation.plan(_describe(config, self._settings, self._settings_file, LOOPBACK))
        return f"# backend {self.choice.name}: {self.choice.because}\n{plan}"

    def plan_removal(self) -> str:
        """What `remove` does, in words and for a shell; empty if nothing of ours stands."""
        return self.installation.plan_removal()


class HeldRules:
    """Raises as StaticRules. `device`: a descriptor to call `answer` for when it is readable, or None."""

    def __init__(self, settings: Settings, settings_file: str) -> None:
        self._settings = settings
        self._settings_file = settings_file
        self._owned: OwnedInstallation | None = None
        self._static: StaticRules | None = None

    @property
    def device(self) -> int | None:
        """A descriptor to call `answer` for when it is readable, once rules stand."""
        return None if self._owned is None else self._owned.device.fileno()

    def begin(self) -> tuple[int, ...]:
        """Decide on the way and get hold of what it needs, before anything is captured.

        Returns the descriptors with which owned rules go; every process of the daemon must have them open.
        """
        static = StaticRules(self._settings, self._settings_file)
        why_not = self._why_not_owned()
        if why_not is None:
            try:
                self._owned = OwnedInstallation(static.installation)
            except UnavailableError as error:
                why_not = str(error)
        if self._owned is not None:
            _log.info("rules: nf_tables and a TUN device that go with this daemon, however it ends")
            return self._owned.shared
        self._static = static
        choice = static.choice
        _log.info("rules: static, until this process removes them, because %s", why_not)
        _log.info("rules: by %s, because %s", choice.name, choice.because)
        return ()

    def install(self, config: Config) -> None:
        """Make the rules for `config` stand, and no others of ours. `begin` came before."""
        if self._static is not None:
            self._static.install(config)
        elif self._owned is not None:
            self._owned.install(_describe(config, self._settings, self._settings_file, OWN_DEVICE))

    def remove(self) -> None:
        """Leave no rules of ours."""
        if self._static is not None:
            self._static.remove()
        if self._owned is not None:
            self._owned.remove()
            self._owned = None

    def answer(self) -> None:
        """Tell those whose packets have come to the device that there is no way."""
        if self._owned is not None:
            self._owned.answer()

    def _why_not_owned(self) -> str | None:
        rules = self._settings.rules
        if rules.mode is Mode.TPROXY:
            return "TPROXY mode needs a local route, which no process can own"
        if rules.backend == "iptables":
            return "rules.backend asks for iptables"
        if rules.backend == "auto" and rules.iptables != Rules().iptables:
            return "rules.iptables names one"
        return None


def _require_not_held() -> None:
    if owned.is_held():
        raise Tnat64Error("a running tnat64d holds its own rules here: stop it, and they go with it")


def _describe(config: Config, settings: Settings, settings_file: str, device: str) -> Ruleset:
    resolved = scope.resolve(settings.scope, accounts.lookup(settings_file))
    return ruleset.describe(config, settings.rules, resolved, settings.proxy.port, device)
