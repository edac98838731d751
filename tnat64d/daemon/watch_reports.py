"""What the watcher (`setup --watch`) tells the daemon of the rules, for `status`: both ends of it.

Owns the request `watched` and the connection that it comes over, which the watcher keeps open: its end means that
there is no watcher any more. Refuses to own the rules and the watcher's life (`daemon.watching`).

    request   {"request": "watched", "network": NUMBER, "rules_restored": NUMBER,
               "rules": {"state", "missing", "error"}}

Only root is believed, who alone can make rules; `network` is the network namespace in which they are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tnat64d.daemon.control import TRUSTED_LIMIT_BYTES, Answer, Question
from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError
from tnat64d.kernel import network_namespace

RETRY_S = 2.0
"""Between two attempts to reach a daemon that is not there."""


def reloading(watcher: int) -> str:
    """The command by which the watcher with this pid reads its files again; 0: it has none where the daemon is."""
    return f"kill -HUP {watcher}" if watcher else "systemctl reload tnat64d-setup"


class Watched:
    """The daemon's end."""

    def __init__(self) -> None:
        self._last: Question | None = None

    @property
    def is_there(self) -> bool:
        """Whether the watcher that has told something last is still there: its connection is not closed."""
        return self._last is not None and self._last.connection.fileno() != -1

    @property
    def pid(self) -> int | None:
        """That of the watcher, if there is one."""
        return self._last.pid if self._last is not None and self.is_there else None

    @property
    def report(self) -> Answer:
        """What `status` says of the rules instead of what the daemon sees of them; empty without a watcher."""
        if not self.is_there:
            return {}
        assert self._last is not None
        told = self._last.arguments
        rules = {"way": "setup", **told["rules"], "watcher": self._last.pid}
        return {"rules": rules, "rules_restored": told["rules_restored"]}

    async def hear(self, question: Question) -> Answer:
        """Take a report. Raises PrivilegeError, UnavailableError, and Tnat64Error for what is none."""
        if question.uid != 0:
            raise PrivilegeError("only root can watch rules")
        if question.arguments.get("network") != network_namespace.number():
            raise UnavailableError("the daemon is in another network namespace")
        rules, restored = (question.arguments.get(name) for name in ("rules", "rules_restored"))
        if not isinstance(restored, int) or not isinstance(rules, dict) or rules.keys() != _KEYS:
            raise Tnat64Error("not a report of rules")
        self._last = question
        return {}


_KEYS = {"state", "missing", "error"}


class Reporter:
    """The watcher's end: tells each daemon that answers at `control_socket` what `report` returns.

    `before` is awaited before each report.
    """

    def __init__(
        self, control_socket: str, report: Callable[[], Answer], before: Callable[[], Awaitable[None]]
    ) -> None:
        self._control_socket = control_socket
        self._report = report
        self._before = before
        self._news = asyncio.Event()

    def tell(self) -> None:
        """There is something new to report."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._converse()
            except* (OSError, ValueError):
                pass  # no daemon, or what answers is none
            await asyncio.sleep(RETRY_S)

    async def _converse(self) -> None:
        """Until the daemon hangs up."""
        reader, writer = await asyncio.open_unix_connection(self._control_socket, limit=TRUSTED_LIMIT_BYTES)
        try:
            async with asyncio.TaskGroup() as tasks:
                reporting = tasks.create_task(self._report_news(writer), name="reports")
                while await reader.readline():
                    pass  # no answer changes anything
                reporting.cancel()
        finally:
            writer.close()

    async def _report_news(self, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # the reader sees that, too
            while True:
                self._news.clear()
                await self._before()
                request = {"request": "watched", "network": network_namespace.number(), **self._report()}
                writer.write(json.dumps(request).encode() + b"\n")
                await writer.drain()
                await self._news.wait()
