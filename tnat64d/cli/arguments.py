"""How a command is declared: the form that all commands of the command line share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias


class Parser(argparse.ArgumentParser):
    """No abbreviations, which a later version could make ambiguous; texts as they are written."""

    usage_exit_code = 2

    def __init__(self, *args: Any, **options: Any) -> None:
        options |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **options)

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """Refuse here what is not known: argparse would leave that to the parser of the whole command line."""
        found, unknown = super().parse_known_args(*args, **options)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the usage, and exit."""
        self.print_usage(sys.stderr)
        self.exit(self.usage_exit_code, f"{self.prog}: error: {message}\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # generic for type checkers only


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, details: str = ""
) -> Parser:
    """Add the command `name`, which `run` carries out: it returns the exit code, or raises Tnat64Error.

    `details`: what its --help tells beyond the summary and the options.
    """
    description = summary[0].upper() + summary[1:] + "."
    parser = commands.add_parser(name, help=summary, description=description, epilog=details or None)
    parser.set_defaults(command=run)
    return parser
