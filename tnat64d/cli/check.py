"""`check`: what tnat64.conf means, without a daemon."""

from __future__ import annotations

import argparse
import json

from tnat64d.cli import inputs
from tnat64d.cli.arguments import Commands, command
from tnat64d.core import config as tnat64_conf
from tnat64d.errors import UsageError


def add_to(commands: Commands) -> None:
    """Add `check`."""
    check = command(commands, "check", _check, "read tnat64.conf and say what it means, or which way a host goes")
    inputs.take_conf(check)
    inputs.take_settings(check)
    check.add_argument(
        "-t", "--target", metavar="HOST[:PORT]", help="say which way this host (address or name) goes"
    )
    check.add_argument("--json", action="store_true", help="for programs")


def _check(arguments: argparse.Namespace) -> int:
    config = inputs.load_config(arguments.conf)
    inputs.load_settings(arguments.settings)
    if arguments.target is None:
        if arguments.json:
            raise UsageError("--json goes with -t HOST[:PORT]")
        print(tnat64_conf.describe(config))
        return 0
    host, port = inputs.split_target(arguments.target)
    answers = [(address, config.route(address, port)) for address in inputs.resolve(host)]
    for address, route in answers:
        if arguments.json:
            print(json.dumps(tnat64_conf.route_as_json(address, port, route)))
        else:
            print(tnat64_conf.describe_route(address, port, route))
    return 0
