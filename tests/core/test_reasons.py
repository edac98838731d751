"""The verdict and the chain of reasons, for facts as they can be."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from tnat64d.core import config, settings
from tnat64d.core.explanation import Explanation
from tnat64d.core.facts import Asker, Facts, RouteFound, Silence, Told
from tnat64d.core.failures import Failure
from tnat64d.core.files import Files
from tnat64d.core.reasons import explain
from tnat64d.core.ruleset import ROUTE_PROTOCOL
from tnat64d.core.scope import Place, Program, Scope
from tnat64d.core.settings import Settings

ADDRESS = IPv4Address("198.51.100.10")
CONFIG = config.parse(
    "local = 10.0.0.0/8\nnat64_prefix = 2001:db8:64::\npath {\nsubnet = 8.8.8.0/24\nnat64_prefix = 64:ff9b::\n}\n",
    "t.conf",
)
OURS = RouteFound(text="default dev tnat64d table 6464", protocol=ROUTE_PROTOCOL)
REAL = RouteFound(text="default via 203.0.113.1 dev eth0 table main", protocol=3)
NO_ROUTE = RouteFound(error=errno.ENETUNREACH)
V6 = RouteFound(text="default via fe80::1 dev eth0 table main", protocol=9)
STOPPED = Silence(is_running=False, sentence="no tnat64d answers")
DENIED = Silence(is_running=True, sentence="it does not tell")


def told(
    *,
    is_sticky: bool = False,
    failure: Failure | None = None,
    refused_for_s: float | None = None,
    of: config.Config = CONFIG,
) -> Told:
    return Told(
        state="serving",
        pid=7,
        listener="127.0.0.1:6464",
        rules_way="owned",
        files=Files(of, Settings()),
        is_sticky=is_sticky,
        failure=failure,
        refused_for_s=refused_for_s,
    )


FACTS = Facts(
    conf_file="t.conf",
    settings_file="t.toml",
    config=CONFIG,
    settings=Settings(),
    scope=Scope(),
    asker=Asker(33, 44, "user.slice"),
    address=ADDRESS,
    port=443,
    route=OURS,
    ipv4=NO_ROUTE,
    nat64=V6,
    standing=("nftables table ip tnat64d",),
    daemon=told(),
    now=100.0,
)

FAILURE = Failure(str(ADDRESS), 443, 88.0, errno.ENETUNREACH, errno.ECONNREFUSED, "IPv4 unreachable")
REFUSED = told(failure=FAILURE, refused_for_s=3.21)
FOR_ANOTHER = Settings(scope=settings.Scope(users=("34",)))

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "IPv4 has no route": ({}, "nat64", "IPv4 is unreachable (ENETUNREACH)"),
    "sticky": (
        {"daemon": told(is_sticky=True)},
        "nat64",
        "NAT64 has answered before: IPv4 is not tried",
    ),
    "sticky, although IPv4 has a route": (
        {"daemon": told(is_sticky=True), "route": REAL, "ipv4": REAL},
        "nat64",
        "NAT64 has answered before: IPv4 is not tried",
    ),
    "IPv4 has a route": ({"route": REAL, "ipv4": REAL}, "ipv4", "IPv4 comes first, and this host has a route"),
    "sticky, but NAT64 has no route": (
        {"daemon": told(is_sticky=True), "route": REAL, "ipv4": REAL, "nat64": NO_ROUTE},
        "ipv4",
        "the host has no route to NAT64 (ENETUNREACH)",
    ),
    "neither has a route": (
        {"nat64": NO_ROUTE},
        "none",
        "IPv4 is unreachable (ENETUNREACH), and the host has no route to NAT64 (ENETUNREACH)",
    ),
    "no prefix": (
        {"config": config.Config(), "daemon": told(of=config.Config()), "nat64": None},
        "none",
        "no prefix for this destination, and IPv4 is unreachable (ENETUNREACH)",
    ),
    "no prefix, but a route": (
        {
            "config": config.Config(),
            "daemon": told(of=config.Config()),
            "nat64": None,
            "route": REAL,
            "ipv4": REAL,
        },
        "ipv4",
        "no prefix for this destination",
    ),
    "no route at all": (
        {"route": NO_ROUTE, "standing": ()},
        "not captured",
        "there is no route: connect() fails with ENETUNREACH",
    ),
    "no rules": ({"standing": ()}, "not captured", "no rules of tnat64d stand in the kernel"),
    "rules that are not ours any more": (
        {"changed_rules": ("the chain TNAT64D",)},
        "not captured",
        "rules of tnat64d are not as it makes them: the chain TNAT64D",
    ),
    "no daemon": ({"daemon": STOPPED}, "none", "the daemon does not run: what is captured is refused"),
    "a daemon that ends": (
        {"daemon": replace(told(), state="draining")},
        "none",
        "the daemon is draining: it takes no new connections",
    ),
    "neither rules nor a daemon": (
        {"daemon": STOPPED, "standing": (), "route": REAL},
        "not captured",
        "no rules of tnat64d stand in the kernel",
    ),
    "refused by the kernel": (
        {"daemon": REFUSED},
        "refused",
        "it failed 12 s ago, port 443: IPv4 ENETUNREACH, NAT64 ECONNREFUSED",
    ),
    "refused by the kernel, and why is forgotten": (
        {"daemon": told(refused_for_s=3.21)},
        "refused",
        "it failed a short time ago",
    ),
    "local, although it would be refused": (
        {"address": IPv4Address("10.0.0.1"), "daemon": REFUSED},
        "local",
        "it is left alone (local network 10.0.0.0/8), and there is no IPv4 route to it: connect() fails at once",
    ),
    "it would be refused, but there is no route": (
        {"route": NO_ROUTE, "daemon": REFUSED},
        "not captured",
        "there is no route: connect() fails with ENETUNREACH",
    ),
    "nobody may look": ({"daemon": DENIED, "standing": None}, "nat64", "IPv4 is unreachable (ENETUNREACH)"),
    "local without a route": (
        {"address": IPv4Address("10.0.0.1")},
        "local",
        "it is left alone (local network 10.0.0.0/8), and there is no IPv4 route to it: connect() fails at once",
    ),
    "local without even a route of ours": (
        {"address": IPv4Address("10.0.0.1"), "route": NO_ROUTE, "standing": (), "daemon": STOPPED},
        "local",
        "it is left alone (local network 10.0.0.0/8), and "
        "there is no route to it: connect() fails with ENETUNREACH",
    ),
    "local with a route": (
        {"address": IPv4Address("10.0.0.1"), "route": REAL},
        "local",
        f"it is left alone (local network 10.0.0.0/8), and it goes by the IPv4 route of this host, {REAL.text}",
    ),
    "an own address": (
        {"route": RouteFound(text="198.51.100.10/32 dev lo table local", is_own=True)},
        "local",
        "it is left alone (an address of this host), and "
        "it goes by the IPv4 route of this host, 198.51.100.10/32 dev lo table local",
    ),
    "an excluded user": (
        {"scope": Scope(not_programs=(Program(uid=33),))},
        "not captured",
        "scope.not_users leaves user 33 alone, and there is no IPv4 route to it: connect() fails at once",
    ),
    "a local destination of an excluded user": (
        {"scope": Scope(not_programs=(Program(uid=33),)), "address": IPv4Address("127.0.0.1"), "route": REAL},
        "local",
        f"it is left alone (always local: 127.0.0.0/8), and it goes by the IPv4 route of this host, {REAL.text}",
    ),
    "another user": (
        {"scope": Scope(programs=(Program(uid=34),)), "settings": FOR_ANOTHER, "route": REAL},
        "not captured",
        f"the scope does not include it (scope.users), and it goes by the IPv4 route of this host, {REAL.text}",
    ),
}


def explained(**changes: Any) -> Explanation:
    return explain(replace(FACTS, **changes))


def steps(explanation: Explanation) -> dict[str, tuple[str, str]]:
    return {step.name: (step.fact, step.source) for step in explanation.steps}


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_follows_from_the_first_reason_that_decides(name: str) -> None:
    changes, way, because = CASES[name]
    explanation = explained(**changes)
    assert (explanation.outcome, explanation.because) == (way, because)


@pytest.mark.parametrize(
    ("scope", "fact", "source"),
    [
        (Scope(), "carried: nothing excludes it", "t.toml: [scope]"),
        (Scope(programs=(Program(uid=33),)), "carried: user 33", "t.toml: scope.users"),
        (
            Scope(programs=(Program(cgroup="user.slice"),), places=(Place(ports=(1, 443)),)),
            "carried: ports 1-443, control group user.slice",
            "t.toml: scope.ports, scope.cgroups or units",
        ),
        (
            Scope(commands=(Program(cgroup="user.slice"),)),
            "carried: started by tnat64d exec",
            "t.toml: scope.exec",
        ),
        (Scope(not_programs=(Program(gid=44),)), "left alone: group 44", "t.toml: scope.not_groups"),
        (Scope(not_places=(Place(ports=(443, 443)),)), "left alone: port 443", "t.toml: scope.not_ports"),
        (
            Scope(programs=(Program(uid=1),)),
            "left alone: not included (user 33, group 44, control group /user.slice, port 443)",
            "t.toml: [scope]",
        ),
    ],
)
def test_the_scope_names_the_condition_and_its_key(scope: Scope, fact: str, source: str) -> None:
    found = steps(explained(scope=scope))
    assert found["scope"] == (fact, source)
    assert ("daemon" in found) == fact.startswith("carried")


def test_a_line_of_the_file_is_the_source_of_what_it_decides() -> None:
    assert steps(explained(address=IPv4Address("10.0.0.1")))["local"] == ("local network 10.0.0.0/8", "t.conf:1")
    fact, source = steps(explained())["prefix"]
    assert (fact, source) == ("2001:db8:64::/96, default prefix, line 2", "t.conf:2")
    always = steps(explained(address=IPv4Address("169.254.0.1")))["local"]
    assert always == ("always local: 169.254.0.0/16", "tnat64.conf(5)")


def test_a_network_that_the_scope_excludes_is_not_called_local() -> None:
    network = CONFIG.paths[0].subnets[0].network
    explanation = explained(address=IPv4Address("8.8.8.8"), scope=Scope(not_places=(Place(network=network),)))
    assert explanation.outcome == "not captured"
    assert steps(explanation)["scope"] == ("left alone: network 8.8.8.0/24", "t.toml: scope.not_networks")


def test_a_prefix_that_must_not_carry_the_address_is_a_reason() -> None:
    well_known = config.parse("nat64_prefix = 64:ff9b::\n", "t.conf")
    explanation = explained(config=well_known, daemon=told(of=well_known), nat64=None)
    assert explanation.outcome == "none"
    fact = "64:ff9b::/96 never carries the non-global address 198.51.100.10 (RFC 6052 3.1)"
    assert steps(explanation)["prefix"] == (fact, "t.conf:1")
    assert explanation.because.startswith(fact)


def test_a_file_that_differs_from_what_the_daemon_goes_by_is_told() -> None:
    fact, _ = steps(explained(changed_files=("t.conf",)))["daemon"]
    assert fact.endswith("t.conf has changed since it was read: run tnat64d reload")
    excluded = {"scope": Scope(not_programs=(Program(uid=33),)), "changed_files": ("t.toml",)}
    assert "t.toml has changed" in steps(explained(**excluded))["daemon"][0]
    assert steps(explained())["daemon"][0] == "serving, pid 7, on 127.0.0.1:6464"


def test_the_last_failure_has_its_age_and_the_names_of_its_errors() -> None:
    explanation = explained(daemon=told(failure=FAILURE))
    assert steps(explanation)["last failure"][0] == "12 s ago, port 443: IPv4 ENETUNREACH, NAT64 ECONNREFUSED"
    assert explanation.as_json()["last_failure"] == {
        "at": 88.0,
        "port": 443,
        "ipv4": "ENETUNREACH",
        "nat64": "ECONNREFUSED",
        "because": "IPv4 unreachable",
    }
    assert steps(explained())["last failure"][0] == "none is remembered"


def test_a_refusal_by_the_kernel_tells_for_how_long_and_where_that_can_be_seen() -> None:
    explanation = explained(daemon=REFUSED)
    first, *_ = explanation.as_text().splitlines()
    assert first.startswith(
        "198.51.100.10:443: refused by the kernel for another 3.2 s, because it failed 12 s ago"
    )
    said = explanation.as_json()
    assert (said["way"], said["refused_for_s"], said["nat64_address"]) == ("refused", 3.21, None)
    fact = "the kernel itself refuses it, for another 3.2 s"
    assert steps(explanation)["refusal"] == (fact, "nft list set ip tnat64d refused")
    assert steps(explanation)["nat64"], "what would be without it"
    assert explained().as_json()["refused_for_s"] is None
    assert "refusal" not in steps(explained())


def test_what_this_user_may_not_see_is_said() -> None:
    found = steps(explained(daemon=DENIED, standing=None))
    assert found["rules"][0] == "taken to stand: only root may look"
    assert found["daemon"][0] == "it does not tell"
    assert found["state"][0] == "not known; it begins with IPv4 first"
    assert "last failure" not in found
