"""Where rules of ours capture connections now, whoever put them there.

Owns the look. Refuses to own whether they are the right ones, and changing anything.
"""

from __future__ import annotations

from tnat64d.core.capture import CAPTURING
from tnat64d.core.settings import Rules
from tnat64d.errors import PrivilegeError, Tnat64Error
from tnat64d.kernel import backends, capabilities, owned
from tnat64d.kernel.iptables import CHAINS, Iptables, Table
from tnat64d.kernel.nftables import TABLE, Nftables


def places(rules: Rules) -> tuple[str, ...]:
    """What captures connections of this host's programs, in words. Raises PrivilegeError without CAP_NET_ADMIN."""
    if not capabilities.has(capabilities.CAP_NET_ADMIN):
        raise PrivilegeError("looking at the kernel's rules needs root (CAP_NET_ADMIN)")
    found = []
    if Nftables.is_supported() and Nftables().stands():
        how = "owned by the running daemon" if owned.is_held() else "static"
        found.append(f"nftables table ip {TABLE}, {how}")
    for program in backends.iptables_programs(rules):
        try:
            saved = Iptables(program).saved()
        except Tnat64Error:
            continue  # a program that does not fit this kernel
        for hook in CAPTURING:
            jumps = saved.get(hook.table, Table()).own_jumps
            if any(jump.split()[-1] == CHAINS[hook] for jump in jumps):
                found.append(f"{program} -t {hook.table} chain {CHAINS[hook]}")
    return tuple(found)
