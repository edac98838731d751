"""The rules that `setup` made, as a daemon without privileges sees them: policy rules, route and address.

Owns what of them has stood, and that it is missed when it does not. Refuses to own making them (`kernel.rules`)
and the packet rules, which the kernel shows to CAP_NET_ADMIN only (net/netfilter/nfnetlink.c,
net/ipv4/netfilter/ip_tables.c): nobody may conclude from this that those stand.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tnat64d.core.config import Config
from tnat64d.core.settings import Settings
from tnat64d.kernel import standing
from tnat64d.kernel.refused_set import Destination
from tnat64d.kernel.standing import Standing

_log = logging.getLogger(__name__)


class SetUpRules:
    """What has stood once is expected to stand. `install`, `remove` and `restore` are not this process's to do."""

    way = "setup"
    watches_packet_rules = False
    device = None
    groups = ()

    def __init__(self, settings: Settings) -> None:
        self._rules = settings.rules
        self._standing: Standing = {}

    @property
    def has_stood(self) -> bool:
        """Whether any has been seen."""
        return bool(self._standing)

    def begin(self) -> tuple[int, ...]:
        """Nothing is needed."""
        return ()

    def install(self, config: Config, settings: Settings) -> None:
        """Expect no more than what stands now. Raises Tnat64Error."""
        if settings.proxy.refusal_memory_s:
            _log.warning(
                "proxy.refusal_memory_s in tnat64d.toml has no effect: it needs rules that the daemon makes "
                "itself (tnat64d up, serve --own-rules)"
            )
        self._standing = {}
        self.lost()

    def restore(self) -> None:
        """Nothing."""

    def renewed(self) -> tuple[str, ...]:
        """None, as it knows of none."""
        return ()

    def remove(self) -> None:
        """Nothing."""

    def refuse(self, destinations: Iterable[Destination]) -> None:
        """Nothing."""

    def forget_refused(self) -> None:
        """Nothing."""

    def refused_count(self) -> int:
        """Nothing is refused."""
        return 0

    def refused_for_s(self, destination: Destination) -> float | None:
        """Nothing is refused."""
        return None

    def answer(self) -> bool:
        """There is no device."""
        return False

    def lost(self) -> tuple[str, ...]:
        """What stood, at the last look or before, and does not. Raises Tnat64Error."""
        now = standing.routing(self._rules.table, self._rules.address)
        if len(now) == 1 and not self._standing:
            return ()  # an address alone may be anybody's
        missing = tuple(name for name in self._standing if name not in now)
        self._standing = {**self._standing, **now}
        return missing
