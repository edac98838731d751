"""Whether a process keeps static rules here, and so would put back what another takes away on purpose.

Owns the lock by which others know: a byte of `installation.LOCK` for each network namespace, by its number, locked
by the file description (fcntl(2), F_OFD_SETLK), so that it ends with the process. Refuses to own what is kept.
"""

from __future__ import annotations

import fcntl
import os
import struct

from tnat64d.errors import Tnat64Error
from tnat64d.kernel import network_namespace
from tnat64d.kernel.installation import LOCK

_FLOCK = "hhqqi0q"
"""struct flock: type, whence, start, length, pid (0: F_OFD_*)."""


class Lock:
    """That this process keeps the rules of its network namespace, until `close` or its end.

    Raises Tnat64Error if another does. Where LOCK cannot be had (see `installation`), nobody knows.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        try:
            self._file = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            return
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _own_byte())
        except OSError:
            self.close()
            raise Tnat64Error("another tnat64d setup --watch keeps the rules here: end it first") from None

    def close(self) -> None:
        """Keep them no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def is_kept() -> bool:
    """Whether a process has the Lock of this network namespace; False where LOCK may not be read."""
    try:
        file = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _own_byte())
    finally:
        os.close(file)
    kind: int = struct.unpack(_FLOCK, found)[0]
    return kind != fcntl.F_UNLCK


def _own_byte() -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, network_namespace.number(), 1, 0)
