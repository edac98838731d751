"""The kernel's rules for a configuration, kept in one of two ways.

Owns which way: `StaticRules` (setup, teardown), whose work stands until it is removed, and `HeldRules`, by which a
process knows what it made and can make it again: that of up and serve --own-rules, whose work goes with it (where
that cannot be had, it is static until the end), or that of setup --watch, whose work is static and stays.
Refuses to own what must stand (`kernel.wanted`), how it gets there (`kernel.installation`, `kernel.owned`), and
what a daemon knows of the rules that `setup` made (`kernel.set_up_rules`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from tnat64d.core import ruleset
from tnat64d.core.config import Config
from tnat64d.core.ruleset import LOOPBACK, OWN_DEVICE, Ruleset
from tnat64d.core.settings import Mode, Rules, Settings
from tnat64d.errors import Tnat64Error, UnavailableError
from tnat64d.kernel import backends, cgroup, keeper, nftables, owned, routing, standing
from tnat64d.kernel.installation import Installation
from tnat64d.kernel.nftables import Nftables
from tnat64d.kernel.owned import OwnedInstallation
from tnat64d.kernel.refused_set import Destination, RefusesDestinations
from tnat64d.kernel.standing import Standing
from tnat64d.kernel.wanted import describe

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
        _require_not_kept()
        _warn_of_losing_bridges(self._settings)
        with _exec_group(self._settings):
            self.installation.install(describe(config, self._settings, self._settings_file, LOOPBACK))

    def remove(self) -> None:
        """Leave no rules of ours."""
        _require_not_held()
        _require_not_kept()
        self.installation.remove()
        cgroup.remove(cgroup.of_exec())

    def plan(self, config: Config) -> str:
        """What `install` would do now, for a shell; empty if all stands."""
        with _exec_group(self._settings, stays=False):  # nft(8) checks that it exists
            plan = self.installation.plan(describe(config, self._settings, self._settings_file, LOOPBACK))
        if self._settings.scope.exec and not cgroup.exists(cgroup.of_exec()):
            plan = f"mkdir -p {cgroup.root() / cgroup.of_exec()}\n{plan}"
        return f"# backend {self.choice.name}: {self.choice.because}\n{plan}" if plan else ""

    def plan_removal(self) -> str:
        """What `remove` does, in words and for a shell; empty if nothing of ours stands."""
        plan = self.installation.plan_removal()
        if cgroup.exists(cgroup.of_exec()):
            plan = f"{plan}\nrmdir {cgroup.root() / cgroup.of_exec()}".lstrip()
        return plan


class HeldRules:
    """Raises as StaticRules. `device`: a descriptor to call `answer` for when it is readable, or None.

    A control group that does not exist is no error here, but gets its rules when it does (`renewed`).
    """

    def __init__(self, settings: Settings, settings_file: str, *, in_daemon: bool = True) -> None:
        """`in_daemon`: False where another process is the daemon: rules are static and refuse no destination."""
        self._settings = settings
        self._settings_file = settings_file
        self._in_daemon = in_daemon
        self._keeping: keeper.Lock | None = None
        self._owned: OwnedInstallation | None = None
        self._static: StaticRules | None = None
        self._ruleset: Ruleset | None = None
        self._standing: Standing = {}
        self._identities: dict[str, int] = {}

    @property
    def way(self) -> str:
        """ "owned" or "static"."""
        return "static" if self._owned is None else "owned"

    @property
    def watches_packet_rules(self) -> bool:
        """Whether others can take packet rules away, too: those that are owned only the owner can."""
        return self._owned is None

    @property
    def has_stood(self) -> bool:
        """Whether rules were installed."""
        return self._ruleset is not None

    @property
    def device(self) -> int | None:
        """A descriptor to call `answer` for when it is readable, once rules stand."""
        return None if self._owned is None else self._owned.device.fileno()

    def begin(self) -> tuple[int, ...]:
        """Decide on the way and get hold of what it needs, before anything is captured.

        Returns the descriptors with which owned rules go; every process of the daemon must have them open.
        """
        static = StaticRules(self._settings, self._settings_file)
        if not self._in_daemon:
            self._keeping = keeper.Lock()
            return self._be_static(static)
        _require_not_kept()
        why_not = self._why_not_owned()
        if why_not is None:
            try:
                self._owned = OwnedInstallation(static.installation)
            except UnavailableError as error:
                why_not = str(error)
        if self._owned is not None:
            _log.info("rules: nf_tables and a TUN device that go with this daemon, however it ends")
            return self._owned.shared
        _log.info("rules: static, until this process removes them, because %s", why_not)
        return self._be_static(static)

    def _be_static(self, static: StaticRules) -> tuple[int, ...]:
        self._static = static
        _log.info("rules: by %s, because %s", static.choice.name, static.choice.because)
        return ()

    def install(self, config: Config, settings: Settings) -> None:
        """Make the rules for `config` and `settings` stand, and no others of ours. `begin` came before."""
        device = LOOPBACK if self._owned is None else OWN_DEVICE
        refusal_memory_s = settings.proxy.refusal_memory_s
        if refusal_memory_s and self._refused is None:
            if self._in_daemon:
                _log.warning(
                    "proxy.refusal_memory_s in tnat64d.toml has no effect: the rules are those of iptables, "
                    "and only nftables can"
                )
            refusal_memory_s = 0.0
        _warn_of_losing_bridges(settings)
        with _exec_group(settings):
            self._install(describe(config, settings, self._settings_file, device, refusal_memory_s))
        for path in self.groups:
            if path not in self._identities:
                _log.warning("there is no control group %s now: the rules for it come when there is", path)

    def restore(self) -> None:
        """Make what `install` made last stand again."""
        if self._ruleset is not None:
            with _exec_group(self._settings):
                self._install(self._ruleset)

    def lost(self) -> tuple[str, ...]:
        """The parts that do not stand as they did after `install`, by the names that sentences use."""
        if self._ruleset is None:
            return ()
        lost = standing.lost(self._standing, self._installation.standing(self._ruleset))
        if self._settings.scope.exec and not cgroup.exists(cgroup.of_exec()):
            lost += (f"the control group {cgroup.of_exec()}",)
        return lost

    @property
    def groups(self) -> tuple[str, ...]:
        """The control groups that rules are for."""
        return () if self._ruleset is None else ruleset.cgroups(self._ruleset)

    def renewed(self) -> tuple[str, ...]:
        """Those that have been made, or made anew, since the rules were: they match only what was there then.

        One that is gone is not missed: nothing can be in it.
        """
        now = cgroup.identities(self.groups)
        return tuple(path for path, identity in now.items() if identity != self._identities.get(path))

    def refuse(self, destinations: Iterable[Destination]) -> None:
        """Let the kernel refuse each for a while, if `install` was told how long; a full set takes no more."""
        if self._refused is not None and self._remembers_refusals:
            self._refused.refuse(destinations)

    def forget_refused(self) -> None:
        """Let it refuse none any more."""
        if self._refused is not None and self._remembers_refusals:
            self._refused.forget_refused()

    def refused_count(self) -> int:
        """How many connects it has refused for that. Does not block, and may be asked beside the others."""
        return nftables.refused_count() if self._remembers_refusals else 0

    def refused_for_s(self, destination: Destination) -> float | None:
        """For how long it refuses `destination` from now on; None if it does not. As `refused_count`."""
        return nftables.refused_for_s(destination) if self._remembers_refusals else None

    @property
    def _remembers_refusals(self) -> bool:
        ruleset = self._ruleset
        return ruleset is not None and bool(ruleset.refusal_memory_ms)

    @property
    def _refused(self) -> RefusesDestinations | None:
        if self._owned is not None:
            return self._owned.refused
        if not self._in_daemon:
            return None
        backend = None if self._static is None else self._static.choice.backend
        return backend if isinstance(backend, Nftables) else None

    def _install(self, wanted: Ruleset) -> None:
        installation = self._installation
        if self._owned is None:
            _require_not_held()
        groups = ruleset.cgroups(wanted)
        identities = cgroup.identities(groups)  # before: what is made anew meanwhile is `renewed`
        made = ruleset.without_cgroups(wanted, set(groups) - set(identities))
        installation.install(made)
        self._ruleset, self._identities = wanted, identities
        self._standing = standing.incomplete(installation.parts(made), installation.standing(made))

    @property
    def _installation(self) -> Installation | OwnedInstallation:
        if self._owned is not None:
            return self._owned
        assert self._static is not None, "begin() came before"
        return self._static.installation

    def remove(self) -> None:
        """Leave no rules of ours."""
        self._ruleset = None
        if self._static is not None:
            self._static.remove()
        if self._owned is not None:
            self._owned.remove()
            self._owned = None
            cgroup.remove(cgroup.of_exec())

    def answer(self) -> bool:
        """Tell those whose packets have come to the device that there is no way. False: the device is gone."""
        return self._owned is not None and self._owned.answer()

    def _why_not_owned(self) -> str | None:
        rules = self._settings.rules
        if rules.mode is Mode.TPROXY:
            return "TPROXY mode needs a local route, which no process can own"
        if rules.backend == "iptables":
            return "rules.backend asks for iptables"
        if rules.backend == "auto" and rules.iptables != Rules().iptables:
            return "rules.iptables names one"
        return None


def _warn_of_losing_bridges(settings: Settings) -> None:
    if settings.rules.mode is Mode.TPROXY and settings.scope.gateway:
        for bridge in routing.losing_bridges(settings.scope.gateway):
            _log.warning(
                "connections that come in by %s will hang: TPROXY loses them while %s is 1; "
                'set that to 0, or rules.mode = "redirect"',
                bridge,
                routing.BRIDGES_ASK_RULES,
            )


def _require_not_held() -> None:
    if owned.stays_held():
        raise Tnat64Error("a running tnat64d holds its own rules here: stop it, and they go with it")


def _require_not_kept() -> None:
    if keeper.is_kept():
        raise Tnat64Error(
            "tnat64d setup --watch keeps the rules here: systemctl reload tnat64d-setup (SIGHUP) has it read its "
            "files again; to take them away, end it first (systemctl stop tnat64d)"
        )


def _exec_group(settings: Settings, *, stays: bool = True) -> AbstractContextManager[None]:
    """With the control group that rules for `tnat64d exec` match."""
    return cgroup.made(cgroup.of_exec(), stays=stays) if settings.scope.exec else nullcontext()
