"""Telling the service manager how the daemon is: readiness, status text, reload, stop, watchdog.

Owns the notification socket of sd_notify(3) and the variables that announce it and the watchdog. Refuses to
own: when to say what, and the timer of the watchdog. Only the main process may speak (NotifyAccess=main).

Grammar: one datagram a message, one `NAME=VALUE` a line. Without a service manager every method does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

# A manager throws away datagrams above 4096 bytes (NOTIFY_BUFFER_MAX in systemd/src/core/manager.c);
# a character takes at most 4.
_STATUS_CHARACTERS = 500


class Notifier:
    """The way to one service manager, or to none.

    Every message returns whether it was handed over. None raises: a manager that is gone or does not read
    is no reason to stop serving. The socket does not block, so that a message costs the event loop nothing.
    """

    __slots__ = ("_address", "_socket", "watchdog_interval_s")

    def __init__(self, address: str | None, watchdog_interval_s: float | None = None) -> None:
        """`address`: a path, or an abstract name behind `@` or NUL; None for no manager."""
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if address else None
        self.watchdog_interval_s = watchdog_interval_s if address else None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """The manager that `environ` names.

        Takes its variables out of `environ`, for a child that inherited them would speak in our name.
        `watchdog_interval_s` becomes half of the timeout, as sd_watchdog_enabled(3) recommends; None if there
        is no watchdog or it watches another process.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        timeout_us = environ.pop("WATCHDOG_USEC", "")
        watched_pid = environ.pop("WATCHDOG_PID", "")
        watched = watched_pid in ("", str(os.getpid())) and timeout_us.isdecimal() and int(timeout_us) > 0
        # Besides these two there is vsock:, which only reaches the manager of a virtual machine's host.
        usable = address if address[:1] in ("/", "@") else None
        return cls(usable, int(timeout_us) / 2_000_000 if watched else None)

    def ready(self, status: str) -> bool:
        """Started, or done with a reload; `status` as for `status`."""
        return self._send("READY=1", _status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`; line breaks and control characters become spaces."""
        return self._send(_status(text))

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it. Type=notify-reload waits for the time stamp (systemd.service(5))."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, within_s: float = 0.0) -> bool:
        """The end begins and takes up to `within_s` seconds, even where TimeoutStopSec= is shorter."""
        extension = [f"EXTEND_TIMEOUT_USEC={round(within_s * 1_000_000)}"] if within_s else []
        return self._send("STOPPING=1", *extension)

    def watchdog(self) -> bool:
        """Still alive: due every `watchdog_interval_s`."""
        return self._send("WATCHDOG=1")

    def close(self) -> None:
        """Give up the socket; messages do nothing from then on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        if self._socket is None or self._address is None:
            return False
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            # To a name each time, not connected: a manager that re-executes itself binds the path anew.
            self._socket.sendto("\n".join(lines).encode(), name)
        except OSError:
            return False
        return True


def _status(text: str) -> str:
    shown = "".join(character if character.isprintable() else " " for character in text)
    return f"STATUS={shown[:_STATUS_CHARACTERS]}"
