"""How a command is declared: the form that all commands of the command line share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias


class Parser(argparse.ArgumentParser):
    """No abbreviations, which a later version could make ambiguous; texts as they are written."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **options)


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
