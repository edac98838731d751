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
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from tnat64d.core.policy import ScopeState, StickyMemory
from tnat64d.core.settings import Mode, Settings
from tnat64d.daemon import journal
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
from tnat64d.daemon.failure_reports import FailureReports
from tnat64d.kernel import original_dst
from tnat64d.kernel.nfqueue import SynQueue
from tnat64d.kernel.original_dst import Destination
from tnat64d.kernel.refusals import Refuser
from tnat64d.kernel.sock_diag import SocketTable
from tnat64d.proxy.connection import Connection
from tnat64d.proxy.counters import Counter, Counters, map_block
from tnat64d.proxy.destination import Destinations, Target
from tnat64d.proxy.dialer import Dialer, DialSettings
from tnat64d.proxy.listener import Listener
from tnat64d.proxy.reactor import Reactor
from tnat64d.proxy.relay import Relay, reset
from tnat64d.proxy.sources import SourceLimit
from tnat64d.proxy.syn_gate import MAX_HELD, QUEUE_ROOM, SynGate

OVER_LIMIT_INTERVAL_S = 60.0
"""So often at most the log says that a source is over its limit."""

_log = logging.getLogger("tnat64d.daemon.worker")  # __name__ is "__main__" in the process

# Plain integers: an enum's member costs 0.1 us to look up (Python 3.11, enum.property.__get__).
_ACCEPTED = int(Counter.ACCEPTED)
_ACCEPT_PAUSES = int(Counter.ACCEPT_PAUSES)
_ACTIVE = int(Counter.ACTIVE)
_DOWN_BYTES = int(Counter.DOWN_BYTES)
_HELD = int(Counter.HELD)
_NOT_HELD = int(Counter.NOT_HELD)
_NOT_CAPTURED = int(Counter.NOT_CAPTURED)
_OVER_LIMIT = int(Counter.OVER_LIMIT)
_REFUSED = int(Counter.REFUSED)
_RELAYED_IPV4 = int(Counter.RELAYED_IPV4)
_RELAYED_NAT64 = int(Counter.RELAYED_NAT64)
_RESET = int(Counter.RESET)
_UP_BYTES = int(Counter.UP_BYTES)


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a worker is born with: file descriptors, its number, and the kind of its loop."""

    loop: str
    slot: int
    channel_fd: int
    listener_fd: int
    counters_fd: int


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
        return asyncio.new_event_loop
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
    """A data plane and the supervisor's orders; a `proxy.connection.Observer`."""

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
        self._counters = counters
        self._tell = tell
        self._use(settings)
        self._draining = False
        self._reset = 0
        self.drained = asyncio.Event()
        self._memory = StickyMemory(settings.policy.sticky_entries, start.sticky, start.epoch)
        self._failures = FailureReports(loop, tell)
        self._reactor = Reactor(loop)
        self._told_unmapped = False
        most = start.max_per_source
        self._sources = SourceLimit(most, original_dst.is_own) if most else None
        self._said_over_limit = -OVER_LIMIT_INTERVAL_S
        self._destinations = Destinations(
            start.config, settings.policy.sticky_scope, listening.getsockname(), self._unmapped
        )
        self._dialer = Dialer(loop, self._reactor, _dial_settings(settings), self._memory, self)
        self._gate = self._make_gate(start) if start.queues else None
        self._listener = Listener(
            loop,
            self._reactor,
            listening,
            original_dst.diverted if settings.rules.mode is Mode.TPROXY else original_dst.redirected,
            self._destinations,
            self._dialer,
            self,
            start.max_connections,
            self._sources,
            self._gate,
        )

    def _make_gate(self, start: Start) -> SynGate:
        return SynGate(
            self._loop,
            self._reactor,
            SynQueue(start.queues, QUEUE_ROOM),
            Refuser(start.settings.rules.mark),
            SocketTable(),
            self._destinations,
            self._dialer,
            self,
            MAX_HELD,
            start.max_connections,
        )

    def start(self) -> None:
        """Accept from now on."""
        self._counters[_ACTIVE] = 0
        self._listener.start()
        if self._gate is not None:
            self._gate.start()

    def handle(self, message: Message) -> None:
        """Do what the supervisor says."""
        match message:
            case Reload(config, settings, max_connections):
                self._use(settings)
                self._destinations.use(config, settings.policy.sticky_scope)
                self._dialer.use(_dial_settings(settings))
                self._listener.limit(max_connections)
                self._told_unmapped = False
            case Learned(scope, state):
                self._memory.learn(scope, state)
            case RoutesChanged():
                self._memory.forget_all()
            case Ping():
                self._tell(Pong())
            case Drain(timeout_s):
                self._drain(timeout_s)

    def _use(self, settings: Settings) -> None:
        self._log_closed = settings.log.connections == "all"
        self._log_refused = settings.log.connections != "none"

    def stop(self) -> int:
        """End everything at once; how many connections that reset."""
        self._stop_accepting()
        self._reset_all()
        self._dialer.close()
        self._reactor.stop()
        return self._reset

    def _drain(self, timeout_s: float) -> None:
        self._draining = True
        self._stop_accepting()
        # Not closed: a TPROXY rule that finds no socket drops the packet (net/netfilter/xt_TPROXY.c), and a
        # client would wait. What connects while others drain is reset.
        self._loop.add_reader(self._listening.fileno(), self._turn_away)
        self._loop.call_later(timeout_s, self._reset_all)
        self._check_drained()

    def _stop_accepting(self) -> None:
        """First what has connected: its upstream may wait at the gate."""
        self._listener.stop()
        if self._gate is not None:
            self._gate.stop()

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

    def _over(self, connection: Connection) -> None:
        if self._sources is not None:
            self._sources.leave(connection.client[0])
        self._counters[_ACTIVE] = self._dialer.active
        if self._draining:
            self._check_drained()
        else:
            self._listener.connection_ended()

    def _check_drained(self) -> None:
        if not self._dialer.active:
            self.drained.set()

    def _unmapped(self, target: Target) -> None:
        if not self._told_unmapped:
            self._told_unmapped = True
            self._tell(Unmapped("{}:{}".format(*target.destination), target.route.reason))

    def accepted(self) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_ACCEPTED] += 1
        self._counters[_ACTIVE] += 1

    def not_captured(self, client: Destination) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_NOT_CAPTURED] += 1
        if self._log_refused:
            _log.info("%s:%d refused: it connected to the listener itself, not to an IPv4 server", *client)

    def over_limit(self, client: Destination) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_OVER_LIMIT] += 1
        now = self._loop.time()
        if now - self._said_over_limit >= OVER_LIMIT_INTERVAL_S:
            self._said_over_limit = now
            _log.warning(
                "%s has as many connections as one source may have, more are reset: "
                "proxy.max_connections_per_source (said once a minute; %d so far)",
                client[0],
                self._counters[_OVER_LIMIT],
            )

    def refused(self, connection: Connection) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_REFUSED] += 1
        if not connection.client_gone:
            self._failures.remember(connection)
        if self._log_refused:
            _log.info("%s", journal.refused_line(connection, self._loop.time() - connection.since))
        self._over(connection)

    def closed(self, connection: Connection, relay: Relay) -> None:
        """See `proxy.connection.Observer`."""
        counters = self._counters
        counters[_RELAYED_NAT64 if connection.by_nat64 else _RELAYED_IPV4] += 1
        counters[_UP_BYTES] += relay.client.passed_bytes
        counters[_DOWN_BYTES] += relay.upstream.passed_bytes
        if relay.closed_by_reset:
            counters[_RESET] += 1
        if self._log_closed:
            _log.info("%s", journal.closed_line(connection, relay, self._loop.time() - connection.since))
        self._over(connection)

    def learned(self, scope: Hashable, state: ScopeState, connection: Connection) -> None:
        """See `proxy.connection.Observer`."""
        sticky = state is ScopeState.NAT64_STICKY
        _log.info(
            "%s %s",
            "all destinations" if scope is None else scope,
            "go through NAT64 from now on: it answered"
            if sticky
            else "try IPv4 first again: NAT64 is unreachable",
        )
        self._tell(Learned(scope, state, self._memory.epoch))

    def held(self) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_HELD] += 1
        self._counters[_ACTIVE] += 1

    def not_held(self) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_NOT_HELD] += 1
        if self._counters[_NOT_HELD] == 1:
            _log.warning(
                "more than %d connects wait for an answer, or proxy.max_connections is reached: those beyond are "
                "plain (said once)",
                MAX_HELD,
            )

    def answered(self) -> None:
        """See `proxy.connection.Observer`."""
        self._over()

    def exhausted(self) -> None:
        """See `proxy.connection.Observer`."""
        self._counters[_ACCEPT_PAUSES] += 1
        if self._counters[_ACCEPT_PAUSES] == 1:
            _log.warning(
                "no file descriptors or socket memory left with %d connections: accepting rests until there are; "
                "raise LimitNOFILE= or lower proxy.max_connections (said once)",
                self._dialer.active,
            )
        self._listener.pause()


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
    _loop, *_numbers = sys.argv[1:]
    sys.exit(main(Inheritance(_loop, *map(int, _numbers))))
