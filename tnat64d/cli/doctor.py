"""`doctor`: what is wrong on this host, and the commands that mend it."""

from __future__ import annotations

import argparse
import json
import shlex

from tnat64d.cli import inputs
from tnat64d.cli.arguments import Commands, command
from tnat64d.core import findings
from tnat64d.core.settings import Settings
from tnat64d.errors import ConfigurationError

_PORT = 443


def add_to(commands: Commands) -> None:
    """Add `doctor`."""
    doctor = command(commands, "doctor", _doctor, "look at everything that can be wrong, and say what mends it")
    inputs.take_conf(doctor)
    inputs.take_settings(doctor)
    doctor.add_argument(
        "-t", "--target", metavar="HOST[:PORT]", help=f"try a whole connection to this server (port {_PORT})"
    )
    doctor.add_argument("--json", action="store_true", help="for programs")


def _doctor(arguments: argparse.Namespace) -> int:
    from tnat64d.doctor.examination import CHECKS, examine
    from tnat64d.doctor.subject import Subject, ask_daemon, ask_loaded
    from tnat64d.kernel import capabilities

    problems: list[str] = []
    settings, config = None, None
    try:
        settings = inputs.load_settings(arguments.settings)
    except ConfigurationError as error:
        problems += error.problems
    try:
        config = inputs.load_config(arguments.conf)
    except ConfigurationError as error:
        problems += error.problems
    socket = (settings or Settings()).control.socket
    daemon, why_no_daemon = ask_daemon(socket)
    subject = Subject(
        written_config=config,
        written_settings=settings,
        loaded=None if daemon is None else ask_loaded(socket),
        conf_file=arguments.conf,
        settings_file=arguments.settings or inputs.SETTINGS,
        problems=tuple(problems),
        conf_option=_option("-f", arguments.conf, inputs.CONF),
        settings_option=_option("-c", arguments.settings or inputs.SETTINGS, inputs.SETTINGS),
        is_root=capabilities.has(capabilities.CAP_NET_ADMIN),
        daemon=daemon,
        why_no_daemon=why_no_daemon,
        target=_target(arguments.target),
    )
    found = []
    width = max(len(check.name) for check in CHECKS)
    for each in examine(subject):
        found.append(each)
        if not arguments.json:
            print(findings.line(each, width), flush=True)
    print(json.dumps([each.as_json() for each in found]) if arguments.json else findings.summary(found))
    return 0 if findings.is_well(found) else 1


def _target(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, port = inputs.split_target(text)
    return host, port or _PORT


def _option(name: str, path: str, default: str) -> str:
    return "" if path == default else f" {name} {shlex.quote(path)}"
