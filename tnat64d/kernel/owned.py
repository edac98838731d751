"""A whole `core.ruleset` that lives as long as the processes of the daemon.

Owns the TUN device, and through it address and route; the nf_tables table bound to its socket; and the order.
Refuses to own when (`daemon.supervisor`) and what (`core.description`).

However these end, SIGKILL included, the kernel takes table, device, address and route away, and programs get the
immediate error that they got before. Every process of the daemon holds the descriptors: the address must stay
until the last of them has ended its connections, or these ends would find no way and programs would wait for ever.

The policy rules stay, lead nowhere, and go with the next `install`, `remove` or teardown. Only REDIRECT mode can
be held so: TPROXY needs a local route, which no device of ours takes with it.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from tnat64d.core.ruleset import OWN_DEVICE, Ruleset
from tnat64d.errors import Tnat64Error
from tnat64d.kernel import nftables, routes, standing
from tnat64d.kernel.installation import Installation
from tnat64d.kernel.nftables import OwnedTable
from tnat64d.kernel.refused_set import RefusesDestinations
from tnat64d.kernel.standing import Standing
from tnat64d.kernel.tun import TunDevice

MTU_BYTES = 65535
"""What never leaves the host need not be cut; the kernel's largest for a TUN device (drivers/net/tun.c)."""


_DEVICE_PART = f"the device {OWN_DEVICE}"

LETTING_GO_S = 3.0
"""A worker that had just been started took 0.65 s of two busy processors."""

_LOOK_AGAIN_S = 0.02


class OwnedInstallation:
    """Holds a ruleset.

    Making one raises UnavailableError where the kernel or the container lacks a TUN device or the owner flag,
    PrivilegeError without CAP_NET_ADMIN, Tnat64Error where another tnat64d holds one.
    """

    def __init__(self, static: Installation) -> None:
        """What an earlier run left by `static` is removed: two captures of one packet would fight.

        The device comes before anything changes, as only one daemon can have it, and after the table, as a process
        that is killed closes the highest descriptor first (see `kernel.in_flight`): the device, then the table.
        """
        self._installed: Ruleset | None = None
        self._table = OwnedTable()
        try:
            self.device = TunDevice(OWN_DEVICE)
        except BaseException:
            self._table.close()
            raise
        try:
            static.remove()
            self._table.claim()
        except BaseException:
            self.device.close()
            self._table.close()
            raise

    @property
    def shared(self) -> tuple[int, int]:
        """What every process with connections must hold until these are closed (`kernel.in_flight`); the last of
        them lets go of it in this order, so that no packet finds the route without finding the table.
        """
        return self.device.fileno(), self._table.fileno()

    def install(self, ruleset: Ruleset) -> None:
        """Make `ruleset` stand, in place of the one before.

        Where that fails half-way, the one before stands, or nothing of ours. Raises as `routes.install`.
        """
        try:
            self._make(ruleset)
        except BaseException:
            with suppress(Tnat64Error):  # the failure that led here is the one to tell
                if self._installed is None:
                    self.remove()
                else:
                    self._make(self._installed)
            raise
        self._installed = ruleset

    def _make(self, ruleset: Ruleset) -> None:
        self._table.install(ruleset)
        self.device.attach()
        routes.bring_up(OWN_DEVICE, MTU_BYTES)
        routes.install(ruleset)

    @property
    def refused(self) -> RefusesDestinations:
        """Where destinations are refused, if the ruleset has that."""
        return self._table

    def parts(self, ruleset: Ruleset) -> tuple[str, ...]:
        """The names that `standing` has while `ruleset` stands."""
        return (_DEVICE_PART, *standing.routing_parts(ruleset))

    def standing(self, ruleset: Ruleset) -> Standing:
        """What stands of ours where `ruleset` should, but for the table: nobody else can change it.

        Raises Tnat64Error.
        """
        device = {_DEVICE_PART: b"there"} if self.device.is_attached() else {}
        return {**device, **standing.routing(ruleset.route.table, ruleset.address.address)}

    def answer(self) -> bool:
        """Tell those whose packets have come to the device that there is no way. False: the device is gone."""
        if self._installed is not None and self._installed.address.peer is not None:
            self.device.answer(self._installed.address.peer)
        return self.device.is_attached()

    def remove(self) -> None:
        """Leave nothing of ours. Raises PrivilegeError, Tnat64Error."""
        routes.delete_device(OWN_DEVICE)  # whoever else may still have it open
        self._table.delete()
        self.device.close()
        self._table.close()
        routes.remove()


def is_held() -> bool:
    """Whether a running process holds a ruleset here: the device goes with it."""
    return any(name == OWN_DEVICE for _, name in socket.if_nameindex())


def stays_held() -> bool:
    """Whether `is_held`, and LETTING_GO_S later, too; blocks until it is not. Raises PrivilegeError, Tnat64Error.

    After a `kill -9` of the supervisor its workers let go when they see that it is gone; those that are starting
    see it late. The device goes first, and while the table has an owner nobody else can write one.
    """
    if not is_held():
        return False
    deadline = time.monotonic() + LETTING_GO_S
    while is_held() or nftables.is_owned():
        if time.monotonic() >= deadline:
            return True
        time.sleep(_LOOK_AGAIN_S)
    return False
