"""A host in a lab with a running daemon and a DNS64, on which `tnat64d doctor` is run."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

from tests.lab import IdealNat64Lab, Namespace, nat64_address
from tests.lab.daemon import PROGRAM, Daemon, Tables, run_cli

WELL_KNOWN = nat64_address("192.0.0.170")
SILENCE = "silence"
"""For a name server that does not answer."""

_STOP = b"stop"

Faults = dict[str, str]
"""Check to level and sentence, of all that is not ok."""

# Files of the host's own, and the words of the command line.
_INSIDE = """\
for name in resolv.conf nsswitch.conf; do mount --bind "$1/$name" "/etc/$name"; done
shift; exec "$@"
"""


class Patient:
    """`faults` and `say` run the command; `daemon` is None where none was started."""

    def __init__(self, lab: IdealNat64Lab, daemon: Daemon, directory: Path) -> None:
        self.lab = lab
        self.host: Namespace = lab.client
        self.daemon = daemon
        self._directory = directory

    def say(self, *arguments: str, wrapper: tuple[str, ...] = ()) -> tuple[int, str]:
        """Exit code and text."""
        files = ("-f", str(self.daemon.conf), "-c", str(self.daemon.settings))
        inside = ("unshare", "--mount", "sh", "-ec", _INSIDE, "sh", str(self._directory))
        done = run_cli(self.host, "doctor", *files, *arguments, program=(*inside, *wrapper, *PROGRAM))
        assert done.stderr == ""
        return done.returncode, done.stdout

    def findings(self, *arguments: str, wrapper: tuple[str, ...] = ()) -> list[dict[str, str]]:
        """Of --json."""
        code, text = self.say("--json", *arguments, wrapper=wrapper)
        found: list[dict[str, str]] = json.loads(text)
        assert code == (any(each["level"] != "ok" for each in found))
        assert all((each["remedy"] is None) == (each["level"] == "ok") for each in found)
        return found

    def faults(self, *arguments: str, wrapper: tuple[str, ...] = ()) -> Faults:
        """All that is not ok."""
        return {
            each["check"]: f"{each['level']}: {each['sentence']}"
            for each in self.findings(*arguments, wrapper=wrapper)
            if each["level"] != "ok"
        }

    def remedy(self, check: str) -> str:
        """The command that mends what `check` has found, run on the host as it stands there."""
        (command,) = [each["remedy"] for each in self.findings() if each["check"] == check]
        program = f'tnat64d() {{ {" ".join(PROGRAM)} "$@"; }}'
        self.host.run(["sh", "-ec", f"{program}\n{command}"])
        return command


def sh(host: Patient, script: str) -> None:
    """Run shell commands on the host."""
    host.host.run(["sh", "-ec", script])


@contextlib.contextmanager
def patient(
    lab: IdealNat64Lab,
    *,
    is_static: bool = False,
    is_started: bool = True,
    settings: Tables | None = None,
    answer: str | None = WELL_KNOWN,
) -> Iterator[Patient]:
    """A host that is well. `answer`: the AAAA record that its DNS64 has for ipv4only.arpa."""
    directory = lab.directory / "etc"
    directory.mkdir()
    (directory / "resolv.conf").write_text("nameserver ::1\noptions timeout:20 attempts:1\n")
    (directory / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: dns\n")
    command = "serve" if is_static else "up"
    daemon = Daemon(lab.client, lab.directory, command=command, settings=settings, leaves_kernel_as_found=False)
    with dns64(lab.client, answer):
        if is_static:
            done = daemon.run("setup", "-f", str(daemon.conf))
            assert done.returncode == 0, done.stderr
        with daemon if is_started else contextlib.nullcontext():
            yield Patient(lab, daemon, directory)


@contextlib.contextmanager
def dns64(host: Namespace, answer: str | None) -> Iterator[None]:
    """A name server on ::1 that knows one address (RFC 1035 section 4), or says that there is none."""
    server = host.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::1", 53))
    thread = threading.Thread(target=_serve, args=(server, answer))
    thread.start()
    try:
        yield
    finally:
        with host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.sendto(_STOP, ("::1", 53))
        thread.join()
        server.close()


def _serve(server: socket.socket, answer: str | None) -> None:
    while (asked := server.recvfrom(512))[0] != _STOP:
        if answer == SILENCE:
            continue
        question, client = asked
        end = question.index(b"\0", 12) + 5
        is_known = answer is not None and question[end - 4 : end - 2] == b"\0\x1c"
        header = question[:2] + struct.pack("!HHHHH", 0x8180, 1, int(is_known), 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH", 28, 1, 60, 16) + IPv6Address(answer).packed if answer else b""
        server.sendto(header + question[12:end] + (record if is_known else b""), client)
