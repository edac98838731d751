"""The first process: it starts and ends the daemon, and speaks with the outside.

Owns signals, the control socket, the service manager's protocol, reloading, and, in `up`, the moment at which
the kernel's rules are made. Refuses to own processes (`daemon.pool`) and connections.

    STARTING ──workers ready, rules stand──> SERVING ──SIGTERM, SIGINT, drain──> DRAINING ──> the end
        └──────────── a failure ────────────────┴──────── a second signal ─────────┴──────> the end, at once

It runs on plain asyncio: pyroute2, which `up` needs, cannot live beside uvloop, and nothing here need be fast.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from tnat64d import __version__
from tnat64d.core.config import Config
from tnat64d.core.failures import Failure, to_refuse
from tnat64d.core.files import Files
from tnat64d.core.marks import refusal_mark, worker_marks
from tnat64d.core.reloading import require_reloadable
from tnat64d.core.ruleset import QUEUES
from tnat64d.core.scope import honest_places
from tnat64d.core.settings import Rules as RuleSettings
from tnat64d.core.settings import Settings
from tnat64d.daemon import explaining, listening
from tnat64d.daemon.admission import Admission
from tnat64d.daemon.control import Answer, ControlServer, Question
from tnat64d.daemon.hangup import reload_when
from tnat64d.daemon.healing import Healer
from tnat64d.daemon.pool import WorkerPool
from tnat64d.daemon.rules import Rules, RulesThread
from tnat64d.daemon.watch_reports import Watched
from tnat64d.errors import Tnat64Error, UnavailableError
from tnat64d.kernel import nfqueue, original_dst, wanted
from tnat64d.kernel.default_routes import DefaultRouteMonitor
from tnat64d.kernel.refusals import Refuser
from tnat64d.kernel.systemd import Notifier
from tnat64d.proxy.counters import Counter

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
DRAIN_GRACE_S = 5.0
"""Beyond the drain timeout, for workers that do not keep it."""

PING_INTERVAL_S = 5.0
HANG_TIMEOUT_S = 15.0
"""After this a worker that does not answer is killed: in time to feed a watchdog of 30 s again, which would end
all of them."""

MAX_AUTO_WORKERS = QUEUES  # where connects are honest, more would have none


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the command line gives to the daemon. `load_config` reads tnat64.conf, `load_settings` tnat64d.toml;
    `rules`: None if nobody looks after them.
    """

    settings: Settings
    settings_file: str
    load_settings: Callable[[], Settings]
    admission: Admission
    load_config: Callable[[], Config]
    notifier: Notifier
    verbose: bool
    rules: Rules | None = None


def run(surroundings: Surroundings) -> None:
    """Serve until told to stop. Raises Tnat64Error if the daemon cannot start or cannot go on."""
    config = surroundings.load_config()
    with asyncio.Runner() as runner:
        runner.run(_Supervisor(surroundings, config).run())


class _State(StrEnum):
    """See the module's picture."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class _Supervisor:
    def __init__(self, surroundings: Surroundings, config: Config) -> None:
        self._surroundings = surroundings
        self._settings = settings = surroundings.settings
        self._config = config
        self._started_at = time.time()
        self._changed_at = self._started_at
        self._state = _State.STARTING
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._rules = RulesThread(surroundings.rules)
        self._watched = Watched()
        self._healer = Healer(self._rules, self._reloading, lambda: self._watched.is_there)
        proxy = settings.proxy
        original_dst.require_marking(settings.rules.mark)
        self._listens_on = listening.address(settings)
        honest = proxy.connect == "honest"
        if honest:
            require_holding(settings.rules)
        self._sockets = listening.listen(
            self._listens_on,
            proxy.port,
            worker_count(proxy.workers),
            settings.rules.mode,
            proxy.keepalive_s,
            marks=worker_marks(settings.rules) if honest else None,
        )
        self._pool = WorkerPool(settings, config, self._sockets, verbose=surroundings.verbose)
        self._pool.when_failed = self._on_failures
        self._pool.share(self._rules.begin())
        self._control = ControlServer(
            settings.control.socket,
            {
                "status": self._status,
                "reload": self._reload,
                "drain": self._drain,
                "why": self._why,
                "files": self._files,
                "exec": self._exec,
                "door": self._door,
                "watched": self._watched.hear,
            },
            for_everybody=("exec",),
        )

    async def run(self) -> None:
        """From start to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        admission = self._surroundings.admission
        lending = admission.start()
        loop.add_reader(lending, admission.receive)
        try:
            await self._control.start()
            async with asyncio.TaskGroup() as tasks:
                pool = tasks.create_task(self._pool.run(), name="workers")
                try:
                    await self._live(tasks, pool)
                finally:
                    self._pool.end_now()
                    # After a failure the group would cancel it, and leave its processes.
                    await asyncio.wait({pool})
        except* Tnat64Error as group:
            raise group.exceptions[0] from None
        finally:
            try:
                await self._rules.remove()
            finally:
                await self._control.stop()
                for sock in self._sockets:
                    sock.close()
                loop.remove_reader(lending)
                admission.stop()
        _log.info("stopped")

    async def _live(self, tasks: asyncio.TaskGroup, pool: asyncio.Task[None]) -> None:
        monitor = DefaultRouteMonitor(asyncio.get_running_loop(), self._on_routes_changed)
        companions = (
            tasks.create_task(self._watch_workers(), name="watchdog"),
            tasks.create_task(reload_when(self._hangup, self._reload_now), name="reload"),
            tasks.create_task(self._healer.run(), name="healing"),
        )
        try:
            async with self._reloading:  # a reload waits until there is something to reload
                await self._start()
            await self._stop.wait()
            await self._finish(pool)
        finally:
            for companion in companions:
                companion.cancel()
            monitor.close()

    async def _start(self) -> None:
        ready = asyncio.ensure_future(self._pool.ready.wait())
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            done, _ = await asyncio.wait({ready, stop}, timeout=START_TIMEOUT_S, return_when="FIRST_COMPLETED")
        finally:
            ready.cancel()
            stop.cancel()
        if not done:
            raise Tnat64Error(f"the workers were not ready after {START_TIMEOUT_S:.0f} s")
        if self._stop.is_set():
            return
        await self._rules.install(self._config, self._settings)
        if self._config.default_prefix is None and not self._config.paths:
            _log.warning("tnat64.conf has no nat64_prefix: every destination is tried by IPv4 only")
        self._warn_of_mark_mask()
        self._state = _State.SERVING
        _log.info(
            "ready: %d worker%s on %s:%d, %s",
            len(self._sockets),
            "s" * (len(self._sockets) > 1),
            self._listens_on,
            self._settings.proxy.port,
            _summary(self._config),
        )
        self._surroundings.notifier.ready(_summary(self._config))

    def _warn_of_mark_mask(self) -> None:
        rules = self._settings.rules
        if self._settings.proxy.connect == "honest" and len(self._sockets) > 1 and not worker_marks(rules):
            _log.warning(
                "rules.mark_mask in tnat64d.toml is %#x, should leave eight bits in a row free: they lead "
                "connects to the worker that has dialled; without them, where NAT changes source ports, some are "
                "dialled twice",
                rules.mark_mask,
            )

    async def _finish(self, pool: asyncio.Task[None]) -> None:
        self._state = _State.DRAINING
        timeout_s = self._settings.proxy.drain_timeout_s
        self._surroundings.notifier.stopping(timeout_s + DRAIN_GRACE_S)
        if active := self._pool.total(Counter.ACTIVE):
            _log.info("draining %d connections for up to %g s; a second signal ends them now", active, timeout_s)
        self._pool.drain(timeout_s)
        done, _ = await asyncio.wait({pool}, timeout=timeout_s + DRAIN_GRACE_S)
        if not done:
            _log.warning("the workers did not end in time: they are ended now")

    def _on_stop_signal(self) -> None:
        if self._stop.is_set():
            self._pool.end_now()
        self._stop.set()

    def _on_routes_changed(self) -> None:
        _log.info("the default routes have changed: IPv4 is tried first again")
        self._pool.forget_sticky()
        self._changed_at = time.time()
        self._rules.forget_refused()

    def _on_failures(self, failures: tuple[Failure, ...]) -> None:
        proxy = self._settings.proxy
        if proxy.refusal_memory_s:
            refused = to_refuse(failures, honest_places(proxy) or (), self._changed_at)
            if refused:
                self._rules.refuse(refused)

    async def _watch_workers(self) -> None:
        """End those that hang, and feed the watchdog of the service manager, if there is one."""
        notifier = self._surroundings.notifier
        interval_s = min(PING_INTERVAL_S, notifier.watchdog_interval_s or PING_INTERVAL_S)
        while True:
            is_alive = self._pool.ping(math.ceil(HANG_TIMEOUT_S / interval_s))
            if is_alive and notifier.watchdog_interval_s is not None:
                notifier.watchdog()
            await asyncio.sleep(interval_s)

    async def _reload(self, question: Question) -> Answer:
        return await self._reload_now()

    async def _reload_now(self) -> Answer:
        """All or nothing: rules first, for they can fail; workers cannot refuse."""
        async with self._reloading:
            notifier = self._surroundings.notifier
            notifier.reloading()
            try:
                config = await asyncio.to_thread(self._surroundings.load_config)
                settings = await asyncio.to_thread(self._surroundings.load_settings)
                require_reloadable(self._settings, settings, self._surroundings.settings_file)
                needs_setup = await self._needs_setup(Files(config, settings))
                await self._rules.install(config, settings)
                self._healer.made_anew()
                self._config, self._settings = config, settings
                self._changed_at = time.time()
                self._pool.reload(config, settings)
            finally:
                notifier.ready(_summary(self._config))
            _log.info("reloaded: %s", _summary(config))
            if needs_setup:
                _log.info('the change touches the kernel\'s rules, which "tnat64d setup" makes')
            return {"summary": _summary(config), "needs_setup": needs_setup, "watcher": self._watched.pid}

    async def _needs_setup(self, after: Files) -> bool:
        """Whether what `after` changes in the rules is left to `setup`. Raises ConfigurationError (scope)."""
        if self._rules.way != "setup":
            return False
        before, file = Files(self._config, self._settings), self._surroundings.settings_file
        return await asyncio.to_thread(wanted.needs_setup, before, after, file)

    async def _drain(self, question: Question) -> Answer:
        """Stop accepting, and answer when the workers have ended."""
        self._stop.set()
        await self._pool.ended.wait()
        return {}

    async def _exec(self, question: Question) -> Answer:
        if self._state is not _State.SERVING:
            raise UnavailableError(f"the daemon is {self._state}, it carries no new connections now")
        return self._surroundings.admission.admit(question)

    async def _door(self, question: Question) -> Answer:
        return self._surroundings.admission.door()

    async def _why(self, question: Question) -> Answer:
        known = explaining.answer(question, self._config, self._settings, self._pool, self._rules)
        return self._identity() | {"rules_way": self._rules.way} | known

    async def _files(self, question: Question) -> Answer:
        return Files(self._config, self._settings).as_json()

    def _identity(self) -> Answer:
        return {
            "pid": os.getpid(),
            "state": self._state.value,
            "listener": f"{self._listens_on}:{self._settings.proxy.port}",
        }

    async def _status(self, question: Question) -> Answer:
        return {
            "version": __version__,
            **self._identity(),
            "started_at": self._started_at,
            "summary": _summary(self._config),
            "sticky_scope": self._settings.policy.sticky_scope.value,
            "sticky": self._pool.sticky_scopes(),
            "total": {counter.name.lower(): self._pool.total(counter) for counter in Counter},
            "refused_by_kernel": self._rules.refused_count(),
            "rules": self._healer.describe() | {"watcher": None},
            "rules_restored": self._healer.restored,
            **self._watched.report,
            "workers": self._pool.describe(),
        }


def require_holding(rules: RuleSettings) -> None:
    """Require that workers can hold SYNs and refuse them. Raises as SynQueue and Refuser."""
    Refuser(refusal_mark(rules).value).close()
    nfqueue.require_free(range(rules.queue, rules.queue + QUEUES))


def worker_count(configured: int | str) -> int:
    """How many workers to run; "auto": one for each processor this process may use."""
    if isinstance(configured, int):
        return configured
    return min(len(os.sched_getaffinity(0)), MAX_AUTO_WORKERS)


def _summary(config: Config) -> str:
    prefix = "no default prefix" if config.default_prefix is None else f"prefix {config.default_prefix}"
    return f"{prefix}, {len(config.paths)} paths, {len(config.local)} local networks"
