"""What a peer is: how it is described, started, waited for and ended.

Owns the life of a peer's processes in a lab. Refuses to own any particular one (`peers`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from benchmarks.lab import PlainLab, RuledLab, Service
from tests.lab import SERVER_V4, LabError, Process, wait_until
from tests.lab.namespace import kill_all_in

START_TIMEOUT_S = 15.0


class Peer:
    """One row of the tables. A subclass says how it is started.

    name: on the command line and in the results. title: in tables and pictures. compared_with: the tnat64d of as
    many processes. programs: what has to be installed. only: the measures it takes part in; None for all.
    most_idle: the idle connections it can be asked for; None for any number.
    """

    lab: type[PlainLab] = RuledLab
    compared_with = "tnat64d"
    programs: tuple[str, ...] = ()
    only: frozenset[str] | None = None
    most_idle: int | None = None

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title

    def missing(self) -> str | None:
        """Why it cannot take part, None when it can."""
        absent = [program for program in self.programs if shutil.which(program) is None]
        return f"{', '.join(absent)} is not installed" if absent else None

    def version(self) -> str:
        """As the program or its package says."""
        return ""

    def address(self, lab: PlainLab) -> str:
        """Where the load connects to."""
        return SERVER_V4

    def command(self, lab: PlainLab, service: Service) -> list[str] | None:
        """What to start in the client's namespace, configuration written; None for nothing."""
        raise NotImplementedError

    def under(self, lab: PlainLab) -> list[str]:
        """What the load is run under."""
        return []

    def clean_up(self, lab: PlainLab) -> None:
        """After its processes have been killed."""


@contextlib.contextmanager
def running(peer: Peer, lab: PlainLab, service: Service) -> Iterator[Process | None]:
    """`peer`, relaying to `service`; afterwards nothing runs in the client's namespace. Raises LabError."""
    process: Process | None = None
    try:
        command = peer.command(lab, service)
        if command is not None:
            process = lab.client.start(command)
            _wait_until_it_relays(peer, lab, service, process)
        yield process
    finally:
        kill_all_in(lab.client.path)
        if process is not None:
            process.wait()
        peer.clean_up(lab)


def _wait_until_it_relays(peer: Peer, lab: PlainLab, service: Service, process: Process) -> None:
    def relays_or_has_ended() -> bool:
        return process.returncode is not None or lab.answers(peer.address(lab), service)

    try:
        wait_until(relays_or_has_ended, f"{peer.title} relays", START_TIMEOUT_S)
    except LabError as error:
        raise LabError(f"{error}: {process.stdout}{process.stderr}") from None
    if process.returncode is not None:
        raise LabError(f"{peer.title} ended with {process.returncode}: {process.stdout}{process.stderr}")
