"""The control socket: newline-terminated JSON objects over AF_UNIX, a request and its answer at a time.

Owns the wire format, the socket's file, and both ends of it. Refuses to own what a request does.

    request   {"request": NAME, …}
    answer    {"ok": true, …}   or   {"ok": false, "error": SENTENCE, "problems": [PROBLEM, …]}

What else a request holds are its arguments. Only a mistake in a configuration file has `problems`.

Strangers, who are neither root nor the daemon's user, get one answer each and are guarded against: not many at a
time, none for long, and what they send beside the request (`kernel.peer`) holds nobody up.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnat64d.errors import ConfigurationError, Tnat64Error, UnavailableError
from tnat64d.kernel import peer

REQUEST_LIMIT_BYTES = 4096
"""Of strangers."""

TRUSTED_LIMIT_BYTES = 1 << 16
CONNECT_TIMEOUT_S = 5.0
STRANGER_TIMEOUT_S = 5.0
MAX_STRANGERS = 32
"""At a time; more are hung up on."""

_BACKLOG = 100
_REST_S = 1.0
"""After accept(2) has failed, for want of descriptors."""

Answer = dict[str, Any]
_DENIED: Answer = {"ok": False, "error": "only root and the daemon's own user may ask"}


@dataclass(frozen=True, slots=True)
class Question:
    """A request from the process `pid` of user `uid` and group `gid`; `arguments` are as they were sent.

    `connection`: for what else `kernel.peer` tells of the asker.
    """

    pid: int
    uid: int
    gid: int
    arguments: Mapping[str, Any]
    connection: socket.socket


Handler = Callable[[Question], Awaitable[Answer]]


class ControlServer:
    """Answers requests at `path` with the handlers of `requests`; only the daemon's user and root may ask,
    except for those named in `for_everybody`.

    They are told apart by their credentials (unix(7), SO_PEERCRED), not by the file's mode: root without
    CAP_DAC_OVERRIDE, as in a hardened unit, could not open a file that is the daemon's alone.
    """

    def __init__(self, path: str, requests: Mapping[str, Handler], for_everybody: Collection[str] = ()) -> None:
        self._path = Path(path)
        self._requests = requests
        self._for_everybody = for_everybody
        self._listener: socket.socket | None = None
        self._conversations: set[asyncio.Task[None]] = set()
        self._strangers = 0

    async def start(self) -> None:
        """Listen. Raises Tnat64Error if another daemon answers there, or the socket cannot be made."""
        if _is_answered(self._path):
            raise Tnat64Error(f"another tnat64d is running: it answers at {self._path}")
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if self._path.is_socket():
                self._path.unlink()  # of a daemon that was killed
            elif self._path.exists():
                raise OSError(errno.EEXIST, "there is something else of this name")
            self._listener = _listen(self._path)
        except OSError as error:
            hint = "set control.socket in tnat64d.toml"
            raise Tnat64Error(f"cannot make the control socket {self._path}: {error.strerror}; {hint}") from None

        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def stop(self) -> None:
        """Answer no more."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            with peer.without_lingering():  # who was not accepted is closed with it
                self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(_REST_S, self._accept_again, listener)
            return
        connection.setblocking(False)
        if peer.credentials(connection).uid in (0, os.geteuid()):
            conversation = self._serve(connection)
        elif self._strangers < MAX_STRANGERS:
            conversation = self._serve_stranger(connection)
        else:
            with peer.without_lingering():
                connection.close()
            return
        task = asyncio.get_running_loop().create_task(conversation)
        self._conversations.add(task)  # the loop keeps weak references only
        task.add_done_callback(self._conversations.discard)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener is self._listener:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=TRUSTED_LIMIT_BYTES)
        try:
            while line := await reader.readline():
                writer.write(await self._answer(line, True, connection))
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the asker is gone, or sent more than a request may hold
        finally:
            writer.close()

    async def _serve_stranger(self, connection: socket.socket) -> None:
        """One answer only, or anybody could hold descriptors of the daemon."""
        self._strangers += 1
        try:
            async with asyncio.timeout(STRANGER_TIMEOUT_S):
                answer = await self._answer(await _request_of(connection), False, connection)
                await asyncio.get_running_loop().sock_sendall(connection, answer)
        except (OSError, TimeoutError):
            pass  # gone, or too slow
        finally:
            self._strangers -= 1
            with peer.without_lingering():
                connection.close()

    async def _answer(self, line: bytes, trusted: bool, connection: socket.socket) -> bytes:
        return json.dumps(await self._outcome(line, trusted, connection)).encode() + b"\n"

    async def _outcome(self, line: bytes, trusted: bool, connection: socket.socket) -> Answer:
        try:
            arguments = json.loads(line)
            name = arguments.pop("request")
            if not trusted and name not in self._for_everybody:
                return _DENIED
            handler = self._requests[name]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if not trusted:
                return _DENIED
            return {"ok": False, "error": f"not a request; there are: {', '.join(self._requests)}"}
        try:
            return {"ok": True} | await handler(_question(connection, arguments))
        except ConfigurationError as error:
            return {"ok": False, "error": str(error), "problems": error.problems}
        except Tnat64Error as error:
            return {"ok": False, "error": str(error)}


def _question(connection: socket.socket, arguments: Mapping[str, Any]) -> Question:
    asker = peer.credentials(connection)
    return Question(asker.pid, asker.uid, asker.gid, arguments, connection)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        peer.refuse_descriptors(listener)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


async def _request_of(connection: socket.socket) -> bytes:
    """The first line, or what comes of it."""
    line = b""
    while b"\n" not in line and len(line) < REQUEST_LIMIT_BYTES:
        await _readable(connection)
        with peer.without_lingering():
            part = connection.recv(REQUEST_LIMIT_BYTES - len(line))
        if not part:
            break
        line += part
    return line.partition(b"\n")[0]


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(connection, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(connection)


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def ask(
    path: str, request: str, timeout_s: float | None = None, *, until_end: bool = False, **arguments: Any
) -> Answer:
    """The running daemon's answer to `request`; `timeout_s` None waits for as long as it takes.

    `until_end` waits until the daemon has ended, too. Raises UnavailableError if no daemon answers, Tnat64Error
    or ConfigurationError if it says no.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(CONNECT_TIMEOUT_S)
        try:
            sock.connect(path)
            sock.settimeout(timeout_s)
            sock.sendall(json.dumps({"request": request, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as answers:
                answer: Answer = json.loads(answers.readline())
                accepted = answer.pop("ok")
                if until_end:
                    answers.read()
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            raise UnavailableError(f"no tnat64d answers at {path}: is it running?") from None
    if problems := answer.get("problems"):
        raise ConfigurationError(problems)
    if not accepted:
        raise Tnat64Error(str(answer.get("error")))
    return answer
