"""The worker processes: kept alive, told what all must know, asked whether they live.

Owns processes, channels, counters, and the memory of sticky scopes that a new worker starts with. Refuses to
own signals, the outside, and connections. The supervisor's death is end of file on every channel, and a
worker ends on that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import strsignal
from socket import socket, socketpair
from typing import Any

import tnat64d
from tnat64d.core.config import Config
from tnat64d.core.failures import Failure, FailureMemory
from tnat64d.core.policy import ScopeState, StickyMemory
from tnat64d.core.ruleset import QUEUES
from tnat64d.core.settings import Settings
from tnat64d.daemon.channel import (
    Channel,
    Drain,
    Drained,
    Failures,
    Learned,
    Message,
    Ping,
    Pong,
    Ready,
    Reload,
    RoutesChanged,
    Start,
    Unmapped,
)
from tnat64d.errors import Tnat64Error
from tnat64d.proxy.counters import BLOCK_SIZE_BYTES, Counter, Counters, map_block

_log = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 3.0
"""For a worker that was told to end at once."""

DEATHS_IN_A_ROW = 5
HEALTHY_S = 10.0
RESTART_DELAY_S = 0.2
"""A worker that has died DEATHS_IN_A_ROW times before it was HEALTHY_S old will not get better."""

DESCRIPTORS_PER_CONNECTION = 2
RESERVED_DESCRIPTORS = 100
"""For the loop, the listener and a number of pipes; where no pipe is to be had, bytes are copied."""


@dataclass(slots=True, eq=False)
class _Slot:
    """One worker's place; it keeps listener and counters while processes come and go."""

    number: int
    listener: socket
    counters_fd: int
    counters: Counters
    process: Process | None = None
    channel: Channel | None = None
    has_answered: bool = True
    unanswered: int = 0


class WorkerPool:
    """As many workers as there are listening sockets."""

    def __init__(self, settings: Settings, config: Config, sockets: Sequence[socket], *, verbose: bool) -> None:
        self._settings = settings
        self._config = config
        self._verbose = verbose
        self._memory = StickyMemory(settings.policy.sticky_entries)
        self._failures = FailureMemory()
        self._slots = [_slot(number, listener) for number, listener in enumerate(sockets)]
        self._shared: tuple[int, ...] = ()
        self._unready = set(range(len(self._slots)))
        self._said_unmapped = False
        self._ending = False
        self._failure: Tnat64Error | None = None
        self.when_failed: Callable[[tuple[Failure, ...]], None] = lambda failures: None
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        raise_descriptor_limit()

    def share(self, fds: tuple[int, ...]) -> None:
        """Let every worker hold `fds`, too, until it has closed its connections."""
        self._shared = fds

    async def run(self) -> None:
        """Keep the workers alive until `drain` or `end_now`. Raises Tnat64Error if one does not stay alive."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for slot in self._slots:
                    tasks.create_task(self._keep(slot), name=f"worker {slot.number}")
        finally:
            for slot in self._slots:
                if slot.process is not None and slot.process.returncode is None:
                    slot.process.kill()
            self.ended.set()
        if self._failure is not None:
            raise self._failure

    def reload(self, config: Config, settings: Settings) -> None:
        """New connections go by `config` and `settings`."""
        scope_changes = settings.policy.sticky_scope is not self._settings.policy.sticky_scope
        self._config, self._settings = config, settings
        self._said_unmapped = False
        self._tell(Reload(config, settings, self._connection_limit()))
        if scope_changes:  # states of the old scopes mean nothing to the new
            self.forget_sticky()

    def forget_sticky(self) -> None:
        """Every scope begins anew."""
        self._memory.forget_all()
        self._tell(RoutesChanged())

    def drain(self, timeout_s: float) -> None:
        """Accept nothing more; the workers end when their connections have, or after `timeout_s`."""
        self._ending = True
        self._close_listeners()
        self._tell(Drain(timeout_s))

    def end_now(self) -> None:
        """The workers reset their connections and end."""
        self._ending = True
        self._close_listeners()
        for slot in self._slots:
            if slot.channel is not None:
                slot.channel.close()

    def ping(self, patience: int) -> bool:
        """Ask every worker whether it lives; True if each has answered since it was asked last.

        One that has not at the `patience`th time is killed: it hangs, and `_keep` starts another. Times are
        counted and not measured, or workers that were frozen together with this process would be killed at thaw.
        """
        alive = all(slot.has_answered for slot in self._slots)
        for slot in self._slots:
            if slot.has_answered:
                slot.unanswered = 0
                if slot.channel is not None:
                    slot.has_answered = False
                    slot.channel.send(Ping())
                continue
            slot.unanswered += 1
            if slot.unanswered == patience and slot.process is not None and slot.process.returncode is None:
                _log.error("worker %d (pid %d) does not answer: it is killed", slot.number, slot.process.pid)
                slot.process.kill()
        return alive

    def total(self, counter: Counter) -> int:
        """The sum over all workers."""
        return sum(slot.counters[counter] for slot in self._slots)

    def sticky_scopes(self) -> list[str | None]:
        """The scopes that are NAT64_STICKY; None is the global one."""
        return [None if scope is None else str(scope) for scope in self._memory.sticky_scopes()]

    def scope_state(self, scope: Hashable) -> ScopeState:
        """The state of one scope."""
        return self._memory.state(scope)

    def last_failure(self, address: str, port: int) -> Failure | None:
        """See `core.failures.FailureMemory.last`."""
        return self._failures.last(address, port)

    def describe(self) -> list[dict[str, Any]]:
        """Each worker's process and counters."""
        return [
            {
                "pid": None if slot.process is None else slot.process.pid,
                **{counter.name.lower(): slot.counters[counter] for counter in Counter},
            }
            for slot in self._slots
        ]

    async def _keep(self, slot: _Slot) -> None:
        deaths = 0
        while not self._ending:
            started = time.monotonic()
            end = await self._live(slot)
            if self._ending:
                return
            deaths = 1 if time.monotonic() - started > HEALTHY_S else deaths + 1
            if deaths == DEATHS_IN_A_ROW:
                sentence = f"worker {slot.number} failed {deaths} times in a row, the last time it {end}"
                self._failure = Tnat64Error(sentence)
                self.end_now()
                return
            _log.error("worker %d %s; a new one is started", slot.number, end)
            await asyncio.sleep(RESTART_DELAY_S * deaths)

    async def _live(self, slot: _Slot) -> str:
        """One process's life in `slot`; how it ended, as the rest of a sentence."""
        try:
            ours, theirs = socketpair()
        except OSError as error:
            return f"could not be started: {error.strerror}"
        with theirs:
            try:
                process = slot.process = await _spawn(slot, theirs, self._settings.proxy.loop, self._shared)
            except OSError as error:
                ours.close()
                return f"could not be started: {error.strerror}"
        _log.debug("worker %d is pid %d", slot.number, process.pid)
        channel = slot.channel = await Channel.over(ours)
        slot.has_answered = True
        if self._ending:  # since it was begun: `drain` and `end_now` knew no channel yet
            channel.close()
        channel.send(
            Start(
                self._config,
                self._settings,
                self._memory.sticky_scopes(),
                self._memory.epoch,
                self._connection_limit(),
                share(self._settings.proxy.max_connections_per_source, len(self._slots)),
                self._verbose,
                queues_of(slot.number, len(self._slots), self._settings),
            )
        )
        while (message := await channel.receive()) is not None:
            self._handle(slot, message)
        channel.close()
        slot.channel, slot.has_answered = None, True
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        return f"(pid {process.pid}) ended {_describe_exit(process.returncode)}, its connections are lost"

    def _handle(self, slot: _Slot, message: Message) -> None:
        match message:
            case Ready():
                self._unready.discard(slot.number)
                if not self._unready:
                    self.ready.set()
            case Learned(scope, state, epoch):
                # To the sender, too: the last word is the same for all, whatever crossed it on the way.
                if epoch == self._memory.epoch and self._memory.learn(scope, state):
                    self._tell(message)
            case Unmapped(destination, reason):
                if not self._said_unmapped:
                    self._said_unmapped = True
                    _log.warning("%s is tried by IPv4 only: %s (said once)", destination, reason)
            case Failures(failures):
                self._failures.remember(failures)
                self.when_failed(failures)
            case Pong():
                slot.has_answered = True
            case Drained(reset):
                if reset:
                    _log.warning("worker %d reset %d connections that had not ended", slot.number, reset)

    def _connection_limit(self) -> int:
        return connection_limit(self._settings.proxy.max_connections, len(self._slots))

    def _close_listeners(self) -> None:
        """The workers have them, too; one that is open here as well would take connections that nobody accepts."""
        for slot in self._slots:
            slot.listener.close()

    def _tell(self, message: Message) -> None:
        for slot in self._slots:
            if slot.channel is not None:
                slot.channel.send(message)


def _slot(number: int, listener: socket) -> _Slot:
    counters_fd = os.memfd_create(f"tnat64d-counters-{number}")
    os.ftruncate(counters_fd, BLOCK_SIZE_BYTES)
    return _Slot(number, listener, counters_fd, map_block(counters_fd))


async def _spawn(slot: _Slot, channel: socket, loop: str, shared: tuple[int, ...]) -> Process:
    """Start a fresh interpreter: a fork of a process with a running loop would share that loop's epoll."""
    fds = (channel.fileno(), slot.listener.fileno(), slot.counters_fd)
    arguments = [str(number) for number in (slot.number, *fds, *shared)]
    package_parent = str(Path(tnat64d.__file__).parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = package_parent if not inherited else f"{package_parent}:{inherited}"
    # -P: a directory tnat64d in the working directory is not this program.
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tnat64d.daemon.worker", loop, *arguments),
        stdin=DEVNULL,
        pass_fds=(*fds, *shared),
        process_group=0,  # what a terminal sends to its foreground group, Ctrl-C, is the supervisor's affair
        env=os.environ | {"PYTHONPATH": path},
    )


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by signal {-code} ({strsignal(-code)})"
    return f"with exit code {code}"


def queues_of(slot: int, workers: int, settings: Settings) -> tuple[int, ...]:
    """The queues of the worker in `slot`: those of the connections it will accept (`kernel.reuseport`)."""
    if settings.proxy.connect != "honest":
        return ()
    return tuple(settings.rules.queue + number for number in range(slot, QUEUES, workers))


def raise_descriptor_limit() -> None:
    """Allow as many open files as the administrator does; workers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limit(configured: int, workers: int) -> int:
    """How many connections one of `workers` may carry; `configured` is for all of them, 0 for no limit."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = max(1, (descriptors - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION)
    return min(possible, share(configured, workers)) if configured else possible


def share(configured: int, workers: int) -> int:
    """What one of `workers` may have of a limit for all, rounded up: the kernel spreads connections by a hash."""
    return -(-configured // workers)
