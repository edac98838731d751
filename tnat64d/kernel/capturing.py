"""What holds packet rules of ours now, whoever put them there, and whether they are the right ones.

Owns the look into every backend. Refuses to own changing anything, and the routing (`kernel.routes`).
"""

from __future__ import annotations

from collections.abc import Mapping

from tnat64d.core.capture import CAPTURING
from tnat64d.core.ruleset import Ruleset
from tnat64d.core.settings import Rules
from tnat64d.errors import PrivilegeError, Tnat64Error
from tnat64d.kernel import backends, capabilities, owned
from tnat64d.kernel.backends import Backend
from tnat64d.kernel.iptables import CHAINS, Iptables, chain_part, jump_part
from tnat64d.kernel.nft_table import TABLE
from tnat64d.kernel.nftables import PART, Nftables
from tnat64d.kernel.standing import Standing, lost

Held = Mapping[str, Standing]
"""What stands of ours, by the name of the backend."""


def held(rules: Rules) -> Held:
    """What each backend holds, without those that hold nothing. Raises PrivilegeError without CAP_NET_ADMIN."""
    if not capabilities.has(capabilities.CAP_NET_ADMIN):
        raise PrivilegeError("looking at the kernel's rules needs root (CAP_NET_ADMIN)")
    found = {}
    for name, backend in backends.installed(rules).items():
        try:
            standing = backend.standing()
        except Tnat64Error:
            continue  # a program that does not fit this kernel
        if standing:
            found[name] = standing
    return found


def places(held: Held) -> tuple[str, ...]:
    """What captures connections of this host's programs, in words."""
    found = []
    for name, standing in held.items():
        if PART in standing:
            how = "owned by the running daemon" if owned.is_held() else "static"
            found.append(f"nftables table ip {TABLE}, {how}")
        hooks = (hook for hook in CAPTURING if jump_part(CHAINS[hook]) in standing)
        found += [f"{name} -t {hook.table} chain {CHAINS[hook]}" for hook in hooks]
    return tuple(found)


_ALL_CAPTURING = {PART, *(part(CHAINS[hook]) for hook in CAPTURING for part in (chain_part, jump_part))}


def changed(held: Held, ruleset: Ruleset, *, all_parts: bool = False) -> tuple[str, ...]:
    """The parts in `held` that are gone, or not as the chains of `ruleset` must be.

    Without `all_parts` only what captures connections of this host's programs.
    """
    found = [part for name, standing in held.items() for part in lost(_wanted(name, standing, ruleset), standing)]
    return tuple(part for part in found if all_parts or part in _ALL_CAPTURING)


def _wanted(name: str, standing: Standing, ruleset: Ruleset) -> Standing:
    """What the backend `name` should show of the chains."""
    backend: Backend = Nftables() if name == "nftables" else Iptables(name)
    try:
        return backends.made_elsewhere(backend, ruleset)
    except Tnat64Error:
        # Without CAP_SYS_ADMIN, or where a control group has gone, only what is missing can be told.
        return {part: standing.get(part, b"") for part in backend.parts(ruleset)}
