"""Every error that ends a command, with the exit code it ends with.

    Tnat64Error              1   something failed
    ├── UsageError           2   the command line asks for something that makes no sense
    ├── UnavailableError    69   the daemon, a prefix or a kernel facility is not there (EX_UNAVAILABLE)
    ├── PrivilegeError      77   this needs root or a capability (EX_NOPERM)
    ├── ConfigurationError  78   a file is wrong; carries every problem found in it (EX_CONFIG)
    ├── NotStartedError    125   `exec` failed before the command
    ├── NotExecutableError 126   the command of `exec` cannot be run
    └── NotFoundError      127   the command of `exec` is not there

Exit codes: sysexits.h, and those of `exec` env(1). Network failures of a proxied connection are no errors in this
sense: they are values (`core.policy.Event`), and only the client of that connection sees them. Only `cli` prints
an error or exits.
"""

from __future__ import annotations

from collections.abc import Sequence


class Tnat64Error(Exception):
    """A failure that the user is told in one sentence (more only for several problems in a file)."""

    exit_code = 1


class UsageError(Tnat64Error):
    """The command line cannot be acted on."""

    exit_code = 2


class UnavailableError(Tnat64Error):
    """The running daemon, a NAT64 prefix or a kernel facility is missing."""

    exit_code = 69


class PrivilegeError(Tnat64Error):
    """Root or a capability is missing."""

    exit_code = 77


class NotStartedError(Tnat64Error):
    """The command of `exec` could not be given its way; the codes are those of env(1), apart from a command's."""

    exit_code = 125


class NotExecutableError(Tnat64Error):
    """The command of `exec` cannot be run."""

    exit_code = 126


class NotFoundError(Tnat64Error):
    """The command of `exec` is not there."""

    exit_code = 127


class ConfigurationError(Tnat64Error):
    """One or more problems in a configuration file, in the order of the file."""

    exit_code = 78

    def __init__(self, problems: Sequence[str]) -> None:
        """`problems`: complete sentences, each beginning with the place (`file:line:column:` or key path)."""
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
