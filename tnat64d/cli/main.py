"""The command line: reads arguments and files, calls what does the work, prints, and exits.

Owns everything a user types or reads at a terminal, and the exit codes (tnat64d.errors): this module the ends
of the program, the others a family of commands each. Refuses to own anything that could be useful without a
terminal. What takes long to import is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from tnat64d import __version__
from tnat64d.cli import check, daemon, doctor, launch, rules, running, why
from tnat64d.cli.arguments import Parser
from tnat64d.errors import ConfigurationError, Tnat64Error

_DESCRIPTION = """\
Lets IPv4-only programs on an IPv6-only host reach IPv4 servers through the network's NAT64.

Try it (as root; Ctrl-C undoes everything):   tnat64d up
As a service:                                 systemctl enable --now tnat64d
See which way a host goes:                    tnat64d check -t 198.51.100.10:443
Something does not work:                      tnat64d doctor
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
        arguments = parser().parse_args(argv)
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


def parser() -> Parser:
    """The grammar of the command line, with the functions that carry out each command."""
    whole = Parser("tnat64d", description=_DESCRIPTION, epilog=_EPILOG)
    whole.add_argument("--version", action="version", version=f"tnat64d {__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for module in (daemon, launch, rules, check, why, doctor, running):
        module.add_to(commands)
    return whole
