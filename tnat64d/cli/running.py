"""`status`, `reload`, `drain`: what is asked of the running daemon over its control socket."""

from __future__ import annotations

import argparse
import json

from tnat64d.cli import inputs
from tnat64d.cli.arguments import Commands, command
from tnat64d.errors import UnavailableError


def add_to(commands: Commands) -> None:
    """Add `status`, `reload` and `drain`."""
    status = command(commands, "status", _status, "what the running daemon does; 0 running, 3 not running")
    reload = command(commands, "reload", _reload, "let the running daemon read its files again, and wait for it")
    drain = command(commands, "drain", _drain, "let the running daemon end, and wait for its connections")
    for each in (status, reload, drain):
        inputs.take_settings(each)
    for each in (status, reload):
        each.add_argument("--json", action="store_true", help="for programs")


def _status(arguments: argparse.Namespace) -> int:
    from tnat64d.daemon import control

    path = inputs.load_settings(arguments.settings).control.socket
    try:
        answer = control.ask(path, "status", control.CONNECT_TIMEOUT_S)
    except UnavailableError as error:
        print(json.dumps({"state": "stopped"}) if arguments.json else error)
        return 3  # LSB: the program is not running
    print(json.dumps(answer) if arguments.json else _status_text(answer))
    return 0


def _status_text(answer: dict[str, object]) -> str:
    total = answer["total"]
    assert isinstance(total, dict)
    by_kernel = answer["refused_by_kernel"]
    refused = f"{total['refused']} refused" + (f", {by_kernel} refused by the kernel itself" if by_kernel else "")
    sticky = "IPv4 first" if not answer["sticky"] else "NAT64 sticky"
    return "\n".join(
        (
            f"tnat64d {answer['version']}, pid {answer['pid']}: {answer['state']} on {answer['listener']}",
            f"configuration  {answer['summary']}",
            f"way            {sticky} (scope {answer['sticky_scope']})",
            f"connections    {total['active']} now, {total['relayed_nat64']} ended by NAT64, "
            f"{total['relayed_ipv4']} by IPv4, {refused}, {total['reset']} reset",
            f"bytes          {total['up_bytes']} up, {total['down_bytes']} down",
            f"rules          {_rules_text(answer)}",
        )
    )


def _rules_text(answer: dict[str, object]) -> str:
    rules = answer["rules"]
    assert isinstance(rules, dict)
    state = "routing stands" if rules["state"] == "routing" else rules["state"]
    watched = f", watched by pid {rules['watcher']}" if rules["watcher"] is not None else ""
    parts = [f"{state} ({rules['way']}{watched})"]
    if rules["way"] == "setup" and rules["watcher"] is None:
        parts[0] += ", packet rules are not looked at"
    else:
        parts[0] += f", restored {answer['rules_restored']} times"
    if rules["missing"]:
        parts.append(f"missing: {', '.join(rules['missing'])}")
    if rules["error"]:
        parts.append(f"cannot be restored: {rules['error']}")
    return "; ".join(parts)


def _reload(arguments: argparse.Namespace) -> int:
    from tnat64d.daemon import control

    answer = control.ask(inputs.load_settings(arguments.settings).control.socket, "reload")
    print(json.dumps(answer) if arguments.json else _reload_text(answer))
    return 0


def _reload_text(answer: dict[str, object]) -> str:
    text = f"reloaded: {answer['summary']}"
    if answer["needs_setup"]:
        from tnat64d.daemon import watch_reports

        watcher = answer["watcher"]
        command = watch_reports.reloading(watcher) if isinstance(watcher, int) else "tnat64d setup"
        text += (
            f"\nThe kernel's rules are those of setup, and this change touches them: run `{command}`, too"
            " (systemctl reload tnat64d does both)"
        )
    return text


def _drain(arguments: argparse.Namespace) -> int:
    from tnat64d.daemon import control

    control.ask(inputs.load_settings(arguments.settings).control.socket, "drain", until_end=True)
    return 0
