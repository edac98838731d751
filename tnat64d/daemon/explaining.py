"""What the running daemon knows of one destination, for `tnat64d why`.

Owns the arguments of the request and the form of its answer; `core.facts.Told` is what a client makes of it.
Refuses to own what is known (`daemon.pool`, `daemon.rules`), and everything outside of the daemon.
"""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import IPv4Address
from typing import Any

from tnat64d.core.config import Config, Local, Network, Way
from tnat64d.core.facts import Destined, Told
from tnat64d.core.failures import Failure
from tnat64d.core.policy import ScopeState
from tnat64d.core.settings import Settings, as_tables, of_tables
from tnat64d.daemon.control import Answer, Question
from tnat64d.daemon.pool import WorkerPool
from tnat64d.daemon.rules import RulesThread
from tnat64d.errors import UsageError
from tnat64d.proxy.destination import scope_key


def answer(question: Question, config: Config, settings: Settings, pool: WorkerPool, rules: RulesThread) -> Answer:
    """To `{"request": "why", "address": TEXT, "port": NUMBER}`. Raises UsageError."""
    port = question.arguments.get("port", 0)
    try:
        address = IPv4Address(str(question.arguments["address"]))
    except (KeyError, ValueError):
        raise UsageError('"why" needs an IPv4 "address"') from None
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise UsageError('"port" must be a number up to 65535, 0 for none')
    sticky_scope = settings.policy.sticky_scope
    state = pool.scope_state(scope_key(sticky_scope, config.route(address, port), address))
    failure = pool.last_failure(str(address), port)
    return {
        "destined": asdict(Destined.by(config, address, port)),
        "is_sticky": state is ScopeState.NAT64_STICKY,
        "sticky_scope": sticky_scope.value,
        "failure": None if failure is None else asdict(failure),
        "refused_for_s": rules.refused_for_s((str(address), port)) if port else None,
        "local": [asdict(local) for local in config.local],
        "settings": as_tables(settings),
    }


def told(answer: dict[str, Any]) -> Told:
    """What came over the control socket, as a value."""
    destined = answer["destined"]
    failure = answer["failure"]
    return Told(
        state=answer["state"],
        pid=answer["pid"],
        listener=answer["listener"],
        destined=Destined(**(destined | {"way": Way(destined["way"])})),
        is_sticky=answer["is_sticky"],
        sticky_scope=answer["sticky_scope"],
        failure=None if failure is None else Failure(**failure),
        refused_for_s=answer["refused_for_s"],
        local=tuple(Local(Network(**local["network"]), local["line"]) for local in answer["local"]),
        settings=of_tables(answer["settings"], answer["listener"]),
    )
