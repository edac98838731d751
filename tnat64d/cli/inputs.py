"""What commands are given: the two files, a target, privileges.

Owns the limits of what is read and the options that several commands share. Refuses to own the grammars
(`core.config`, `core.settings`).
"""

from __future__ import annotations

import argparse
import os
import re
import socket
from ipaddress import IPv4Address

from tnat64d.core import config as tnat64_conf
from tnat64d.core import settings
from tnat64d.core.config import Config
from tnat64d.core.settings import Settings
from tnat64d.errors import ConfigurationError, PrivilegeError, UnavailableError, UsageError

CONF = "/etc/tnat64.conf"
SETTINGS = "/etc/tnat64d.toml"

MAX_CONF_CHARACTERS = 1 << 24
MAX_SETTINGS_CHARACTERS = 1 << 15
"""A file that is endless, or not the one that was meant, shall not take all memory or time. The time of tomllib
grows with the square of a dotted key."""


def take_conf(parser: argparse.ArgumentParser) -> None:
    """Give a command the option that names tnat64.conf."""
    parser.add_argument(
        "-f",
        "--conf",
        metavar="FILE",
        default=os.environ.get("TNAT64_CONF_FILE") or CONF,
        help=f"instead of {CONF}",
    )


def take_settings(parser: argparse.ArgumentParser) -> None:
    """Give a command the option that names tnat64d.toml."""
    parser.add_argument("-c", "--settings", metavar="FILE", help=f"instead of {SETTINGS}, which need not exist")


def load_config(path: str) -> Config:
    """The rules of tnat64.conf at `path`. Raises ConfigurationError."""
    return tnat64_conf.parse(_read(path, MAX_CONF_CHARACTERS), path)


def load_settings(path: str | None) -> Settings:
    """The settings at `path`, None for SETTINGS (or the defaults without it). Raises ConfigurationError."""
    if path is None and not os.path.lexists(SETTINGS):
        return Settings()
    return settings.parse(_read(path or SETTINGS, MAX_SETTINGS_CHARACTERS), path or SETTINGS)


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


def require_root() -> None:
    """Refuse before anything is done, rather than half-way. Raises PrivilegeError."""
    from tnat64d.kernel import capabilities

    if not capabilities.has(capabilities.CAP_NET_ADMIN):
        raise PrivilegeError("changing the kernel's rules needs root (CAP_NET_ADMIN): try again with sudo")


def split_target(target: str) -> tuple[str, int]:
    """HOST and port, 0 if none is given. Raises UsageError."""
    if target.count(":") > 1:
        raise UsageError(f"{target!r} is no IPv4 address: connections to IPv6 addresses are never touched")
    host, colon, port = target.partition(":")
    if not host or (colon and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536)):
        raise UsageError(f"{target!r} is not HOST or HOST:PORT with a port from 1 to 65535")
    return host, int(port or 0)


def resolve(host: str) -> list[IPv4Address]:
    """The IPv4 addresses of a name, or the address itself. Raises UnavailableError."""
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
