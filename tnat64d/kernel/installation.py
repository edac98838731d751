"""A whole `core.ruleset`, put into the kernel and taken out of it.

Owns the order and the undoing. Refuses to own what stands (`core.description`) and how each part gets there
(`kernel.iptables`, `kernel.routes`).

Chains come before the route, and go after it: whatever the route catches finds its chain. Nothing is
remembered outside of the kernel, so taking out works after a crash, too.

Installing looks first and changes then, so two at once would both add what neither saw: LOCK keeps them apart.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tnat64d.core.ruleset import Ruleset
from tnat64d.errors import Tnat64Error, UnavailableError
from tnat64d.kernel import routes, standing
from tnat64d.kernel.backends import Backend, made_elsewhere
from tnat64d.kernel.standing import Standing

LOCK = "/run/tnat64d.lock"
"""Locked by flock(2), which ends with the process. Only root can make or open it."""

LOCK_TIMEOUT_S = 20.0
_LOCK_RETRY_S = 0.02
"""flock(2) knows no time limit, and its wait in a thread cannot be ended."""


class Installation:
    """The static way of keeping a ruleset: it stands until it is removed."""

    def __init__(self, backend: Backend, others: Sequence[Backend] = ()) -> None:
        """`others`: the backends that an earlier run may have used; what it left there is removed."""
        self._backend = backend
        self._others = others
        self._installed: Ruleset | None = None

    def plan(self, ruleset: Ruleset) -> str:
        """What `install` would do now, for a shell; empty if all stands. Raises as `install`."""
        removals = [other.plan_removal() for other in self._others]
        chains = "" if self._chains_stand(ruleset) else self._backend.plan(ruleset)
        return "\n".join((*filter(None, removals), *filter(None, [chains]), *routes.plan(ruleset)))

    def plan_removal(self) -> str:
        """What `remove` does, for a shell; empty if nothing of ours stands."""
        removals = [backend.plan_removal() for backend in (self._backend, *self._others)]
        return "\n".join((*routes.removal_commands(), *filter(None, removals)))

    def parts(self, ruleset: Ruleset) -> tuple[str, ...]:
        """The names that `standing` has while `ruleset` stands."""
        return (*self._backend.parts(ruleset), *standing.routing_parts(ruleset))

    def standing(self, ruleset: Ruleset) -> Standing:
        """What stands of ours where `ruleset` should. Raises PrivilegeError, Tnat64Error."""
        routing = standing.routing(ruleset.route.table, ruleset.address.address)
        return {**self._backend.standing(), **routing}

    def install(self, ruleset: Ruleset) -> None:
        """Make `ruleset` stand and nothing else of ours.

        Where that fails half-way, what this object installed before stands, or nothing of ours.
        Raises PrivilegeError, UnavailableError, Tnat64Error.
        """
        with _alone():
            try:
                self._make(ruleset)
            except BaseException:
                self._undo()
                raise
            self._installed = ruleset

    def remove(self) -> None:
        """Leave nothing of ours. Raises PrivilegeError, UnavailableError, Tnat64Error."""
        with _alone():
            self._installed = None
            routes.remove()
            for backend in (self._backend, *self._others):
                backend.remove()

    def _chains_stand(self, ruleset: Ruleset) -> bool:
        """Whether the chains are those that the backend makes elsewhere; False if that cannot be tried."""
        try:
            return made_elsewhere(self._backend, ruleset) == self._backend.standing()
        except Tnat64Error:
            return False

    def _make(self, ruleset: Ruleset) -> None:
        self._backend.install(ruleset)
        for other in self._others:
            other.remove()
        routes.install(ruleset)

    def _undo(self) -> None:
        """The failure that led here is the one to tell: others are not.

        What cannot be put back just now still stands in part, and stays until `remove`.
        """
        if self._installed is not None:
            with suppress(Tnat64Error):
                self._make(self._installed)
            return
        for remove in (routes.remove, self._backend.remove):
            with suppress(Tnat64Error):
                remove()


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time; without the lock where it cannot be had (not root, or /run cannot be written to).

    Raises UnavailableError if another keeps it for LOCK_TIMEOUT_S.
    """
    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield
        return
    try:
        _lock(lock)
        yield
    finally:
        os.close(lock)


def _lock(lock: int) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"another process has kept {LOCK} for {LOCK_TIMEOUT_S:g} s: "
                    f"end what `fuser {LOCK}` names, or try again"
                ) from None
        time.sleep(_LOCK_RETRY_S)
