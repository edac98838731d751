"""Which program or interface holds the packet rules: iptables-nft, iptables-legacy, or nf_tables itself.

Owns the choice and what it looks at. Refuses to own the rules.

What counts is what the host's NAT rules already use, not which program is installed: beside rules of
iptables-legacy our own belong into iptables-legacy, or the two would act on one packet without knowing of each
other. Without any, a table of our own by netlink needs no program and touches nothing that others look at.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Protocol

from tnat64d.core.ruleset import Ruleset
from tnat64d.core.settings import Rules
from tnat64d.errors import Tnat64Error
from tnat64d.kernel import network_namespace
from tnat64d.kernel.iptables import Iptables, Table
from tnat64d.kernel.nftables import Nftables
from tnat64d.kernel.standing import Standing

LEGACY, NFT = "iptables-legacy", "iptables-nft"


class Backend(Protocol):
    """Installs the chains of a ruleset. Every method raises PrivilegeError or Tnat64Error."""

    def parts(self, ruleset: Ruleset) -> tuple[str, ...]:
        """The names that `standing` has while `ruleset` stands."""

    def standing(self) -> Standing:
        """What stands of ours, part by part."""

    def plan(self, ruleset: Ruleset) -> str:
        """What `install` does, for a shell."""

    def install(self, ruleset: Ruleset) -> None:
        """Make the chains of `ruleset` stand, and no others of ours."""

    def plan_removal(self) -> str:
        """What `remove` does, for a shell; empty if nothing of ours stands."""

    def remove(self) -> None:
        """Leave no chain of ours."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend, its name and why, and the others in which an earlier run may have left something."""

    backend: Backend
    name: str
    because: str
    others: tuple[Backend, ...]


def made_elsewhere(backend: Backend, ruleset: Ruleset) -> Standing:
    """What `backend` shows of the chains of `ruleset` that it has just made, in a network namespace of their own.

    Raises UnavailableError without CAP_SYS_ADMIN, and as `backend`.
    """

    def made() -> Standing:
        backend.install(ruleset)
        return backend.standing()

    return network_namespace.in_new(made)


def choose(rules: Rules) -> Choice:
    """The backend that `rules` asks for. Raises PrivilegeError, Tnat64Error."""
    name, because = _name(rules)
    known: dict[str, Backend] = {"nftables": Nftables()}
    known |= {program: Iptables(program) for program in (LEGACY, NFT) if _has(program)}
    backend = known.pop(name, None) or Iptables(name)
    # "iptables" is one of the two by another name, and must not be cleaned as the other. Which one a program of
    # the administrator's own calls cannot be told, so then neither is.
    binaries = {_binary(program) for program in (LEGACY, NFT)}
    is_known = name == "nftables" or _binary(name) in binaries
    others = (
        other
        for program, other in known.items()
        if program == "nftables" or (is_known and _binary(program) != _binary(name))
    )
    return Choice(backend, name, because, tuple(others))


def installed(rules: Rules) -> dict[str, Backend]:
    """All that can hold rules of ours on this host, by name: each kind of iptables once, with that of `rules`."""
    found: dict[str, Backend] = {"nftables": Nftables()} if Nftables.is_supported() else {}
    programs = {_binary(program): program for program in (rules.iptables, NFT, LEGACY) if _has(program)}
    return found | {program: Iptables(program) for program in programs.values()}


def _has(program: str) -> bool:
    return shutil.which(f"{program}-restore") is not None and shutil.which(f"{program}-save") is not None


def _binary(program: str) -> str:
    """What a name of iptables leads to: xtables-nft-multi or xtables-legacy-multi; itself for anything else."""
    found = shutil.which(f"{program}-save")
    return os.path.realpath(found) if found else program


def _name(rules: Rules) -> tuple[str, str]:
    if rules.backend == "iptables":
        return rules.iptables, "rules.backend asks for it"
    if rules.backend == "auto" and rules.iptables != Rules().iptables:
        return rules.iptables, "rules.iptables names it"
    if rules.backend == "nftables":
        return "nftables", "rules.backend asks for it"
    for program in (LEGACY, NFT):
        if has_nat_rules(program):
            return program, f"this host's NAT rules are {program}'s"
    if Nftables.is_supported():
        return "nftables", "no NAT rules of iptables are here"
    return rules.iptables, "this kernel has no nf_tables"


def has_nat_rules(program: str) -> bool:
    """Whether the host has NAT rules by `program`, ours included."""
    if not _has(program):
        return False
    try:
        table = Iptables(program).saved().get("nat", Table())
    except Tnat64Error:
        return False  # a program that does not fit this kernel
    return bool(table.used_chains or table.own_chains)
