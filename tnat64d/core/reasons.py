"""Why a connection goes the way it goes: the chain of reasons, from facts that somebody else has gathered.

Owns the order of the reasons, their words and the verdict. Refuses to own the facts (`core.facts`), how the answer
is shown (`core.explanation`), the rules (`core.description`), the route (`core.config`) and the policy
(`core.policy`): it asks these.

    step      decides, with this verdict, if
    local     the rules leave the destination alone: local
    scope     the rules leave the program or the port alone: not captured
    route     there is none: not captured, for connect() fails before any rule is asked
    rules     none stand, or others than were made: not captured
    daemon    it does not run: none
    refusal   the kernel refuses the destination, as it failed a short time ago: refused
    prefix, state, ipv4, nat64: nat64, ipv4 or none

What is left alone needs no more steps. Where route, rules or daemon are missing, those below are told all the
same: what would be.
"""

from __future__ import annotations

from tnat64d.core import description
from tnat64d.core.capture import Packet, decisive_rule
from tnat64d.core.config import ALWAYS_LOCAL
from tnat64d.core.explanation import Explanation, Outcome, Step, error_name
from tnat64d.core.facts import Facts, RouteFound, Silence, Told
from tnat64d.core.failures import Failure
from tnat64d.core.ruleset import ROUTE_PROTOCOL, Match, Rule, Verdict
from tnat64d.core.scope import Program


def explain(facts: Facts) -> Explanation:
    """The chain of reasons for `facts`."""
    described = description.describe(facts.config, facts.settings.rules, facts.scope, facts.settings.proxy.port)
    asker = facts.asker
    packet = Packet(
        destination=facts.address,
        port=facts.port,
        is_own=facts.route.is_own,
        uid=asker.uid,
        gid=asker.gid,
        cgroup=asker.cgroup,
    )
    rule = decisive_rule(described, packet)
    outcome, because = _verdict(facts, rule)
    steps = [_route_step(facts), *_rule_steps(facts, rule)]
    if rule is None or rule.verdict is Verdict.RETURN:
        steps += [_daemon_step(facts)] if facts.changed_files else []
    else:
        steps += [_standing_step(facts), _daemon_step(facts), *_way_steps(facts)]
    told = facts.daemon if isinstance(facts.daemon, Told) else None
    return Explanation(
        address=facts.address,
        port=facts.port,
        outcome=outcome,
        because=because,
        destined=facts.destined,
        failure=None if told is None else told.failure,
        refused_for_s=told.refused_for_s if told is not None and outcome is Outcome.REFUSED else None,
        steps=tuple(steps),
    )


def _verdict(facts: Facts, rule: Rule | None) -> tuple[Outcome, str]:
    if rule is None or rule.verdict is Verdict.RETURN:
        return _outcome_alone(facts, rule), f"{_why_alone(facts, rule)}, and {_left_alone(facts.route)}"
    if facts.route.error:
        return Outcome.NOT_CAPTURED, f"there is no route: connect() fails with {error_name(facts.route.error)}"
    if facts.standing == ():
        return Outcome.NOT_CAPTURED, "no rules of tnat64d stand in the kernel"
    if facts.changed_rules:
        return Outcome.NOT_CAPTURED, f"rules of tnat64d are not as it makes them: {', '.join(facts.changed_rules)}"
    if isinstance(facts.daemon, Silence) and not facts.daemon.is_running:
        return Outcome.NONE, "the daemon does not run: what is captured is refused"
    if isinstance(facts.daemon, Told) and facts.daemon.refused_for_s is not None:
        return Outcome.REFUSED, f"it failed {_ago(facts.daemon.failure, facts.now)}"
    if isinstance(facts.daemon, Told) and facts.daemon.state != "serving":
        return Outcome.NONE, f"the daemon is {facts.daemon.state}: it takes no new connections"
    return _way(facts)


def _outcome_alone(facts: Facts, rule: Rule | None) -> Outcome:
    is_local = rule is not None and _locality(facts, rule.match) is not None
    return Outcome.LOCAL if is_local else Outcome.NOT_CAPTURED


def _why_alone(facts: Facts, rule: Rule | None) -> str:
    if rule is None:
        return f"the scope does not include it ({_including(facts)})"
    if (locality := _locality(facts, rule.match)) is not None:
        fact, _ = locality
        return f"it is left alone ({fact})"
    return f"{_keys(facts, rule.match, 'not_')} leaves {_shown(facts, rule.match)} alone"


def _left_alone(route: RouteFound) -> str:
    if route.error:
        return f"there is no route to it: connect() fails with {error_name(route.error)}"
    if _is_ours(route):
        return "there is no IPv4 route to it: connect() fails at once"
    return f"it goes by the IPv4 route of this host, {route.text}"


def _way(facts: Facts) -> tuple[Outcome, str]:
    """What the daemon tries, in its order, as far as the host's own routes tell."""
    ipv4_error = facts.ipv4.error
    no_ipv4 = f"IPv4 is unreachable ({error_name(ipv4_error)})"
    if facts.nat64 is None:
        reason = facts.destined.reason
        return (Outcome.NONE, f"{reason}, and {no_ipv4}") if ipv4_error else (Outcome.IPV4, reason)
    is_sticky = isinstance(facts.daemon, Told) and facts.daemon.is_sticky
    no_nat64 = f"the host has no route to NAT64 ({error_name(facts.nat64.error)})"
    if is_sticky and not facts.nat64.error:
        return Outcome.NAT64, "NAT64 has answered before: IPv4 is not tried"
    if not ipv4_error:
        return Outcome.IPV4, no_nat64 if is_sticky else "IPv4 comes first, and this host has a route"
    if facts.nat64.error:
        return Outcome.NONE, f"{no_ipv4}, and {no_nat64}"
    return Outcome.NAT64, no_ipv4


def _route_step(facts: Facts) -> Step:
    route = facts.route
    if route.error:
        fact = f"none, {error_name(route.error)}"
    elif _is_ours(route):
        fact = f"{route.text}: that of tnat64d, there is no other"
    else:
        fact = route.text
    source = f"ip -4 route get fibmatch {facts.address} ipproto tcp uid {facts.asker.uid}"
    return Step("route", fact, source)


def _rule_steps(facts: Facts, rule: Rule | None) -> list[Step]:
    if rule is not None and rule.verdict is Verdict.RETURN:
        if (locality := _locality(facts, rule.match)) is not None:
            return [Step("local", *locality)]
        return [
            _not_local(facts),
            Step(
                "scope",
                f"left alone: {_shown(facts, rule.match)}",
                _source(facts, _keys(facts, rule.match, "not_")),
            ),
        ]
    if rule is None:
        asker = facts.asker
        who = f"user {asker.uid}, group {asker.gid}, control group /{asker.cgroup}"
        what = f"port {facts.port}" if facts.port else "no port given"
        return [
            _not_local(facts),
            Step("scope", f"left alone: not included ({who}, {what})", _source(facts, _including(facts))),
        ]
    carried = _shown(facts, rule.match)
    if carried:
        source = _source(facts, _keys(facts, rule.match, ""))
        return [_not_local(facts), Step("scope", f"carried: {carried}", source)]
    return [_not_local(facts), Step("scope", "carried: nothing excludes it", f"{facts.settings_file}: [scope]")]


def _including(facts: Facts) -> str:
    """The keys by which the scope is not everything."""
    scope = facts.settings.scope
    keys = {
        "exec": scope.exec,
        "users": scope.users,
        "groups": scope.groups,
        "cgroups": scope.cgroups,
        "units": scope.units,
        "networks": scope.networks,
        "ports": scope.ports,
    }
    return ", ".join(f"scope.{key}" for key, value in keys.items() if value) or "[scope]"


def _source(facts: Facts, keys: str) -> str:
    return f"{facts.settings_file}: {keys}"


def _locality(facts: Facts, match: Match) -> tuple[str, str] | None:
    """Fact and source, where `match` is about local destinations."""
    if match.destination_is_own:
        return "an address of this host", "ip -4 route show table local"
    if match.ports is None:
        for local in facts.config.local:
            if local.network == match.destination:
                return f"local network {local.network}", f"{facts.conf_file}:{local.line}"
        if match.destination in ALWAYS_LOCAL:
            return f"always local: {match.destination}", "tnat64.conf(5)"
    return None


def _not_local(facts: Facts) -> Step:
    return Step("local", "no", facts.conf_file)


def _shown(facts: Facts, match: Match) -> str:
    parts = []
    if match.destination is not None:
        parts.append(f"network {match.destination}")
    if match.ports is not None:
        first, last = match.ports
        parts.append(f"port {first}" if first == last else f"ports {first}-{last}")
    if match.uid is not None:
        parts.append(f"user {match.uid}")
    if match.gid is not None:
        parts.append(f"group {match.gid}")
    if _is_of_exec(facts, match):
        parts.append("started by tnat64d exec")
    elif match.cgroup is not None:
        parts.append(f"control group {match.cgroup}")
    return ", ".join(parts)


def _keys(facts: Facts, match: Match, prefix: str) -> str:
    keys = {
        "networks": match.destination,
        "ports": match.ports,
        "users": match.uid,
        "groups": match.gid,
        "exec" if _is_of_exec(facts, match) else "cgroups or units": match.cgroup,
    }
    return ", ".join(f"scope.{prefix}{key}" for key, value in keys.items() if value is not None)


def _is_of_exec(facts: Facts, match: Match) -> bool:
    return Program(cgroup=match.cgroup) in facts.scope.commands


def _standing_step(facts: Facts) -> Step:
    if facts.standing is None:
        return Step("rules", "taken to stand: only root may look", "the kernel")
    if not facts.standing:
        return Step("rules", "none stand: run tnat64d up, or start the service", "the kernel")
    places = ", ".join(facts.standing)
    if facts.changed_rules:
        return Step(
            "rules", f"gone or changed: {', '.join(facts.changed_rules)}; tnat64d doctor tells more", places
        )
    return Step("rules", "they stand, and capture it", places)


def _daemon_step(facts: Facts) -> Step:
    daemon = facts.daemon
    source = facts.settings.control.socket
    if isinstance(daemon, Silence):
        return Step("daemon", daemon.sentence, source)
    fact = f"{daemon.state}, pid {daemon.pid}, on {daemon.listener}"
    for file in facts.changed_files:
        fact += f"; {file} has changed since it was read: run tnat64d reload"
    return Step("daemon", fact, source)


def _way_steps(facts: Facts) -> list[Step]:
    destined = facts.destined
    source = facts.conf_file if destined.line is None else f"{facts.conf_file}:{destined.line}"
    prefix = destined.reason if destined.prefix is None else f"{destined.prefix}, {destined.reason}"
    steps = [*_refusal_steps(facts), Step("prefix", prefix, source)]
    if facts.nat64 is not None:
        steps.append(_state_step(facts))
    mark = f"{facts.settings.rules.mark:#x}"
    ipv4 = _reached(facts.ipv4)
    steps.append(Step("ipv4", ipv4, f"ip -4 route get fibmatch {facts.address} ipproto tcp mark {mark}"))
    if facts.nat64 is not None:
        nat64_source = f"ip -6 route get fibmatch {destined.nat64_address}"
        steps.append(Step("nat64", f"{destined.nat64_address}: {_reached(facts.nat64)}", nat64_source))
    if isinstance(facts.daemon, Told):
        steps.append(Step("last failure", _failed(facts.daemon.failure, facts.now), facts.settings.control.socket))
    return steps


def _refusal_steps(facts: Facts) -> list[Step]:
    if isinstance(facts.daemon, Silence) or facts.daemon.refused_for_s is None:
        return []
    fact = f"the kernel itself refuses it, for another {facts.daemon.refused_for_s:.1f} s"
    return [Step("refusal", fact, "nft list set ip tnat64d refused")]


def _state_step(facts: Facts) -> Step:
    if isinstance(facts.daemon, Silence):
        return Step("state", "not known; it begins with IPv4 first", "tnat64d(8)")
    scope = f"scope {facts.settings.policy.sticky_scope}"
    fact = "NAT64 sticky: it is dialled at once" if facts.daemon.is_sticky else "IPv4 first"
    return Step("state", f"{fact} ({scope})", facts.settings.control.socket)


def _failed(failure: Failure | None, now: float) -> str:
    return "none is remembered" if failure is None else _ago(failure, now)


def _ago(failure: Failure | None, now: float) -> str:
    if failure is None:
        return "a short time ago"
    errors = {"IPv4": failure.ipv4_error, "NAT64": failure.nat64_error}
    shown = ", ".join(f"{way} {error_name(error)}" for way, error in errors.items() if error)
    return f"{max(0, now - failure.at):.0f} s ago, port {failure.port}: {shown or 'ended with a reset'}"


def _reached(route: RouteFound) -> str:
    return f"unreachable, {error_name(route.error)}" if route.error else route.text


def _is_ours(route: RouteFound) -> bool:
    return route.protocol == ROUTE_PROTOCOL
