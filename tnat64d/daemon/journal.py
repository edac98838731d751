"""What the daemon writes to its log, and in which form.

Owns the logging setup of every process and the one line of a connection. Refuses to own when a line is due.

Lines go to standard error, or to the file that TNAT64_DEBUG_FILE names. Under systemd each begins with its
priority (sd-daemon(3)) and without a time of its own. TNAT64_DEBUG is the original's: -1 silent, 0 errors,
1 what the daemon does (the default), 2 and more everything.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tnat64d.core.config import Way

if TYPE_CHECKING:  # who only sets up logging has no connections
    from tnat64d.proxy.connection import Connection
    from tnat64d.proxy.relay import Relay

_LEVELS = {-1: logging.CRITICAL + 1, 0: logging.ERROR, 1: logging.INFO}
_PRIORITIES = {logging.DEBUG: "<7>", logging.INFO: "<6>", logging.WARNING: "<4>", logging.ERROR: "<3>"}


def configure(environ: Mapping[str, str], *, verbose: bool, process: str = "") -> None:
    """Set up logging for this process. `process`: what tells its lines from those of the others."""
    path = environ.get("TNAT64_DEBUG_FILE")
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    trouble = None
    if path:
        try:
            handler = logging.FileHandler(path, errors="backslashreplace")
        except OSError as error:
            trouble = error
    handler.setFormatter(_Formatter(process, to_journal=not path and _is_journal(environ)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.raiseExceptions = False  # a full disk or a closed pipe loses lines, and no more
    level = logging.DEBUG if verbose else _level(environ.get("TNAT64_DEBUG", "1"))
    root.setLevel(max(level, logging.WARNING))  # pyroute2 would write 60 KiB for every change of a route
    logging.getLogger("tnat64d").setLevel(level)
    if trouble is not None:
        root.warning(
            "TNAT64_DEBUG_FILE: cannot write to %s (%s): logging to standard error", path, trouble.strerror
        )


def _level(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 1
    return _LEVELS.get(max(value, -1), logging.DEBUG)


def _is_journal(environ: Mapping[str, str]) -> bool:
    """systemd.exec(5), JOURNAL_STREAM: device and inode of the journal's socket."""
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


class _Formatter(logging.Formatter):
    def __init__(self, process: str, *, to_journal: bool) -> None:
        tag = f"tnat64d[{process}]" if process else "tnat64d"
        super().__init__("%(message)s" if to_journal else f"%(asctime)s {tag}: %(levelname)s: %(message)s")
        self.default_msec_format = "%s.%03d"
        self._to_journal = to_journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._to_journal:
            return text
        priority = _PRIORITIES.get(record.levelno, "<2>")
        return "\n".join(priority + line for line in text.splitlines())


def closed_line(connection: Connection, relay: Relay, duration_s: float) -> str:
    """The line of a connection that was relayed: destination, way and why, bytes both ways, duration."""
    if connection.idle:
        end = ", closed because idle"
    else:
        end = ", reset" if relay.closed_by_reset else ""
    return (
        f"{_ends(connection)} via {_way(connection)} ({_why(connection)}): "
        f"{relay.client.passed_bytes} bytes up, {relay.upstream.passed_bytes} bytes down, {duration_s:.3f} s{end}"
    )


def refused_line(connection: Connection, duration_s: float) -> str:
    """The line of a connection for which no way led to its destination."""
    if connection.client_gone:
        outcome = "given up by the client"
    else:
        outcome = "refused: " + (_failures(connection) or "ended with the daemon")
    return f"{_ends(connection)} {outcome} ({_why(connection)}), {duration_s:.3f} s"


def unclaimed_line(connection: Connection, duration_s: float) -> str:
    """The line of a connection whose client did not come when its destination had connected."""
    return f"{_ends(connection)} via {_way(connection)}: hung up, its client has not come, {duration_s:.3f} s"


def _ends(connection: Connection) -> str:
    (client, client_port), (address, port) = connection.client, connection.target.destination
    return f"{client}:{client_port} -> {address}:{port}"


def _way(connection: Connection) -> str:
    if not connection.by_nat64:
        return "IPv4"
    assert connection.target.nat64 is not None
    return f"NAT64 [{connection.target.nat64[0]}]"


def _why(connection: Connection) -> str:
    """The policy's reason, or the route's where that left no choice."""
    if connection.target.way is Way.NAT64:
        return connection.because
    return connection.target.route.reason


def _failures(connection: Connection) -> str:
    failures = []
    if connection.ipv4_error:
        failures.append(f"IPv4: {os.strerror(connection.ipv4_error)}")
    if connection.nat64_error:
        failures.append(f"NAT64: {os.strerror(connection.nat64_error)}")
    return ", ".join(failures)
