"""The command line: reads arguments and files, calls what does the work, prints, and exits.

Owns everything a user types or reads at a terminal, and the exit codes (tnat64d.errors). Refuses to own
anything that could be useful without a terminal. What takes long to import is imported by the command that
needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from types import FrameType
from typing import TYPE_CHECKING, Any

from tnat64d import __version__
from tnat64d.core import config as tnat64_conf
from tnat64d.core import settings
from tnat64d.core.config import Config
from tnat64d.core.settings import Settings
from tnat64d.errors import ConfigurationError, PrivilegeError, Tnat64Error, UnavailableError, UsageError

if TYPE_CHECKING:
    from tnat64d.kernel.rules import StaticRules

CONF = "/etc/tnat64.conf"
SETTINGS = "/etc/tnat64d.toml"

MAX_CONF_CHARACTERS = 1 << 24
MAX_SETTINGS_CHARACTERS = 1 << 15
"""A file that is endless, or not the one that was meant, shall not take all memory or time. The time of tomllib
grows with the square of a dotted key."""

_DESCRIPTION = """\
Lets IPv4-only programs on an IPv6-only host reach IPv4 servers through the network's NAT64.

Try it (as root; Ctrl-C undoes everything):   tnat64d up
As a service:                                 systemctl enable --now tnat64d
See which way a host goes:                    tnat64d check -t 198.51.100.10:443
"""

_EPILOG = """\
Environment: TNAT64_CONF_FILE names tnat64.conf; TNAT64_DEBUG is -1 (silent), 0 (errors), 1 (the default) or
2 (everything); TNAT64_DEBUG_FILE is the log instead of standard error.
Exit codes: 0 ok, 1 failed, 2 usage, 69 daemon or prefix unavailable, 77 privileges missing, 78 configuration.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code, also where what it prints cannot be written."""
    _open_standard_streams()
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except ConfigurationError as error:
        return _fail(error.exit_code, *error.problems)
    except Tnat64Error as error:
        return _fail(error.exit_code, f"tnat64d: {error}")
    except BrokenPipeError:  # the reader of our output has had enough
        _discard(1)
        return 1
    except OSError as error:
        _discard(1)
        return _fail(1, f"tnat64d: {error}")
    except KeyboardInterrupt as interrupt:
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    finally:
        _fail(0)  # the interpreter would end with 120 if it could not write what the log has left


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as end:  # argparse has printed help, or what is wrong with the usage
        return end.code if isinstance(end.code, int) else 0
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _fail(exit_code: int, *sentences: str) -> int:
    """Say why on standard error. Where nobody can read that, the exit code alone must tell."""
    try:
        sys.stderr.write("".join(f"{sentence}\n" for sentence in sentences))
        sys.stderr.flush()
    except OSError:
        _discard(2)
    return exit_code


def _open_standard_streams() -> None:
    """A standard stream that is closed (`>&-`) is /dev/null, or the next file or socket would get its number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _discard(fd: int) -> None:
    """What is still to be written to `fd` cannot be, and the interpreter shall not try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _parser() -> _Parser:
    parser = _Parser("tnat64d", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"tnat64d {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    up = _command(commands, "up", _up, "set up the kernel's rules, serve, and undo everything at the end")
    serve = _command(commands, "serve", _serve, "the daemon alone, in the foreground; changes no rules")
    setup = _command(commands, "setup", _setup, "make the kernel's rules, route and address stand")
    teardown = _command(commands, "teardown", _teardown, "remove all that setup or up made, also after a crash")
    check = _command(commands, "check", _check, "read tnat64.conf and say what it means, or which way a host goes")
    status = _command(commands, "status", _status, "what the running daemon does; 0 running, 3 not running")
    reload = _command(
        commands, "reload", _reload, "let the running daemon read tnat64.conf again, and wait for it"
    )
    drain = _command(commands, "drain", _drain, "let the running daemon end, and wait for its connections")

    for command in (up, serve, setup, check):
        command.add_argument(
            "-f",
            "--conf",
            metavar="FILE",
            default=os.environ.get("TNAT64_CONF_FILE") or CONF,
            help=f"instead of {CONF}",
        )
    for command in (up, serve, setup, teardown, check, status, reload, drain):
        command.add_argument(
            "-c", "--settings", metavar="FILE", help=f"instead of {SETTINGS}, which need not exist"
        )
    for command in (up, serve):
        command.add_argument("-v", "--verbose", action="store_true", help="log everything")
    serve.add_argument(
        "--own-rules", action="store_true", help="make the kernel's rules, too, such that they go with the daemon"
    )
    for command in (setup, teardown):
        command.add_argument("--dry-run", action="store_true", help="print what would be done, do nothing")
    check.add_argument(
        "-t", "--target", metavar="HOST[:PORT]", help="say which way this host (address or name) goes"
    )
    for command in (check, status):
        command.add_argument("--json", action="store_true", help="for programs")
    return parser


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **options: Any) -> None:
        options |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **options)


def _command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
) -> _Parser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(command=run)
    return parser


def _read(path: str, max_characters: int) -> str:
    try:
        # Line ends as they stand: what they mean is for the grammars to say.
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read(max_characters + 1)
    except FileNotFoundError:
        raise ConfigurationError([f"{path}: there is no such file: see tnat64.conf(5), tnat64d.toml(5)"]) from None
    except OSError as error:
        raise ConfigurationError([f"{path}: cannot be read: {error.strerror}"]) from None
    if len(text) > max_characters:
        raise ConfigurationError([f"{path}: has more than {max_characters} characters: name the right file"])
    return text


def _load_config(path: str) -> Config:
    return tnat64_conf.parse(_read(path, MAX_CONF_CHARACTERS), path)


def _load_settings(path: str | None) -> Settings:
    if path is None and not os.path.lexists(SETTINGS):
        return Settings()
    return settings.parse(_read(path or SETTINGS, MAX_SETTINGS_CHARACTERS), path or SETTINGS)


def _require_root() -> None:
    """Refuse before anything is done, rather than half-way."""
    from tnat64d.kernel import capabilities

    if not capabilities.has(capabilities.CAP_NET_ADMIN):
        raise PrivilegeError("changing the kernel's rules needs root (CAP_NET_ADMIN): try again with sudo")


def _up(arguments: argparse.Namespace) -> int:
    _require_root()
    chosen = _load_settings(arguments.settings)
    _run_daemon(arguments, chosen, own_rules=True)
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.own_rules:
        _require_root()
    _run_daemon(arguments, _load_settings(arguments.settings), own_rules=arguments.own_rules)
    return 0


def _run_daemon(arguments: argparse.Namespace, chosen: Settings, *, own_rules: bool) -> None:
    from tnat64d.daemon import journal, supervisor
    from tnat64d.kernel.rules import HeldRules
    from tnat64d.kernel.systemd import Notifier

    journal.configure(os.environ, verbose=arguments.verbose)
    supervisor.run(
        supervisor.Surroundings(
            settings=chosen,
            load_config=lambda: _load_config(arguments.conf),
            notifier=Notifier.from_environment(os.environ),
            verbose=arguments.verbose,
            rules=HeldRules(chosen, arguments.settings or SETTINGS) if own_rules else None,
        )
    )


def _setup(arguments: argparse.Namespace) -> int:
    config = _load_config(arguments.conf)
    rules = _static_rules(arguments)
    if arguments.dry_run:
        print(rules.plan(config))
    else:
        _let_signals_undo()
        rules.install(config)
    return 0


def _teardown(arguments: argparse.Namespace) -> int:
    rules = _static_rules(arguments)
    if arguments.dry_run:
        print(rules.plan_removal() or "# nothing to remove")
    else:
        rules.remove()
    return 0


def _static_rules(arguments: argparse.Namespace) -> StaticRules:
    from tnat64d.kernel.rules import StaticRules

    chosen = _load_settings(arguments.settings)
    _require_root()
    return StaticRules(chosen, arguments.settings or SETTINGS)


def _let_signals_undo() -> None:
    """A setup that is told to end must not leave half of it behind, however often it is told."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for each in numbers:
        signal.signal(each, end)


def _check(arguments: argparse.Namespace) -> int:
    config = _load_config(arguments.conf)
    _load_settings(arguments.settings)
    if arguments.target is None:
        if arguments.json:
            raise UsageError("--json goes with -t HOST[:PORT]")
        print(tnat64_conf.describe(config))
        return 0
    host, port = _split_target(arguments.target)
    answers = [(address, config.route(address, port)) for address in _resolve(host)]
    for address, route in answers:
        if arguments.json:
            print(json.dumps(tnat64_conf.route_as_json(address, port, route)))
        else:
            print(tnat64_conf.describe_route(address, port, route))
    return 0


def _split_target(target: str) -> tuple[str, int]:
    host, colon, port = target.partition(":")
    if not host or (colon and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536)):
        raise UsageError(f"{target!r} is not HOST or HOST:PORT with a port from 1 to 65535")
    return host, int(port or 0)


def _resolve(host: str) -> list[IPv4Address]:
    """The IPv4 addresses of a name, or the address itself."""
    try:
        return [IPv4Address(host)]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise UnavailableError(f"{host!r} has no IPv4 address: {reason}") from None
    return [IPv4Address(address) for address in dict.fromkeys(str(entry[4][0]) for entry in found)]


def _status(arguments: argparse.Namespace) -> int:
    from tnat64d.daemon import control

    path = _load_settings(arguments.settings).control.socket
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
    sticky = "IPv4 first" if not answer["sticky"] else "NAT64 sticky"
    return "\n".join(
        (
            f"tnat64d {answer['version']}, pid {answer['pid']}: {answer['state']} on {answer['listener']}",
            f"configuration  {answer['summary']}",
            f"way            {sticky} (scope {answer['sticky_scope']})",
            f"connections    {total['active']} now, {total['relayed_nat64']} ended by NAT64, "
            f"{total['relayed_ipv4']} by IPv4, {total['refused']} refused, {total['reset']} reset",
            f"bytes          {total['up_bytes']} up, {total['down_bytes']} down",
        )
    )


def _reload(arguments: argparse.Namespace) -> int:
    from tnat64d.daemon import control

    answer = control.ask(_load_settings(arguments.settings).control.socket, "reload")
    print(f"reloaded: {answer['summary']}")
    return 0


def _drain(arguments: argparse.Namespace) -> int:
    from tnat64d.daemon import control

    control.ask(_load_settings(arguments.settings).control.socket, "drain", until_end=True)
    return 0
