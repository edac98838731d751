"""What the running daemon knows of one destination, and what it goes by, for `tnat64d why` and `tnat64d doctor`.

Owns the arguments of the requests and the form of the answers, and asking them; `core.facts.Told` is what a client
makes of one. Refuses to own what is known (`daemon.pool`, `daemon.rules`), and everything outside of the daemon.
"""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import IPv4Address
from typing import Any

from tnat64d.core.config import Config
from tnat64d.core.facts import Told
from tnat64d.core.failures import Failure
from tnat64d.core.files import Files
from tnat64d.core.policy import ScopeState
from tnat64d.core.settings import Settings
from tnat64d.daemon import control
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
    scope = settings.policy.sticky_scope
    state = pool.scope_state(scope_key(scope, config.route(address, port), address))
    failure = pool.last_failure(str(address), port)
    return {
        "is_sticky": state is ScopeState.NAT64_STICKY,
        "failure": None if failure is None else asdict(failure),
        "refused_for_s": rules.refused_for_s((str(address), port)) if port else None,
    }


def ask_files(path: str) -> Files:
    """Both files as the daemon at the control socket `path` has read them. Raises as `control.ask`."""
    return Files.of_json(control.ask(path, "files", control.CONNECT_TIMEOUT_S))


def ask(path: str, **arguments: Any) -> Told:
    """What it says of the destination in `arguments`. Raises as `control.ask`."""
    answer = control.ask(path, "why", control.CONNECT_TIMEOUT_S, **arguments)
    failure = answer["failure"]
    return Told(
        state=answer["state"],
        pid=answer["pid"],
        listener=answer["listener"],
        rules_way=answer["rules_way"],
        files=ask_files(path),
        is_sticky=answer["is_sticky"],
        failure=None if failure is None else Failure(**failure),
        refused_for_s=answer["refused_for_s"],
    )
