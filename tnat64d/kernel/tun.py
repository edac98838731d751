"""A TUN device that lives as long as this process, and answers what reaches it: there is no way.

Owns the device and the ICMP errors. Refuses to own the address and the route on it (`kernel.routes`).

The fallback route of an owned ruleset leads to this device. What the rules redirect never gets here; what they
do not (a program out of scope) is told "network unreachable" at once, as on a host without tnat64d. When the
process ends, however, the kernel removes the device, and address and route with it.

Documentation/networking/tuntap.rst; RFC 792; RFC 1122 section 3.2.2.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from ipaddress import IPv4Address

from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError
from tnat64d.kernel import icmp

_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_IFF_TUN_NO_PI = 0x1001
_DEVICE = "/dev/net/tun"

_PACKET_SIZE_BYTES = 1 << 16
_PACKETS_PER_TURN = 64


class TunDevice:
    """The device `name`, made new.

    Raises UnavailableError where the kernel or the container has no TUN, PrivilegeError without CAP_NET_ADMIN,
    Tnat64Error if another process has a device of that name.
    """

    def __init__(self, name: str) -> None:
        try:
            self._fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UnavailableError(f"{_DEVICE}: {error.strerror}") from None
        self._name = name
        try:
            self._make()
        except BaseException:
            os.close(self._fd)
            raise

    def is_attached(self) -> bool:
        """Whether the device is there; anybody with the right to it can delete it."""
        try:
            fcntl.ioctl(self._fd, _TUNGETIFF, bytes(40))
        except OSError:
            return False
        return True

    def attach(self) -> None:
        """Make the device anew if it was deleted, for all who have this descriptor. Raises as __init__."""
        if not self.is_attached():
            self._make()

    def _make(self) -> None:
        try:
            fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", self._name.encode(), _IFF_TUN_NO_PI))
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise PrivilegeError("making a TUN device needs root (CAP_NET_ADMIN)") from None
            if error.errno == errno.EBUSY:
                raise Tnat64Error(f"the device {self._name} exists already: another tnat64d runs here") from None
            raise UnavailableError(f"cannot make the TUN device {self._name}: {error.strerror}") from None

    def fileno(self) -> int:
        """Readable when a packet has come."""
        return self._fd

    def answer(self, source: IPv4Address) -> None:
        """Answer every packet that has come with "network unreachable", from `source`."""
        for _ in range(_PACKETS_PER_TURN):
            try:
                packet = os.read(self._fd, _PACKET_SIZE_BYTES)
                if (reply := net_unreachable(packet, source)) is not None:
                    os.write(self._fd, reply)
            except BlockingIOError:
                return
            except OSError:
                return  # the device is down; it is brought up again, or is about to go

    def close(self) -> None:
        """Let the kernel take the device away."""
        os.close(self._fd)


def net_unreachable(packet: bytes, source: IPv4Address) -> bytes | None:
    """The ICMP error, an IPv4 packet, for `packet`; None where none may be sent (ICMP, later fragments)."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] == icmp.PROTOCOL:
        return None
    if struct.unpack_from("!H", packet, 6)[0] & 0x1FFF:
        return None
    quote = packet[: (packet[0] & 15) * 4 + icmp.QUOTED_PAYLOAD_BYTES]
    return icmp.destination_unreachable(icmp.NET_UNREACHABLE, source.packed, packet[12:16], quote)
