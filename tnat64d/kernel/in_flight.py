"""Descriptors that are let go only when all that a process has opened since is closed, however it ends.

Owns the way. Refuses to own what they are.

A process that ends gives up its descriptors in ascending order, at once; what nobody else has open is then closed
in descending order (close_files() in fs/file.c, task_work_run() in kernel/task_work.c). So of several processes
that end together, the one that is last to give up a descriptor closes it when its own others are closed, and not
when those of the rest are. A descriptor in a message that nobody receives (unix(7), SCM_RIGHTS) is given up when
the socket is closed in which the message waits, and that is a matter of this process alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence


def put(fds: Sequence[int]) -> int:
    """Close `fds` but for the message that holds them; the descriptor of the socket in which that waits.

    If this process is the last to let go of them, they are closed in the order of `fds` (__scm_destroy() in
    net/core/scm.c). The socket must have a lower number than what shall be closed before; see `fill_below`.
    """
    sender, receiver = socket.socketpair()
    with sender:
        socket.send_fds(sender, [b"\0"], list(fds))
    for fd in fds:
        os.close(fd)
    return receiver.detach()


def fill_below(fd: int) -> None:
    """Leave no number below `fd` free, so that what is opened from now on has a higher one."""
    while (filler := os.dup(fd)) < fd:
        pass
    os.close(filler)
