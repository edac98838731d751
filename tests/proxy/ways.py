"""A host on which every way to a destination ends as its address says, by routes alone.

IPv4     192.0.2.0/24     answers: a server on the port, or nobody (refused)
         198.51.100.0/24  unreachable (EHOSTUNREACH from connect())
         203.0.113.0/24   no route (ENETUNREACH from connect())
         240.0.2.0/24     silent
         240.0.3.0/24     late: unreachable, by an ICMP error
NAT64    the same, by the last octet of the IPv4 address: 0-63 answers, 64-127 silent, 128-191 unreachable,
         192-223 no route, 224-255 late
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import PREFIX
from tests.lab.lab import Lab
from tests.lab.namespace import CLONE_NEWNET

IPV4 = {
    "answers": "192.0.2.{}",
    "unreachable": "198.51.100.{}",
    "no route": "203.0.113.{}",
    "silent": "240.0.2.{}",
    "late": "240.0.3.{}",
}
NAT64 = {"answers": 1, "silent": 65, "unreachable": 129, "no route": 193, "late": 225}

_V6 = PREFIX.removesuffix("/96")
# Packets for this neighbour are sent, and the device at the other end of the pair ignores them: not its address.
_NOBODY = "02:00:00:00:00:99"

_libc = ctypes.CDLL(None, use_errno=True)


def destination(ipv4: str, nat64: str) -> str:
    """The address whose two ways end like this."""
    return IPV4[ipv4].format(NAT64[nat64])


class Ways(Lab):
    """The host, in a namespace of its own."""

    roles = ("ways",)

    def build(self) -> None:
        self.ip(
            "ways",
            "link add hole type veth peer name bottom",
            "link set hole up",
            "link set bottom up",
            "address add 2001:db8::1/128 dev lo nodad",
            f"neighbour add 169.254.1.1 lladdr {_NOBODY} dev hole nud permanent",
            f"neighbour add fe80::99 lladdr {_NOBODY} dev hole nud permanent",
            "route add local 192.0.2.0/24 dev lo",
            "route add unreachable 198.51.100.0/24",
            "route add 240.0.2.0/24 via 169.254.1.1 dev hole onlink src 192.0.2.1",
            "route add 240.0.3.0/24 via 169.254.1.2 dev hole onlink src 192.0.2.1",
        )
        for family in ("ipv4", "ipv6"):  # a neighbour that does not answer is soon given up: icmp(7)
            self.namespaces["ways"].write_sysctl(f"net.{family}.neigh.hole.mcast_solicit", 1)
            self.namespaces["ways"].write_sysctl(f"net.{family}.neigh.hole.retrans_time_ms", 20)
        for network in ("c000:2", "c633:64", "cb00:71", "f000:2", "f000:3"):  # the five above
            self.ip(
                "ways",
                f"route add local {_V6}{network}00/122 dev lo",
                f"route add {_V6}{network}40/122 via fe80::99 dev hole src 2001:db8::1",
                f"route add unreachable {_V6}{network}80/122",
                f"route add {_V6}{network}e0/123 via fe80::98 dev hole src 2001:db8::1",
            )


@contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """This thread, and those that it starts, are in `namespace` (setns(2)); sockets made there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    away = os.open(namespace, os.O_RDONLY)
    try:
        _enter(away)
        yield
    finally:
        _enter(home)
        os.close(home)
        os.close(away)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
