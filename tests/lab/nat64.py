"""Two labs: a host behind a real NAT64, and a host behind an ideal one.

    Nat64Lab       client ──────── router, tayga ──────── server
                   2001:db8:1::2   ::1   198.51.100.1     198.51.100.10
                   (203.0.113.2)   (203.0.113.1)          with add_ipv4_to_client()

    IdealNat64Lab  client ──────── server: owns the whole prefix and answers on it itself
                   2001:db8:1::2   2001:db8:1::1, PREFIX::198.51.100.10

Owns addresses, routes, the NAT64, and changing them while a daemon runs. All addresses are from documentation
ranges (RFC 5737, 3849, 9637). In both labs the server host answers on `SERVER_V4` by way of the prefix.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import ipaddress
import socket
import struct
import sys
from collections.abc import Mapping

from tests.lab import servers
from tests.lab.lab import Lab
from tests.lab.namespace import Namespace, Process, wait_until

PREFIX = "2001:db8:64::/96"
CLIENT_V6 = "2001:db8:1::2"
ROUTER_V6 = "2001:db8:1::1"
CLIENT_V4 = "203.0.113.2"
ROUTER_V4 = "203.0.113.1"
SERVER_V4 = "198.51.100.10"
SERVER_GATEWAY_V4 = "198.51.100.1"

_NAT64_DEVICE = "nat64"
_NAT64_POOL = "192.168.255.0/24"  # what the server sees as its clients
_DROP = "DROP"
# An unreachable route would do, but answers only once a second after five times (ip_error() in net/ipv4/route.c).
_REJECT = "REJECT --reject-with icmp-net-unreachable"
_TAYGA_CONF = """\
tun-device {device}
ipv4-addr 192.168.255.1
ipv6-addr 2001:db8:1:ffff::1
prefix {prefix}
dynamic-pool {pool}
data-dir {directory}
"""


class Nat64Failure(enum.Enum):
    """How a NAT64 can be lost, as its client sees it."""

    UNREACHABLE = "the network answers with ICMPv6 no route"
    NO_ROUTE = "the client has no IPv6 default route any more: connect() fails without a packet"
    SILENT = "the router drops what goes to the prefix: connect() waits"


def nat64_address(ipv4_address: str, prefix: str = PREFIX) -> str:
    """`ipv4_address` under `prefix`, any of the lengths of RFC 6052 section 2.2 (bits 64 to 71 stay zero)."""
    network = ipaddress.IPv6Network(prefix)
    embedded = network.network_address.packed[: network.prefixlen // 8]
    embedded += ipaddress.IPv4Address(ipv4_address).packed
    if network.prefixlen < 96:
        embedded = embedded[:8] + b"\0" + embedded[8:]
    return str(ipaddress.IPv6Address(embedded.ljust(16, b"\0")))


class _ServedLab(Lab):
    """What both labs have: a client, a server, and the test servers (`servers`) on the latter."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    @property
    def client(self) -> Namespace:
        """The IPv6-only host."""
        return self.namespaces["client"]

    @property
    def server(self) -> Namespace:
        """The host behind the NAT64."""
        return self.namespaces["server"]

    @property
    def server_nat64(self) -> str:
        """`SERVER_V4` under the lab's prefix."""
        return nat64_address(SERVER_V4, self.prefix)

    def start_servers(self, files: Mapping[str, bytes] | None = None) -> Process:
        """Start every server of `servers.Port`, and return when they accept.

        `files`: name to content, served over HTTP beside the `index.html` that is always there.
        """
        root = self.directory / "www"
        root.mkdir()
        for name, content in {"index.html": servers.INDEX_PAGE, **(files or {})}.items():
            (root / name).write_bytes(content)
        process = self.server.start([sys.executable, "-I", servers.__file__, root])
        process.wait_for_output("^ready$")
        return process


class IdealNat64Lab(_ServedLab):
    """The server owns the prefix: a NAT64 that costs nothing, for the relay and for speed."""

    roles: tuple[str, ...] = ("client", "server")

    def __init__(self, prefix: str = PREFIX) -> None:
        super().__init__(prefix)

    def build(self) -> None:
        """Two hosts on one link."""
        self.link("client", "eth0", "server", "eth0")
        self.ip("server", *_up("eth0", f"{ROUTER_V6}/64", "fe80::1/64"), f"route add local {self.prefix} dev lo")
        self.ip("client", *_up("eth0", f"{CLIENT_V6}/64", "fe80::2/64"), f"route add ::/0 via {ROUTER_V6}")


class Nat64Lab(_ServedLab):
    """A client with nothing but IPv6, a router that runs tayga, a server with nothing but IPv4."""

    roles = ("client", "router", "server")

    def __init__(self, ipv4: bool = False, prefix: str = PREFIX) -> None:
        """`ipv4`: begin with add_ipv4_to_client(). `prefix`: a length of RFC 6052, not covering the client.

        Not 64:ff9b::/96: under it tayga answers "no route" for documentation addresses (RFC 6052 section 3.1).
        """
        super().__init__(prefix)
        self._ipv4 = ipv4
        self._filters: dict[str, str] = {}

    @property
    def router(self) -> Namespace:
        """The host between them, with the NAT64."""
        return self.namespaces["router"]

    def build(self) -> None:
        """Three hosts on two links, and tayga translating for real before this returns."""
        self.link("client", "eth0", "router", "to_client")
        self.link("server", "eth0", "router", "to_server")
        self.router.write_sysctl("net.ipv4.ip_forward", 1)
        self.router.write_sysctl("net.ipv6.conf.all.forwarding", 1)
        # Every failing connect() of a test gets its ICMP error, however many there are in a second.
        self.router.write_sysctl("net.ipv4.icmp_ratelimit", 0)
        self.router.write_sysctl("net.ipv6.icmp.ratelimit", 0)
        with contextlib.suppress(FileNotFoundError):  # older kernels have one limit for the whole host
            self.router.write_sysctl("net.ipv4.icmp_msgs_per_sec", 1_000_000)
            self.router.write_sysctl("net.ipv4.icmp_msgs_burst", 1_000_000)
        self.ip(
            "router",
            *_up("to_client", f"{ROUTER_V6}/64", "fe80::1/64"),
            *_up("to_server", f"{SERVER_GATEWAY_V4}/24"),
            f"tuntap add dev {_NAT64_DEVICE} mode tun",
            f"link set {_NAT64_DEVICE} up",
            f"route add {_NAT64_POOL} dev {_NAT64_DEVICE}",
            f"route add {self.prefix} dev {_NAT64_DEVICE}",
        )
        self.ip("server", *_up("eth0", f"{SERVER_V4}/24"), f"route add default via {SERVER_GATEWAY_V4}")
        self.ip("client", *_up("eth0", f"{CLIENT_V6}/64", "fe80::2/64"), f"route add ::/0 via {ROUTER_V6}")
        self._start_tayga()
        if self._ipv4:
            self.add_ipv4_to_client()

    def add_ipv4_to_client(self) -> None:
        """Give the client a working IPv4 way to the server, whatever was done to it before."""
        self._filter("to_client", None)
        self.ip("router", f"addr replace {ROUTER_V4}/24 dev to_client")
        self.ip("client", f"addr replace {CLIENT_V4}/24 dev eth0", f"route replace default via {ROUTER_V4}")

    def remove_ipv4_route(self) -> None:
        """Take the client's IPv4 default route away; its IPv4 address stays."""
        self.ip("client", f"route del default via {ROUTER_V4}")

    def blackhole_ipv4(self) -> None:
        """The router drops the client's IPv4 packets without a word; the client's route stays."""
        self._filter("to_client", _DROP)

    def reject_ipv4(self) -> None:
        """The router answers the client's IPv4 packets with ICMP net unreachable; the client's route stays.

        Without a delay on the link the answer arrives while connect() holds the socket, when TCP only takes a note
        of it (tcp_v4_err() in net/ipv4/tcp_ipv4.c): poll() and SO_ERROR tell at once, a blocking connect() returns
        after the first retransmission, 1 s.
        """
        self._filter("to_client", _REJECT)

    def stop_nat64(self, how: Nat64Failure = Nat64Failure.UNREACHABLE) -> None:
        """Break the way through the NAT64, for connections that exist too. Undone by start_nat64()."""
        match how:
            case Nat64Failure.UNREACHABLE:
                # IPv4 behind tayga, which translates the ICMP error: an ICMPv6 error of the router itself would
                # meet every connect() in the state that reject_ipv4() tells of.
                self._filter(_NAT64_DEVICE, _REJECT)
            case Nat64Failure.NO_ROUTE:
                self.ip("client", f"route del ::/0 via {ROUTER_V6}")
            case Nat64Failure.SILENT:
                self._filter(_NAT64_DEVICE, _DROP)

    def start_nat64(self) -> None:
        """The way through the NAT64 is as at the beginning, however it was stopped."""
        self._filter(_NAT64_DEVICE, None)
        self.ip("client", f"route replace ::/0 via {ROUTER_V6}")

    def _filter(self, device: str, target: str | None) -> None:
        """What the router does with IPv4 packets it would forward from `device`; None: forward them."""
        rule = f"-i {device} -j {{}}"
        if before := self._filters.pop(device, None):
            self.router.run(["iptables", "-w", "-D", "FORWARD", *rule.format(before).split()])
        if target:
            self.router.run(["iptables", "-w", "-A", "FORWARD", *rule.format(target).split()])
            self._filters[device] = target

    def _start_tayga(self) -> None:
        conf = self.directory / "tayga.conf"
        conf.write_text(
            _TAYGA_CONF.format(
                device=_NAT64_DEVICE, prefix=self.prefix, pool=_NAT64_POOL, directory=self.directory
            )
        )
        tayga = self.router.start(["tayga", "-c", conf, "-d"])

        def attached() -> bool:
            return tayga.returncode is not None or _is_running(self.router, _NAT64_DEVICE)

        wait_until(attached, "tayga attaches to its device")
        with (
            self.server.socket(socket.AF_INET) as listener,
            self.client.socket(socket.AF_INET6) as probe,
        ):
            listener.bind((SERVER_V4, 0))
            listener.listen()
            probe.settimeout(10.0)
            probe.connect((self.server_nat64, listener.getsockname()[1]))


def _up(device: str, *addresses: str) -> tuple[str, ...]:
    """With these addresses and no other: the kernel would make its own later, at a moment of its choosing."""
    return (
        f"link set {device} addrgenmode none up",
        *(f"addr add {address} dev {device}" for address in addresses),
    )


def _is_running(namespace: Namespace, device: str) -> bool:
    """Whether a program holds the device open: IFF_RUNNING of netdevice(7), by SIOCGIFFLAGS."""
    siocgifflags, iff_running = 0x8913, 0x40
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, siocgifflags, struct.pack("16sH22x", device.encode(), 0))
    flags: int = struct.unpack("16sH22x", answer)[1]
    return bool(flags & iff_running)
