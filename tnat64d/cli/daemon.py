"""`up` and `serve`: the commands that are the daemon."""

from __future__ import annotations

import argparse
import os

from tnat64d.cli import inputs
from tnat64d.cli.arguments import Commands, command
from tnat64d.core.settings import Settings


def add_to(commands: Commands) -> None:
    """Add `up` and `serve`."""
    up = command(commands, "up", _up, "set up the kernel's rules, serve, and undo everything at the end")
    serve = command(commands, "serve", _serve, "the daemon alone, in the foreground; changes no rules")
    for each in (up, serve):
        inputs.take_conf(each)
        inputs.take_settings(each)
        each.add_argument("-v", "--verbose", action="store_true", help="log everything")
    serve.add_argument(
        "--own-rules", action="store_true", help="make the kernel's rules, too, such that they go with the daemon"
    )


def _up(arguments: argparse.Namespace) -> int:
    inputs.require_root()
    chosen = inputs.load_settings(arguments.settings)
    _run_daemon(arguments, chosen, own_rules=True)
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.own_rules:
        inputs.require_root()
    _run_daemon(arguments, inputs.load_settings(arguments.settings), own_rules=arguments.own_rules)
    return 0


def _run_daemon(arguments: argparse.Namespace, chosen: Settings, *, own_rules: bool) -> None:
    from tnat64d.daemon import journal, supervisor
    from tnat64d.daemon.admission import Admission
    from tnat64d.kernel.rules import HeldRules
    from tnat64d.kernel.set_up_rules import SetUpRules
    from tnat64d.kernel.systemd import Notifier

    settings_file = arguments.settings or inputs.SETTINGS
    journal.configure(os.environ, verbose=arguments.verbose)
    supervisor.run(
        supervisor.Surroundings(
            settings=chosen,
            settings_file=settings_file,
            admission=Admission(chosen, settings_file),
            load_settings=lambda: inputs.load_settings(arguments.settings),
            load_config=lambda: inputs.load_config(arguments.conf),
            notifier=Notifier.from_environment(os.environ),
            verbose=arguments.verbose,
            rules=HeldRules(chosen, settings_file) if own_rules else SetUpRules(chosen),
        )
    )
