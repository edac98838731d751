"""Pipes for splice(2), lent to a flow while it has bytes in one.

Owns the pool. Refuses to own the bytes: a pipe that comes back not empty is closed, not pooled.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass

PIPE_SIZE_BYTES = 1 << 20
"""What an unprivileged process may ask for (/proc/sys/fs/pipe-max-size)."""

IDLE_PIPES = 16
"""How many pipes are kept. Each holds two descriptors and, empty, no pages."""


@dataclass(slots=True, eq=False)
class Pipe:
    """Both ends of a pipe and the bytes in it."""

    read_fd: int
    write_fd: int
    held_bytes: int = 0

    def close(self) -> None:
        """Close both ends; what is in it is lost."""
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """Lends pipes."""

    def __init__(self) -> None:
        self._idle: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe, or None where the process has no descriptors left for one."""
        if self._idle:
            return self._idle.pop()
        try:
            read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE_BYTES)
        except OSError:
            pass  # the user's share of pipe pages is used up (pipe(7)): a smaller pipe is only slower
        return Pipe(read_fd, write_fd)

    def give_back(self, pipe: Pipe) -> None:
        """The flow needs `pipe` no more."""
        if pipe.held_bytes or len(self._idle) >= IDLE_PIPES:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """Close the idle pipes."""
        while self._idle:
            self._idle.pop().close()
