"""`why`: which way a connection would go now, and the chain of reasons.

Owns gathering the facts (`core.facts`), from files, kernel and daemon. Refuses to own what follows from them
(`core.reasons`).
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from tnat64d.cli import inputs
from tnat64d.cli.arguments import Commands, command
from tnat64d.core import scope
from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError, UsageError

if TYPE_CHECKING:
    from tnat64d.core.config import Config
    from tnat64d.core.facts import Asker, Facts, Silence, Told
    from tnat64d.core.settings import Settings

_DETAILS = """\
It sends nothing to the destination. Who is neither root nor the daemon's user sees less, and is told what.
"""


def add_to(commands: Commands) -> None:
    """Add `why`."""
    why = command(commands, "why", _why, "which way a connection would go now, and because of what", _DETAILS)
    inputs.take_conf(why)
    inputs.take_settings(why)
    why.add_argument("-u", "--user", metavar="USER", help="a program of this user, instead of yours")
    why.add_argument("--json", action="store_true", help="for programs")
    why.add_argument("target", metavar="HOST[:PORT]", help="where to: an IPv4 address or a name")


def _why(arguments: argparse.Namespace) -> int:
    from tnat64d.core import reasons
    from tnat64d.core.facts import Silence

    host, port = inputs.split_target(arguments.target)
    inquiry = _Inquiry(arguments)
    is_running = True
    for address in inputs.resolve(host):
        facts = inquiry.facts(address, port)
        explanation = reasons.explain(facts)
        print(json.dumps(explanation.as_json()) if arguments.json else explanation.as_text())
        is_running = not isinstance(facts.daemon, Silence) or facts.daemon.is_running
    return 0 if is_running else UnavailableError.exit_code


class _Inquiry:
    """What is the same for every address: the files, the program, the rules in the kernel."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Raises ConfigurationError, and UsageError for a user that does not exist."""
        from tnat64d.kernel import accounts

        self._conf_file = arguments.conf
        self._settings_file = arguments.settings or inputs.SETTINGS
        self._settings = inputs.load_settings(arguments.settings)
        self._config = inputs.load_config(arguments.conf)
        self._lookup = accounts.lookup(self._settings_file)
        self._asker = _asker(arguments.user)

    def facts(self, address: IPv4Address, port: int) -> Facts:
        """Those for one destination. Raises Tnat64Error."""
        from tnat64d.core.facts import Facts, Told
        from tnat64d.kernel.route_lookup import look_up

        config, settings, changed_files = self._config, self._settings, []
        daemon = _ask_daemon(settings.control.socket, address, port)
        if isinstance(daemon, Told):
            if daemon.files.config != config:
                changed_files.append(self._conf_file)
            if daemon.files.settings != settings:
                changed_files.append(self._settings_file)
            config, settings = daemon.files.config, daemon.files.settings
        nat64 = config.route(address, port).nat64_address
        way = daemon.rules_way if isinstance(daemon, Told) else ""
        standing, changed_rules = _standing(config, settings, self._settings_file, way)
        return Facts(
            conf_file=self._conf_file,
            settings_file=self._settings_file,
            config=config,
            settings=settings,
            scope=scope.resolve(settings.scope, self._lookup),
            asker=self._asker,
            address=address,
            port=port,
            route=look_up(address, port=port, uid=self._asker.uid),
            ipv4=look_up(address, port=port, mark=settings.rules.mark),
            nat64=None if nat64 is None else look_up(nat64, port=port),
            standing=standing,
            changed_rules=changed_rules,
            changed_files=tuple(changed_files),
            daemon=daemon,
            now=time.time(),
        )


def _asker(user: str | None) -> Asker:
    """The program of `user`, None for whoever runs this. Raises UsageError."""
    from tnat64d.core.facts import Asker
    from tnat64d.kernel import cgroup

    if user is None:
        return Asker(os.geteuid(), os.getegid(), cgroup.of_this_process())
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise UsageError(f"there is no user {user!r} on this host") from None
    return Asker(entry.pw_uid, entry.pw_gid, cgroup.of_this_process())


def _ask_daemon(path: str, address: IPv4Address, port: int) -> Told | Silence:
    from tnat64d.core.facts import Silence
    from tnat64d.daemon import explaining

    try:
        return explaining.ask(path, address=str(address), port=port)
    except UnavailableError as error:
        return Silence(is_running=False, sentence=str(error))
    except Tnat64Error as error:
        return Silence(is_running=True, sentence=f"it runs, and does not tell: {error}")


def _standing(
    config: Config, settings: Settings, settings_file: str, way: str
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Where rules of ours stand (None: that may not be looked at), and what of them is not as it must be."""
    from tnat64d.kernel import capturing
    from tnat64d.kernel.wanted import describe_made

    try:
        held = capturing.held(settings.rules)
        places = capturing.places(held)
        wanted = describe_made(config, settings, settings_file, way, held)
        return places, capturing.changed(held, wanted) if places else ()
    except PrivilegeError:
        return None, ()
