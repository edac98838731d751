"""Which settings a reload may change.

Owns the list of those that it may not: sockets, processes and rules are made with them, and both sides of a change
would have to be in use at once. Refuses to own how the others take effect.
"""

from __future__ import annotations

from tnat64d.core.settings import Mode, Settings
from tnat64d.core.settings_keys import keys_of
from tnat64d.errors import ConfigurationError

FIXED = {
    "proxy": ("port", "workers", "loop", "connect", "keepalive_s", "max_connections_per_source"),
    "policy": ("sticky_entries",),
    "rules": ("backend", "mode", "iptables", "mark", "mark_mask", "table", "address", "queue"),
    "scope": ("exec",),
    "exec": ("users", "groups"),
    "control": ("socket",),
}
"""By table. Beyond these: whether there is any scope.gateway, where that decides on which address is listened."""


def require_reloadable(running: Settings, wanted: Settings, filename: str) -> None:
    """Raises ConfigurationError with each key that differs and needs a restart."""
    problems = []
    for table, names in FIXED.items():
        keys = keys_of(type(getattr(running, table)))
        for name in names:
            before, after = (getattr(getattr(each, table), name) for each in (running, wanted))
            if before != after:
                was, now = keys[name].show(before), keys[name].show(after)
                problems.append(f"{filename}: {table}.{name}: is {now}, and was {was} at start: needs a restart")
    is_redirected = running.rules.mode is Mode.REDIRECT
    if is_redirected and bool(running.scope.gateway) != bool(wanted.scope.gateway):
        problems.append(
            f"{filename}: scope.gateway: the first interface, or no interface any more, needs a restart"
        )
    if problems:
        raise ConfigurationError(problems)
