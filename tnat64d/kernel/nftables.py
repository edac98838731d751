"""The life of the table `ip tnat64d` of nf_tables, written by netlink.

Owns that table: nothing in it is anybody else's, and nothing of ours is outside of it. Refuses to own what it is
made of (`kernel.nft_table`). Replacing it is one transaction, and no program is needed.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterable, Iterator

from tnat64d.core.ruleset import Ruleset
from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError
from tnat64d.kernel import nft_table, refused_set
from tnat64d.kernel.nfnetlink import (
    NFT_MSG_DELTABLE,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_TABLE_F_OWNER,
    Message,
    NfTables,
    attribute,
    text,
)
from tnat64d.kernel.nft_table import TABLE
from tnat64d.kernel.refused_set import Destination
from tnat64d.kernel.rtnetlink import attributes
from tnat64d.kernel.standing import Standing

PART = f"the table ip {TABLE}"


class Nftables:
    """Installs and removes the table; it stands until it is removed.

    Every method raises PrivilegeError without CAP_NET_ADMIN, and Tnat64Error where the kernel refuses.
    """

    def parts(self, ruleset: Ruleset) -> tuple[str, ...]:
        """The names that `standing` has while `ruleset` stands."""
        return (PART,)

    def standing(self) -> Standing:
        """What stands of ours: the table as one part, of whoever's making."""
        with NfTables() as netlink:
            chains = _kept(netlink.dump(NFT_MSG_GETCHAIN), {1, 3, 4, 5, 7})
            rules = _kept(netlink.dump(NFT_MSG_GETRULE, text(1, TABLE)), {1, 2, 4})
            is_there = netlink.has_table(TABLE)
        return {PART: b"".join((*chains, *rules))} if is_there else {}

    def plan(self, ruleset: Ruleset) -> str:
        """What `install` does, for a shell; checked by nft(8) where that is installed."""
        text = nft_table.render(ruleset)
        with NfTables() as netlink:
            if not nft_table.has_queues(netlink, ruleset):
                return f"# this kernel queues by xtables, in words that nft(8) does not take\n{text.rstrip()}"
        _check_with_nft(text)
        return f"nft -f - <<'EOF'\n{text}EOF"

    def install(self, ruleset: Ruleset) -> None:
        """Make the table stand, in place of one that stands already."""
        with NfTables() as netlink:
            queues, refused_count = nft_table.has_queues(netlink, ruleset), refused_set.counted(netlink, TABLE)
            made = nft_table.messages(ruleset, flags=0, queues=queues, refused_count=refused_count)
            netlink.commit([*nft_table.removal_of_any(), *made])

    def refuse(self, destinations: Iterable[Destination]) -> None:
        """Refuse each for as long as the ruleset says."""
        with NfTables() as netlink:
            netlink.commit([refused_set.fill(TABLE, destinations)])

    def forget_refused(self) -> None:
        """Refuse no destination any more."""
        with NfTables() as netlink:
            netlink.commit([refused_set.empty(TABLE)])

    def plan_removal(self) -> str:
        """What `remove` does, for a shell; empty if the table does not stand."""
        return f"nft delete table ip {TABLE}" if self.stands() else ""

    def remove(self) -> None:
        """Leave no table of ours."""
        with NfTables() as netlink:
            try:
                netlink.commit([Message(NFT_MSG_DELTABLE, (text(1, TABLE),))])
            except Tnat64Error as error:
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENOENT:
                    raise

    @staticmethod
    def is_supported() -> bool:
        """Whether this kernel has nf_tables and lets this process use it."""
        try:
            with NfTables() as netlink:
                netlink.has_table(TABLE)
        except (Tnat64Error, OSError):
            return False
        return True

    def stands(self) -> bool:
        """Whether the table is there, whoever made it."""
        with NfTables() as netlink:
            return netlink.has_table(TABLE)


def _kept(bodies: Iterable[bytes], kinds: set[int]) -> Iterator[bytes]:
    """Of what is in our table the attributes `kinds`: all but handles and counts of uses."""
    ours = text(1, TABLE)[4:].rstrip(b"\0") + b"\0"
    for body in bodies:
        values = dict(attributes(body, 0))
        if values.get(1) == ours:
            yield b"".join(attribute(kind, value) for kind, value in values.items() if kind in kinds)


def _check_with_nft(text: str) -> None:
    try:
        completed = subprocess.run(
            ["nft", "-c", "-f", "-"], input=text, capture_output=True, text=True, check=False
        )
    except OSError:
        return  # the kernel is spoken to without it
    if completed.returncode:
        raise Tnat64Error(f"nft -c refused the table: {completed.stderr.strip()}; it was given:\n{text.rstrip()}")


class OwnedTable:
    """The table, bound to this object's netlink socket: the kernel removes it when the process ends, however."""

    def __init__(self) -> None:
        """Changes nothing yet. Raises UnavailableError where the kernel has no nf_tables."""
        try:
            self._netlink = NfTables()
        except OSError as error:
            raise UnavailableError(f"this kernel has no nf_tables: {error.strerror}") from None

    def claim(self) -> None:
        """Make it, empty. Raises PrivilegeError, UnavailableError where the kernel knows no owned tables."""
        try:
            self._netlink.commit([*nft_table.removal_of_any(), nft_table.new(NFT_TABLE_F_OWNER)])
        except PrivilegeError:
            raise
        except Tnat64Error as error:
            raise UnavailableError(f"nf_tables has no tables with an owner (Linux 5.12): {error}") from None

    def install(self, ruleset: Ruleset) -> None:
        """Make `ruleset` stand in it, in place of the one before. Raises PrivilegeError, Tnat64Error."""
        before = Message(NFT_MSG_DELTABLE, (text(1, TABLE),))
        netlink = self._netlink
        queues, refused_count = nft_table.has_queues(netlink, ruleset), refused_set.counted(netlink, TABLE)
        made = nft_table.messages(ruleset, NFT_TABLE_F_OWNER, queues=queues, refused_count=refused_count)
        netlink.commit([before, *made])

    def refuse(self, destinations: Iterable[Destination]) -> None:
        """See Nftables."""
        self._netlink.commit([refused_set.fill(TABLE, destinations)])

    def forget_refused(self) -> None:
        """See Nftables."""
        self._netlink.commit([refused_set.empty(TABLE)])

    def delete(self) -> None:
        """Take it away now. Raises Tnat64Error."""
        self._netlink.commit([Message(NFT_MSG_DELTABLE, (text(1, TABLE),))])

    def fileno(self) -> int:
        """The descriptor to which the table is bound."""
        return self._netlink.fileno()

    def close(self) -> None:
        """Let the kernel take it away, unless another process has the descriptor, too."""
        self._netlink.close()


def is_owned() -> bool:
    """Whether the table belongs to a process. Raises PrivilegeError, Tnat64Error."""
    with NfTables() as netlink:
        return netlink.has_owned_table(TABLE)


def refused_count() -> int:
    """How many connects the rules have refused by the set. Raises PrivilegeError, Tnat64Error."""
    with NfTables() as netlink:
        return refused_set.counted(netlink, TABLE)


def refused_for_s(destination: Destination) -> float | None:
    """For how long they refuse `destination` from now on; None if they do not. Raises as `refused_count`."""
    with NfTables() as netlink:
        return refused_set.left_s(netlink, TABLE, destination)
