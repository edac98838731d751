"""`tnat64d exec` at the daemon's end: who may have a command carried, and the way into the group that is carried.

Owns the [exec] table and the descriptor by which programs are moved. Refuses to own the group (`kernel.cgroup`),
the rules for it (`core.description`), and the command, which the asker runs in its own place.

    asker                daemon without root        daemon with root
    root                 goes by itself             goes by itself
    who may by [exec]    moved, through a lent door  moved
    anybody else         refused                    refused

A daemon without root may not move anybody else's process. `setup`, which is root, lends it a descriptor that was
opened with root's rights: as ancillary data (unix(7), SCM_RIGHTS), which the control socket refuses, so over a
socket of its own whose abstract name the request `door` tells. Everybody can connect there; only root is heard.
"""

from __future__ import annotations

import os
import socket

from tnat64d.core.settings import Settings
from tnat64d.daemon import control
from tnat64d.daemon.control import Answer, Question
from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError
from tnat64d.kernel import accounts, cgroup, peer

_LEND_TIMEOUT_S = 1.0
"""Between connecting and sending, which root does at once."""


class Admission:
    """Raises ConfigurationError for users and groups of [exec] that do not exist."""

    def __init__(self, settings: Settings, settings_file: str) -> None:
        lookup = accounts.lookup(settings_file, "exec")
        self._uids = frozenset(map(lookup.uid, settings.exec.users))
        self._gids = frozenset(map(lookup.gid, settings.exec.groups))
        self._is_matched = settings.scope.exec
        scope = settings.scope
        included = (*scope.users, *scope.groups, *scope.cgroups, *scope.units)
        excluded = (*scope.not_users, *scope.not_groups, *scope.not_cgroups, *scope.not_units)
        self._covers_everybody = not (included or excluded)
        self._lent: list[int] = []  # one or none
        self._lending: socket.socket | None = None

    def admit(self, question: Question) -> Answer:
        """Move the asker into the group; `{"enter": true}` if it is to do that itself, as root can.

        Its argument `group` is the group of its own network namespace. Raises PrivilegeError, UnavailableError,
        and Tnat64Error where the scope is not for commands.
        """
        group = cgroup.of_exec()
        if question.arguments.get("group") != group:
            raise UnavailableError("the daemon is in another network namespace, where the command would not be")
        if not self._is_matched:
            if self._covers_everybody:
                return {"enter": False}  # carried as it is
            raise Tnat64Error("the scope of the running daemon does not cover it: set scope.exec = true")
        if question.uid == 0:
            return {"enter": True}
        if question.uid not in self._uids and not self._gids & self._gids_of(question):
            raise PrivilegeError(
                f"user {question.uid} may not use exec: exec.users or exec.groups in tnat64d.toml can allow it"
            )
        self._move(question, group)
        return {"enter": False}

    def start(self) -> int:
        """Take what is lent from now on; the descriptor to call `receive` for when it is readable."""
        self._lending = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._lending.bind("")  # any free abstract name
        self._lending.listen()
        return self._lending.fileno()

    def stop(self) -> None:
        """Take nothing more, and give back what was lent."""
        if self._lending is not None:
            with peer.without_lingering():
                self._lending.close()
            self._lending = None
        for door in self._lent:
            os.close(door)
        self._lent = []

    def door(self) -> Answer:
        """Where to send a descriptor: the abstract name, without its NUL."""
        assert self._lending is not None, "not started"
        return {"name": self._lending.getsockname()[1:].decode()}

    def receive(self) -> None:
        """Take a descriptor, from root only."""
        assert self._lending is not None, "not started"
        try:
            connection, _ = self._lending.accept()
        except OSError:
            return
        if peer.credentials(connection).uid != 0:
            with peer.without_lingering():  # what it may have sent is closed unread
                connection.close()
            return
        with connection:
            connection.settimeout(_LEND_TIMEOUT_S)
            try:
                _, doors, _, _ = socket.recv_fds(connection, 1, 1)
            except OSError:
                return
        if len(doors) == 1:
            doors, self._lent = self._lent, doors
        for door in doors:
            os.close(door)

    @staticmethod
    def _gids_of(question: Question) -> frozenset[int]:
        return peer.supplementary_groups(question.connection) | {question.gid}

    def _move(self, question: Question, group: str) -> None:
        """The asker waits for the answer; should it end, its number must not be taken for another's."""
        try:
            door = cgroup.open_door(group)
        except PrivilegeError:
            if not self._lent:
                raise PrivilegeError(
                    "the daemon runs without root and has no way to the control group: let root run tnat64d setup"
                ) from None
            door = os.dup(self._lent[0])
        try:
            if not peer.is_running(question.connection):
                raise UnavailableError("who asked has ended")
            cgroup.move(question.pid, door)
        finally:
            os.close(door)


def lend(control_socket: str) -> None:
    """Let the daemon at `control_socket` move programs into the group of `exec`. For root.

    Raises UnavailableError without a daemon, Tnat64Error where it says no.
    """
    name = control.ask(control_socket, "door", control.CONNECT_TIMEOUT_S)["name"]
    door = cgroup.open_door(cgroup.of_exec())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sender:
            sender.settimeout(control.CONNECT_TIMEOUT_S)
            sender.connect(f"\0{name}")
            socket.send_fds(sender, [b"d"], [door])
    except OSError as error:
        raise UnavailableError(f"the daemon cannot be lent the control group: {error.strerror}") from None
    finally:
        os.close(door)
