"""Checks of what stands in the kernel: our rules, and other people's that get in their way."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tnat64d.core.config import Config
from tnat64d.core.findings import fail, ok, warn
from tnat64d.core.marks import Mark
from tnat64d.core.ruleset import LOOPBACK, Ruleset
from tnat64d.core.settings import Mode
from tnat64d.doctor.subject import Findings, Subject
from tnat64d.kernel import backends as kernel_backends
from tnat64d.kernel import capturing, firewall, foreign_marks, keeper, owned, processes, routes, routing
from tnat64d.kernel.capturing import Held
from tnat64d.kernel.foreign_marks import Overwriting, Packets
from tnat64d.kernel.wanted import describe, describe_made


def rules(subject: Subject) -> Findings:
    """Rules of ours that are missing, there twice, or left behind by a daemon that has gone."""
    standing = capturing.held(subject.settings.rules)
    if subject.daemon is None:
        yield from _left_behind(subject, bool(standing))
        return
    held = owned.is_held()
    if not standing:
        yield fail("no rules stand: the daemon gets no connections", subject.restoring)
        return
    if len(standing) > 1:
        again = f"{subject.command('teardown')} && {subject.command('setup')}"
        if subject.watcher is not None:  # which would refuse both, and whose rules replace all others of ours
            again = subject.restoring
        yield fail(f"rules of ours stand in {' and in '.join(standing)}: a packet meets them twice", again)
        return
    missing, changed = _different(subject, standing)
    if missing:
        yield fail(f"missing of our routing: {'; '.join(missing)}", subject.restoring)
    (backend,) = standing
    if changed:
        yield fail(f"gone, or not as both files say: {', '.join(changed)} ({backend})", subject.restoring)
    if not missing and not changed:
        whose = "until teardown"
        if held:
            whose = f"held by the daemon (pid {subject.daemon['pid']})"
        elif subject.watcher is not None:
            whose = f"watched by pid {subject.watcher}"
        yield ok(f"{backend}, routing table {subject.settings.rules.table}, {whose}")


def _different(subject: Subject, standing: Held) -> tuple[list[str], tuple[str, ...]]:
    """What is missing of the routing, and what else is not as it must be.

    `setup` goes by the files as they are now, the daemon by those that it has read: rules that are right by
    either are, and the check of the reload tells of the rest.
    """
    assert subject.daemon is not None
    way = subject.daemon["rules"]["way"]
    found = []
    for config, settings in (
        (subject.config or Config(), subject.settings),
        (subject.written_config, subject.written_settings),
    ):
        if config is not None and settings is not None:
            ruleset = describe_made(config, settings, subject.settings_file, way, standing)
            found.append((_missing(ruleset), capturing.changed(standing, ruleset, all_parts=True)))
            if not any(found[-1]):
                return [], ()
    return found[0]


def _missing(ruleset: Ruleset) -> list[str]:
    """Without an address to send from the kernel deletes the route, too: the check of the address tells that."""
    adding = (
        command for command in routes.plan(ruleset) if command.startswith(("ip -4 route add", "ip -4 rule add"))
    )
    commands = [command.removeprefix("ip -4 ").replace(" add ", " ", 1) for command in adding]
    has_address = any(not address.is_loopback for _, address in routing.ipv4_addresses())
    return [command for command in commands if has_address or command.startswith("rule ")]


def _left_behind(subject: Subject, is_standing: bool) -> Findings:
    commands = routes.removal_commands()
    if is_standing or any(" rule " not in command for command in commands):
        sentence = "rules stand and no daemon runs: IPv4 connections are refused"
        ending = "systemctl stop tnat64d-setup && " if keeper.is_kept() else ""
        yield fail(sentence, f"{ending}{subject.command('teardown')}")
    elif commands:
        yield warn(
            "routing rules of a daemon that was killed are left, without effect", subject.command("teardown")
        )
    else:
        yield ok("none stand, as no daemon runs")


def backends(subject: Subject) -> Findings:
    """NAT rules by iptables-legacy beside others by iptables-nft: each packet meets both."""
    mixed = [name for name in (kernel_backends.LEGACY, kernel_backends.NFT) if kernel_backends.has_nat_rules(name)]
    if len(mixed) > 1:
        yield warn(
            f"this host's NAT rules are in {' and in '.join(mixed)}: a packet meets both",
            "iptables-legacy-save -t nat | iptables-nft-restore --noflush && iptables-legacy -t nat -F",
        )
    else:
        choice = kernel_backends.choose(subject.settings.rules)
        yield ok(f"setup takes {choice.name}: {choice.because}")


def marks(subject: Subject) -> Findings:
    """Somebody else's rule that takes the daemon's connections for his own, or his packets for the daemon's, or
    that makes the daemon's connections look like anybody's, so that they come back to it.
    """
    ruleset = describe(subject.config or Config(), subject.settings, subject.settings_file, LOOPBACK)
    chosen = subject.settings.rules
    used = [Mark(chosen.mark, chosen.mark_mask)]
    used += [ruleset.captured] if chosen.mode is Mode.TPROXY else []
    listings = firewall.listings()
    overwriting = list(_overwriting(subject, used[0], listings))
    for each in overwriting:
        yield warn(f"{each.place} writes over our mark {used[0]} before our rules see it", each.remedy)
    places = list(_collisions(used, listings))
    if chosen.mode is Mode.TPROXY and not overwriting:
        places += _connection_marks(listings)
    for place in places:
        yield warn(
            f"{place} uses our mark {used[0]}, or all bits of the mark",
            f"set rules.mark to a free one in {subject.settings_file}, then restart tnat64d",
        )
    if not places and not overwriting:
        yield ok(f"nobody else uses {' or '.join(map(str, used))}")


def _overwriting(subject: Subject, own: Mark, listings: dict[str, str]) -> Iterator[Overwriting]:
    uid = None if subject.daemon is None else processes.uid(subject.daemon["pid"])
    return foreign_marks.overwriting(listings, Packets(own, uid))


def _collisions(used: list[Mark], listings: dict[str, str]) -> Iterator[str]:
    for rule in routing.mark_rules():
        if any(_collide(own, rule.mark) for own in used):
            yield f"the routing rule {rule.priority} (fwmark {rule.mark})"
    seen = set()
    for use in foreign_marks.uses(listings):
        is_for_us = use.is_passing and use.mark in used
        # What iptables-nft made is also in the listing of nft.
        if not is_for_us and use.mark not in seen and any(_collide(own, use.mark) for own in used):
            seen.add(use.mark)
            yield f"a rule of {use.program} ({use.place})"


def _collide(own: Mark, other: Mark) -> bool:
    """Whether `other` matches what we mark with `own`, or sets what looks like it."""
    return other.value != 0 and (own.value & other.mask == other.value or other.value & own.mask == own.value)


def _connection_marks(listings: dict[str, str]) -> list[str]:
    """Saving or restoring the whole mark takes that of TPROXY mode away, or puts it where it does not belong."""
    pattern = re.compile(
        r"-j CONNMARK --(?:save|restore)-mark.*|ct mark set (?:meta )?mark\b|meta mark set ct mark\b"
    )
    found = [(program, pattern.search(text)) for program, text in listings.items()]
    return [f"a rule of {program} ({match.group()})" for program, match in found if match][:1]


def default(subject: Subject) -> Findings:
    """An `unreachable default` of somebody's, which is asked before our route."""
    route = routing.refusing_default()
    if route is None:
        yield ok("no default route of main is in the way")
    else:
        yield fail(f"an IPv4 route answers before ours is asked: {route}", f"ip -4 route del {route}")
