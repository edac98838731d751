"""The control socket, both ends, and whatever else may sit at its path."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.daemon.lingering import MAKE_LINGERING_AS_NOBODY
from tnat64d.daemon.control import Answer, ControlServer, Question, ask
from tnat64d.errors import ConfigurationError, Tnat64Error, UnavailableError

ASK_AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(b'{"request": "%s", "word": "hello"}\\n' % sys.argv[2].encode())
print(sock.makefile().read())
"""


@pytest.fixture
def path() -> Iterator[Path]:
    """A path of a socket in a directory that every user may search."""
    with tempfile.TemporaryDirectory(prefix="tnat64-control-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "control.sock"


@pytest.fixture
async def server(path: Path) -> AsyncIterator[ControlServer]:
    """A server whose `status` answers, whose `refuse` and `misread` fail, and whose `wait` never ends.

    Everybody may ask for `repeat`.
    """

    async def status(question: Question) -> Answer:
        return {"state": "serving"}

    async def refuse(question: Question) -> Answer:
        raise Tnat64Error("not now")

    async def misread(question: Question) -> Answer:
        raise ConfigurationError(["a:1:1: one", "a:2:1: two"])

    async def wait(question: Question) -> Answer:
        await asyncio.Event().wait()
        return {}

    async def repeat(question: Question) -> Answer:
        return {"uid": question.uid, "gid": question.gid, "arguments": question.arguments}

    handlers = {"status": status, "refuse": refuse, "misread": misread, "wait": wait, "repeat": repeat}
    server = ControlServer(str(path), handlers, for_everybody={"repeat"})
    await server.start()
    yield server
    await server.stop()


async def talk(path: Path, data: bytes) -> bytes:
    """All that the server answers to `data`."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    await writer.drain()
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_request_gets_its_answer(server: ControlServer, path: Path) -> None:
    assert await asyncio.to_thread(ask, str(path), "status") == {"state": "serving"}


async def test_a_failure_is_the_askers_error(server: ControlServer, path: Path) -> None:
    with pytest.raises(Tnat64Error, match=r"^not now$"):
        await asyncio.to_thread(ask, str(path), "refuse")


async def test_problems_of_a_file_are_the_askers_problems(server: ControlServer, path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await asyncio.to_thread(ask, str(path), "misread")
    assert caught.value.problems == ("a:1:1: one", "a:2:1: two")


async def test_several_requests_on_one_connection(server: ControlServer, path: Path) -> None:
    answers = (await talk(path, b'{"request": "status"}\n{"request": "refuse"}\n')).splitlines()
    assert [json.loads(answer)["ok"] for answer in answers] == [True, False]


@pytest.mark.parametrize(
    "junk",
    [
        b"\n",
        b"status\n",
        b"[]\n",
        b"{}\n",
        b'{"request": []}\n',
        b'{"request": "no"}\n',
        b"\xff\0\n",
        b"9" * 4000,
        pytest.param(b"[" * 4000, id="deep"),
    ],
)
async def test_what_is_no_request_is_told_what_there_is(server: ControlServer, path: Path, junk: bytes) -> None:
    answer = json.loads(await talk(path, junk))
    assert answer["ok"] is False
    assert "status, refuse" in answer["error"]


async def test_an_endless_request_is_cut_off_and_the_next_asker_served(server: ControlServer, path: Path) -> None:
    with pytest.raises(ConnectionError):
        await talk(path, b"x" * 10_000_000)
    assert await asyncio.to_thread(ask, str(path), "status") == {"state": "serving"}


async def test_a_slow_request_does_not_hold_up_others(server: ControlServer, path: Path) -> None:
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"request": "wait"}\n{"requ')
    assert await asyncio.to_thread(ask, str(path), "status") == {"state": "serving"}
    writer.close()


async def ask_as_nobody(path: Path, request: str) -> str:
    command = [sys.executable, "-c", ASK_AS_NOBODY, str(path), request]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, text=True)
    answer: str = done.stdout
    return answer


@pytest.mark.netns
@pytest.mark.parametrize("request_", ["status", "no such request"])
async def test_other_users_are_refused(server: ControlServer, path: Path, request_: str) -> None:
    answer = json.loads(await ask_as_nobody(path, request_))
    assert answer == {"ok": False, "error": "only root and the daemon's own user may ask"}


@pytest.mark.netns
async def test_other_users_may_ask_once_for_what_is_for_everybody(server: ControlServer, path: Path) -> None:
    answer = json.loads(await ask_as_nobody(path, "repeat"))
    assert answer == {"ok": True, "uid": 65534, "gid": 65534, "arguments": {"word": "hello"}}


LINGER_AS_NOBODY = (
    MAKE_LINGERING_AS_NOBODY
    + """
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
try:
    socket.send_fds(sock, [b"["], [lingering.fileno()])
except PermissionError:
    print("refused", flush=True)  # since Linux 6.16
else:
    os.close(lingering.detach())
    print("sent", flush=True)
sys.stdin.read()
os._exit(0)  # which does not linger
"""
)

CROWD_AS_NOBODY = """
import os, select, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
crowd = [socket.socket(socket.AF_UNIX) for _ in range(40)]
for sock in crowd:
    sock.connect(sys.argv[1])
left = set(crowd)
while len(left) > 32:
    left -= set(select.select(list(left), [], [])[0])
print(len(left), len(select.select(list(left), [], [], 0.2)[0]), flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def running(code: str, path: Path) -> AsyncIterator[str]:
    """Run `code` until the end of the context; the line that it prints."""
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path), stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        await process.communicate(b"")


@pytest.mark.netns
async def test_descriptors_of_a_stranger_hold_nobody_up(server: ControlServer, path: Path) -> None:
    async with running(LINGER_AS_NOBODY, path) as outcome:
        assert outcome in ("sent", "refused")
        assert await asyncio.to_thread(ask, str(path), "status", 2) == {"state": "serving"}
        assert json.loads(await ask_as_nobody(path, "repeat"))["ok"]


@pytest.mark.netns
async def test_a_crowd_of_strangers_is_hung_up_on_and_root_served(server: ControlServer, path: Path) -> None:
    async with running(CROWD_AS_NOBODY, path) as left:
        assert left == "32 0"
        assert await asyncio.to_thread(ask, str(path), "status", 2) == {"state": "serving"}
    assert json.loads(await ask_as_nobody(path, "repeat"))["ok"]


async def test_a_request_may_have_arguments(server: ControlServer, path: Path) -> None:
    answer = await asyncio.to_thread(ask, str(path), "repeat", word="hello")
    assert answer["arguments"] == {"word": "hello"}


async def test_a_second_server_leaves_the_first_alone(server: ControlServer, path: Path) -> None:
    with pytest.raises(Tnat64Error, match=f"another tnat64d is running: it answers at {path}"):
        await ControlServer(str(path), {}).start()
    assert await asyncio.to_thread(ask, str(path), "status") == {"state": "serving"}


def start_and_stop(path: Path) -> None:
    async def both() -> None:
        server = ControlServer(str(path), {})
        await server.start()
        await server.stop()

    asyncio.run(both())


def test_the_socket_of_a_daemon_that_was_killed_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    start_and_stop(path)
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(Tnat64Error, match=r"cannot make the control socket .*; set control.socket"):
        start_and_stop(path)
    assert path.read_text() == "precious"


def test_a_place_where_no_socket_can_be_made_is_named(path: Path) -> None:
    path.write_text("")
    with pytest.raises(Tnat64Error, match=rf"cannot make the control socket {path}/below: \w"):
        start_and_stop(path / "below")


def test_nobody_answers_where_nothing_is(path: Path) -> None:
    with pytest.raises(UnavailableError, match=f"no tnat64d answers at {path}"):
        ask(str(path), "status")


@pytest.mark.parametrize("answer", [b"", b"\n", b"[]\n", b"{}\n", b"7\n", b"null\n", b"\xff\n", b'{"ok": true'])
def test_a_stranger_at_the_socket_is_not_taken_for_a_daemon(path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(100)
                client.sendall(answer)

        stranger = threading.Thread(target=serve)
        stranger.start()
        with pytest.raises(UnavailableError):
            ask(str(path), "status")
        stranger.join()


def test_a_daemon_that_hangs_is_waited_for_no_longer_than_asked(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(UnavailableError):
            ask(str(path), "status", timeout_s=0.05)
