"""What must stand in this kernel for both files.

Owns what a description needs beside the files: the ids of names, the device that rules are for, and who fills the
set of what is refused. Refuses to own the description (`core.description`) and how it comes to stand
(`kernel.rules`).
"""

from __future__ import annotations

from collections.abc import Collection

from tnat64d.core import description, scope
from tnat64d.core.config import Config
from tnat64d.core.files import Files
from tnat64d.core.ruleset import LOOPBACK, OWN_DEVICE, Ruleset
from tnat64d.core.settings import Settings
from tnat64d.kernel import accounts, owned


def describe(
    config: Config, settings: Settings, settings_file: str, device: str, refusal_memory_s: float = 0.0
) -> Ruleset:
    """What must stand on `device` for both files. Raises ConfigurationError (scope).

    `refusal_memory_s`: only where somebody fills the set.
    """
    resolved = scope.resolve(settings.scope, accounts.lookup(settings_file))
    proxy = settings.proxy
    honest = scope.honest_places(proxy)
    return description.describe(config, settings.rules, resolved, proxy.port, device, honest, refusal_memory_s)


def describe_made(
    config: Config, settings: Settings, settings_file: str, way: str, backend_names: Collection[str]
) -> Ruleset:
    """What must stand in the backends where rules do, if a daemon's `way` with them is this one, as it tells it
    (empty: there is none). Raises as `describe`.
    """
    device = OWN_DEVICE if owned.is_held() else LOOPBACK
    is_filled = way in ("owned", "static") and "nftables" in backend_names
    return describe(config, settings, settings_file, device, settings.proxy.refusal_memory_s if is_filled else 0.0)


def needs_setup(before: Files, after: Files, settings_file: str) -> bool:
    """Whether rules that `setup` made by `before` are not those by `after`. Raises as `describe`."""
    old, new = (describe(each.config, each.settings, settings_file, LOOPBACK) for each in (before, after))
    return old != new
