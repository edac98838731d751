"""One worker process: a data plane, told what to do by its supervisor.

Owns the event loop, the data plane's parts and their wiring. Refuses to own signals (it ignores those that a
terminal or a service manager sends to the whole group) and the kernel's rules.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tnat64d.core.marks import refusal_mark, worker_marks
from tnat64d.core.policy import StickyMemory
from tnat64d.core.settings import Mode, Settings
from tnat64d.daemon import journal
from tnat64d.daemon.bookkeeping import Bookkeeping
from tnat64d.daemon.channel import (
    Channel,
    Drain,
    Drained,
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
from tnat64d.kernel import in_flight, original_dst
from tnat64d.kernel.nfqueue import SynQueue
from tnat64d.kernel.refusals import Refuser
from tnat64d.kernel.sock_diag import SocketTable
from tnat64d.proxy.counters import Counters, map_block
from tnat64d.proxy.destination import Destinations, Target
from tnat64d.proxy.dialer import Dialer, DialSettings
from tnat64d.proxy.listener import Listener
from tnat64d.proxy.loop import ReactorLoop, reactor_of
from tnat64d.proxy.reactor import Reactor
from tnat64d.proxy.relay import reset
from tnat64d.proxy.sources import SourceLimit
from tnat64d.proxy.syn_gate import MAX_HELD, QUEUE_ROOM, SynGate

_log = logging.getLogger("tnat64d.daemon.worker")  # __name__ is "__main__" in the process


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a worker is born with: file descriptors, its number, and the kind of its loop.

    `shared_fds`: those with which owned rules go (`kernel.owned`), if there are any.
    """

    loop: str
    slot: int
    channel_fd: int
    listener_fd: int
    counters_fd: int
    shared_fds: tuple[int, ...]


def main(inheritance: Inheritance) -> int:
    """Run a worker until its supervisor says so or is gone; the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _name_process(f"tnat64d-w{inheritance.slot}")
    with asyncio.Runner(loop_factory=_loop_factory(inheritance.loop)) as runner:
        runner.run(_serve(inheritance))
    return 0


def _loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if loop == "asyncio":
        return lambda: ReactorLoop(Reactor())
    import uvloop

    return uvloop.new_event_loop


def _name_process(name: str) -> None:
    """For ps and top; the kernel keeps 15 characters (proc(5), comm)."""
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(name)
    except OSError:
        pass  # a name is not worth a failure


async def _serve(inheritance: Inheritance) -> None:
    channel = await Channel.over(socket.socket(fileno=inheritance.channel_fd))
    start = await channel.receive()
    if not isinstance(start, Start):
        return
    journal.configure(os.environ, verbose=start.verbose, process=str(inheritance.slot))
    listening = socket.socket(fileno=inheritance.listener_fd)
    counters = map_block(inheritance.counters_fd)
    worker = Worker(start, listening, counters, channel.send)
    if inheritance.shared_fds:
        in_flight.fill_below(in_flight.put(inheritance.shared_fds))
    worker.start()
    # What exists now stays: the collector need not look at it again and again (gc.freeze).
    gc.collect()
    gc.freeze()
    channel.send(Ready())
    orders = asyncio.ensure_future(_obey(channel, worker))
    drained = asyncio.ensure_future(worker.drained.wait())
    await asyncio.wait({orders, drained}, return_when="FIRST_COMPLETED")
    drained.cancel()
    if not orders.cancel():
        orders.result()
    channel.send(Drained(worker.stop()))
    await channel.flush()
    channel.close()


async def _obey(channel: Channel, worker: Worker) -> None:
    """Until the supervisor is gone, or closes the channel to end this worker at once."""
    while (message := await channel.receive()) is not None:
        worker.handle(message)


class Worker:
    """A data plane and the supervisor's orders; a `bookkeeping.Plane`."""

    def __init__(
        self,
        start: Start,
        listening: socket.socket,
        counters: Counters,
        tell: Callable[[Message], None],
    ) -> None:
        settings = start.settings
        self._loop = loop = asyncio.get_running_loop()
        self._listening = listening
        self._tell = tell
        self._draining = False
        self._reset = 0
        self.drained = asyncio.Event()
        self._memory = StickyMemory(settings.policy.sticky_entries, start.sticky, start.epoch)
        self._reactor = reactor_of(loop)
        self._told_unmapped = False
        most = start.max_per_source
        sources = SourceLimit(most, original_dst.is_own) if most else None
        self._books = Bookkeeping(loop, counters, settings, self._memory, sources, tell, self)
        self._destinations = Destinations(
            start.config, settings.policy.sticky_scope, listening.getsockname(), self._unmapped
        )
        self._dialer = Dialer(loop, self._reactor, _dial_settings(settings), self._memory, self._books)
        self._gate = self._make_gate(start, sources) if start.queues else None
        self._listener = Listener(
            loop,
            self._reactor,
            listening,
            original_dst.diverted if settings.rules.mode is Mode.TPROXY else original_dst.redirected,
            self._destinations,
            self._dialer,
            self._books,
            start.max_connections,
            sources,
            self._gate,
        )

    def _make_gate(self, start: Start, sources: SourceLimit | None) -> SynGate:
        rules = start.settings.rules
        marks = worker_marks(rules)
        return SynGate(
            self._loop,
            self._reactor,
            SynQueue(start.queues, QUEUE_ROOM),
            Refuser(refusal_mark(rules).value),
            SocketTable(),
            self._destinations,
            self._dialer,
            self._books,
            MAX_HELD,
            start.max_connections,
            sources,
            marks[start.queues[0] - rules.queue] if marks else None,
        )

    def start(self) -> None:
        """Accept from now on."""
        self._listener.start()
        if self._gate is not None:
            self._gate.start()

    def handle(self, message: Message) -> None:
        """Do what the supervisor says."""
        match message:
            case Reload(config, settings, max_connections):
                self._books.use(settings)
                self._destinations.use(config, settings.policy.sticky_scope)
                self._dialer.use(_dial_settings(settings))
                self._listener.limit(max_connections)
                if self._gate is not None:
                    self._gate.limit(max_connections)
                self._told_unmapped = False
            case Learned(scope, state):
                self._memory.learn(scope, state)
            case RoutesChanged():
                self._memory.forget_all()
            case Ping():
                self._tell(Pong())
            case Drain(timeout_s):
                self._drain(timeout_s)

    @property
    def active(self) -> int:
        """See `bookkeeping.Plane`."""
        return self._dialer.active

    def connection_over(self) -> None:
        """See `bookkeeping.Plane`."""
        if self._draining:
            self._check_drained()
        else:
            self._listener.connection_ended()

    def rest(self) -> None:
        """See `bookkeeping.Plane`."""
        self._listener.pause()

    def stop(self) -> int:
        """End everything at once; how many connections that reset."""
        self._stop_accepting()
        if self._gate is not None:
            self._gate.stop()
        self._reset_all()
        self._dialer.close()
        self._reactor.unnest()
        return self._reset

    def _drain(self, timeout_s: float) -> None:
        self._draining = True
        self._stop_accepting()
        # Not closed: a TPROXY rule that finds no socket drops the packet (net/netfilter/xt_TPROXY.c), and a
        # client would wait. What connects while others drain is reset, or refused by the gate.
        self._loop.add_reader(self._listening.fileno(), self._turn_away)
        self._loop.call_later(timeout_s, self._reset_all)
        self._check_drained()

    def _stop_accepting(self) -> None:
        """First what has connected: its upstream may wait at the gate."""
        self._listener.stop()
        if self._gate is not None:
            self._gate.turn_away()

    def _turn_away(self) -> None:
        try:
            while True:
                client, _ = self._listening.accept()
                reset(client)
                client.close()
        except OSError:
            pass  # nobody is left, or has gone already, and then there is another event

    def _reset_all(self) -> None:
        self._reset += self._dialer.active
        self._dialer.abort_all()

    def _check_drained(self) -> None:
        if not self._dialer.active:
            self.drained.set()

    def _unmapped(self, target: Target) -> None:
        if not self._told_unmapped:
            self._told_unmapped = True
            self._tell(Unmapped("{}:{}".format(*target.destination), target.route.reason))


def _dial_settings(settings: Settings) -> DialSettings:
    proxy = settings.proxy
    return DialSettings(
        mark=settings.rules.mark,
        fallback_delay_s=proxy.fallback_delay_s,
        connect_timeout_s=proxy.connect_timeout_s,
        idle_timeout_s=proxy.idle_timeout_s,
        keepalive_s=proxy.keepalive_s,
    )


if __name__ == "__main__":
    _loop, *_arguments = sys.argv[1:]
    _slot, _channel, _listener, _counters, *_shared = map(int, _arguments)
    sys.exit(main(Inheritance(_loop, _slot, _channel, _listener, _counters, tuple(_shared))))
