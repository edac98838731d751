"""`setup` and `teardown`: the kernel's rules without the daemon, and the process that watches them."""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

from tnat64d.cli import inputs
from tnat64d.cli.arguments import Commands, command
from tnat64d.errors import UnavailableError

if TYPE_CHECKING:
    from tnat64d.kernel.rules import StaticRules


_WATCH = """\
With --watch it stays, hears of what others remove (nft flush ruleset, a firewall that is reloaded, a deleted
route), restores it, and says so in one line. SIGHUP makes the rules anew from both files; SIGTERM and Ctrl-C
end it, and the rules stand until tnat64d teardown. tnat64d-setup.service runs it beside tnat64d.service.
"""


def add_to(commands: Commands) -> None:
    """Add `setup` and `teardown`."""
    setup = command(commands, "setup", _setup, "make the kernel's rules, route and address stand", _WATCH)
    teardown = command(commands, "teardown", _teardown, "remove all that setup or up made, also after a crash")
    inputs.take_conf(setup)
    for each in (setup, teardown):
        inputs.take_settings(each)
    way = setup.add_mutually_exclusive_group()
    way.add_argument("--watch", action="store_true", help="stay, and restore what others remove of them")
    for taking in (way, teardown):
        taking.add_argument("--dry-run", action="store_true", help="print what would be done, do nothing")


def _setup(arguments: argparse.Namespace) -> int:
    if arguments.watch:
        return _watch(arguments)
    config = inputs.load_config(arguments.conf)
    rules = _static_rules(arguments)
    if arguments.dry_run:
        print(rules.plan(config) or "# nothing to do")
    else:
        _let_signals_undo()
        rules.install(config)
        _lend_exec(arguments)
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    inputs.require_root()
    chosen = inputs.load_settings(arguments.settings)

    from tnat64d.daemon import journal, watching
    from tnat64d.kernel.rules import HeldRules
    from tnat64d.kernel.systemd import Notifier

    settings_file = arguments.settings or inputs.SETTINGS
    journal.configure(os.environ, verbose=False, process="setup")
    watching.run(
        watching.Watch(
            rules=HeldRules(chosen, settings_file, in_daemon=False),
            settings=chosen,
            settings_file=settings_file,
            load_config=lambda: inputs.load_config(arguments.conf),
            load_settings=lambda: inputs.load_settings(arguments.settings),
            notifier=Notifier.from_environment(os.environ),
        )
    )
    return 0


def _lend_exec(arguments: argparse.Namespace) -> None:
    """A daemon that runs already and without root can have commands carried from now on; none need run."""
    from tnat64d.daemon import admission

    chosen = inputs.load_settings(arguments.settings)
    if chosen.scope.exec:
        with suppress(UnavailableError):
            admission.lend(chosen.control.socket)


def _teardown(arguments: argparse.Namespace) -> int:
    rules = _static_rules(arguments)
    if arguments.dry_run:
        print(rules.plan_removal() or "# nothing to remove")
    else:
        rules.remove()
    return 0


def _static_rules(arguments: argparse.Namespace) -> StaticRules:
    from tnat64d.kernel.rules import StaticRules

    chosen = inputs.load_settings(arguments.settings)
    inputs.require_root()
    return StaticRules(chosen, arguments.settings or inputs.SETTINGS)


def _let_signals_undo() -> None:
    """A setup that is told to end must not leave half of it behind, however often it is told."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for each in numbers:
        signal.signal(each, end)
