"""Control groups, version 2: where they are, what identifies one, who is in it.

Owns the paths below the hierarchy's root, and the one group that is ours: that of `tnat64d exec`. Refuses to own
who may be put into it (`daemon.admission`).

Rules hold for the group that had the path when they were made. So ours is one for all commands, is made before
the rules, and stays as long as there are programs in it: they are carried again by the rules that come next.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError
from tnat64d.kernel import network_namespace


def root(mounts: str = "/proc/self/mounts") -> Path:
    """Where version 2 is mounted. Raises UnavailableError where it is not."""
    for line in Path(mounts).read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1].encode().decode("unicode_escape"))
    raise UnavailableError("cgroup version 2 is not mounted: a scope by cgroup, unit or exec needs it")


_NFT_ROOT = Path("/sys/fs/cgroup")
"""Where nft(8) looks for control groups (nftables, src/datatype.c), also if version 2 is mounted below it."""


def path_for_nft(path: str) -> str:
    """The group `path` (below the root) as nft(8) writes it. Raises UnavailableError as `root`."""
    full = root() / path
    return str(full.relative_to(_NFT_ROOT)) if full.is_relative_to(_NFT_ROOT) else path


def identity(path: str) -> int:
    """What the kernel knows the group `path` (below the root) by: its inode number.

    Raises Tnat64Error where there is no such group.
    """
    try:
        return os.stat(root() / path).st_ino
    except OSError as error:
        raise Tnat64Error(
            f"control group {path!r}: {error.strerror}; it must exist when the rules are made"
        ) from None


def identities(paths: Iterable[str]) -> dict[str, int]:
    """The `identity` of each of `paths` that there is, now."""
    found: dict[str, int] = {}
    if not (wanted := tuple(paths)):
        return found
    with suppress(UnavailableError):
        hierarchy = root()
        for path in wanted:
            with suppress(OSError):
                found[path] = os.stat(hierarchy / path).st_ino
    return found


def of_this_process() -> str:
    """The path below the root of the group that this process is in; empty for the root, or without version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):  # cgroups(7)
            return line[3:].strip("/")
    return ""


def of_exec() -> str:
    """The path of the group of `tnat64d exec`: each network namespace has its own, as it has its own rules."""
    return f"tnat64d.exec-{network_namespace.number()}"


@contextmanager
def made(path: str, *, stays: bool = True) -> Iterator[None]:
    """With the group `path`. If it was not there before, it goes again where the block fails, or `stays` is False.

    Raises UnavailableError as `root`, and where the hierarchy cannot be written to.
    """
    full = root() / path
    try:
        full.mkdir(mode=0o755)
        is_new = True
    except FileExistsError:
        is_new = False
    except OSError as error:
        raise UnavailableError(
            f"control group {full} cannot be made: {error.strerror}; scope.exec needs it "
            "(the service needs the drop-in etc/examples/service/exec.conf)"
        ) from None
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        if is_new and not (succeeded and stays):
            remove(path)


def exists(path: str) -> bool:
    """Whether there is a group `path`."""
    try:
        return (root() / path).is_dir()
    except UnavailableError:
        return False


def remove(path: str) -> None:
    """Leave no group `path`, unless there are programs in it (or groups, which they have made)."""
    with suppress(OSError, UnavailableError):
        (root() / path).rmdir()


def open_door(path: str) -> int:
    """A descriptor for `move` into the group `path`.

    The kernel asks what who opened it may do, not who uses it (cgroup_procs_write in kernel/cgroup/cgroup.c).
    Raises PrivilegeError, and UnavailableError where there is no such group.
    """
    full = root() / path
    try:
        return os.open(full / "cgroup.procs", os.O_WRONLY)
    except PermissionError:
        raise PrivilegeError(f"moving programs into the control group {full} needs root") from None
    except OSError as error:
        raise UnavailableError(
            f"control group {full} cannot be entered: {error.strerror}; tnat64d setup or up makes it"
        ) from None


def move(pid: int, door: int) -> None:
    """Put a process with all its threads into the group of `door`; its children will be born there.

    Raises PrivilegeError, UnavailableError if the process has ended or the group is gone.
    """
    if pid <= 0:  # of another PID namespace; and to the kernel 0 is who writes
        raise UnavailableError("the process is not in the daemon's PID namespace")
    try:
        os.write(door, b"%d" % pid)
    except PermissionError:
        raise PrivilegeError("moving programs into a control group needs root") from None
    except OSError as error:
        raise UnavailableError(f"process {pid} cannot be moved into the control group: {error.strerror}") from None
