"""A network namespace with nothing but lo, and all that stands there as text."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network

from tests.lab import Lab, Namespace
from tnat64d.core.config import Network, parse
from tnat64d.core.description import describe
from tnat64d.core.ruleset import Ruleset
from tnat64d.core.scope import Place, Scope
from tnat64d.core.settings import Mode, Rules
from tnat64d.kernel.backends import Backend
from tnat64d.kernel.iptables import Iptables
from tnat64d.kernel.nftables import Nftables

PORT = 6464
EXEMPT = "10.1.2.3"
CONFIG = parse(
    "nat64_prefix = 2001:db8:64::\nlocal = 10.0.0.0/8\nlocal = 172.16.0.1/255.240.0.255\n", "tnat64.conf"
)
BACKENDS = ("iptables-nft", "iptables-legacy")
"""Programs."""

_CHANGES_BY_ITSELF = re.compile(r"^# (Generated|Completed) .*\n|\[\d+:\d+\]", re.MULTILINE)


class BareHost(Lab):
    """One host."""

    roles = ("host",)

    @property
    def host(self) -> Namespace:
        """The host."""
        return self.namespaces["host"]


def ruleset(mode: Mode = Mode.REDIRECT, **settings: object) -> Ruleset:
    """What must stand for `CONFIG`; `settings`: keys of the table [rules] of tnat64d.toml."""
    return describe(CONFIG, Rules(mode=mode, **settings), Scope(), PORT)  # type: ignore[arg-type]


HONEST = (Place(ports=(80, 80)), Place(network=Network.of(IPv4Network("203.0.113.0/24")), ports=(8000, 8100)))
"""Where to connects are honest in `honest_ruleset`."""


def honest_ruleset(mode: Mode = Mode.REDIRECT, honest: tuple[Place, ...] = HONEST) -> Ruleset:
    """The same with honest connects and a gateway."""
    return describe(CONFIG, Rules(mode=mode), Scope(gateway=("docker0",)), PORT, honest=honest)


def backend(name: str) -> Backend:
    """The backend `name`: nftables, or an iptables."""
    return Nftables() if name == "nftables" else Iptables(name)


def standing(host: Namespace) -> dict[str, str]:
    """All that tnat64d could have changed, by command, to the byte but for counters and times."""
    commands = (
        "iptables-nft-save",
        "iptables-legacy-save",
        "nft --stateless list ruleset",
        "ip rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip address",
    )
    return {command: _CHANGES_BY_ITSELF.sub("", host.run(command.split()).stdout) for command in commands}


def listed(host: Namespace) -> str:
    """Our table as nft(8) shows it, without who owns it."""
    text = host.run(["nft", "--stateless", "list", "table", "ip", "tnat64d"]).stdout
    return re.sub(r"(?<=\{) # progname .*|\tflags owner\n+", "", text)


def tables(host: Namespace) -> list[str]:
    """The tables of nf_tables, whoever made them."""
    return host.run(["nft", "list", "tables"]).stdout.splitlines()


def own_traces(host: Namespace) -> list[str]:
    """The lines of `standing` that are tnat64d's."""
    is_own = re.compile(
        r"TNAT64D|proto 64\b|lo:tnat64d|lookup 6464|ip tnat64d|redirect-output|guard-output|hold-output"
    )
    return [line for text in standing(host).values() for line in text.splitlines() if is_own.search(line)]


def ip(host: Namespace, *commands: str) -> None:
    """Run ip(8) commands, one a string and without the leading `ip`."""
    host.run(["ip", "-batch", "-"], input="\n".join(commands))


def run_python(host: Namespace, code: str, *argv: str, wrapper: Sequence[str] = ()) -> str:
    """Run `code` in a process of its own on `host`, behind the command `wrapper`; returns what it prints."""
    return host.run([*wrapper, sys.executable, "-c", code, *argv]).stdout
