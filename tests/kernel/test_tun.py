"""The device that answers: what programs see of it, and what it sends."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from tests.kernel.bare_host import run_python, standing
from tests.lab import Namespace
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.tun import TunDevice, net_unreachable

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "setpriv")

PEER = IPv4Address("192.0.0.1")
SERVER = "198.51.100.10"
AT_ONCE_S = 0.05


def ipv4(protocol: int, payload: bytes = b"12345678", fragment: int = 0, version: int = 4) -> bytes:
    """A packet from 192.0.0.2 to SERVER."""
    addresses = socket.inet_aton("192.0.0.2") + socket.inet_aton(SERVER)
    fields = (version << 4 | 5, 0, 20 + len(payload), 7, fragment, 64, protocol, 0)
    return struct.pack("!BBHHHBBH", *fields) + addresses + payload


def internet_sum(data: bytes) -> int:
    """0xffff for data with a right checksum in it (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.fixture
def device(host: Namespace) -> Iterator[TunDevice]:
    """The device, up, with address and default route, and a thread that answers."""
    tun = host.call(TunDevice, "tnat64d")
    commands = [
        "link set tnat64d up mtu 65535",
        "address add 192.0.0.2 peer 192.0.0.1/32 dev tnat64d",
        "route add default dev tnat64d src 192.0.0.2",
    ]
    host.run(["ip", "-batch", "-"], input="\n".join(commands))
    end, told = os.pipe()

    def answer() -> None:
        while True:
            ready, _, _ = select.select([tun.fileno(), end], [], [])
            if end in ready:
                return
            tun.answer(PEER)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield tun
    finally:
        os.write(told, b"x")
        thread.join()
        os.close(end)
        os.close(told)
        tun.close()


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_connect_is_told_at_once_that_there_is_no_way(host: Namespace, device: TunDevice, rp_filter: int) -> None:
    for which in ("all", "default", "tnat64d"):
        host.write_sysctl(f"net.ipv4.conf.{which}.rp_filter", rp_filter)
    for _ in range(20):
        started = time.monotonic()
        with host.socket() as sock, pytest.raises(OSError) as caught:  # noqa: PT011 (the number says it)
            sock.connect((SERVER, 80))
        assert caught.value.errno == errno.ENETUNREACH
        assert time.monotonic() - started < AT_ONCE_S


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_a_connect_that_does_not_block_is_told_so_by_poll(
    host: Namespace, device: TunDevice, rp_filter: int
) -> None:
    host.write_sysctl("net.ipv4.conf.all.rp_filter", rp_filter)
    with host.socket() as sock:
        sock.setblocking(False)
        started = time.monotonic()
        code = sock.connect_ex((SERVER, 80))
        if code == errno.EINPROGRESS:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            assert poll.poll(1000)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert code == errno.ENETUNREACH
        assert time.monotonic() - started < AT_ONCE_S


def test_many_at_once_are_all_told(host: Namespace, device: TunDevice) -> None:
    socks = [host.socket() for _ in range(200)]
    poll = select.poll()
    started = time.monotonic()
    for sock in socks:
        sock.setblocking(False)
        if sock.connect_ex((SERVER, 80)) == errno.EINPROGRESS:
            poll.register(sock, select.POLLOUT)
    waiting = {sock.fileno(): sock for sock in socks}
    while time.monotonic() - started < 1:
        for fd, _ in poll.poll(100):
            poll.unregister(fd)
            assert waiting.pop(fd).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETUNREACH
        if not waiting:
            break
    assert not waiting
    for sock in socks:
        sock.close()


def test_the_answer_has_right_checksums_and_quotes_header_and_eight_bytes() -> None:
    packet = ipv4(socket.IPPROTO_TCP, b"123456789abc")
    answer = net_unreachable(packet, PEER)
    assert answer is not None
    header, body = answer[:20], answer[20:]
    assert internet_sum(header) == internet_sum(body) == 0xFFFF
    assert (header[9], header[12:16], header[16:20]) == (1, PEER.packed, socket.inet_aton("192.0.0.2"))
    assert struct.unpack_from("!H", header, 2)[0] == len(answer)
    assert body[:2] == bytes((3, 0))  # destination unreachable, net
    assert body[8:] == packet[:28]


def test_a_packet_with_options_is_quoted_with_them() -> None:
    packet = bytearray(ipv4(socket.IPPROTO_TCP, b"\1\1\1\1" + b"12345678"))
    packet[0] = 0x46
    answer = net_unreachable(bytes(packet), PEER)
    assert answer is not None
    assert answer[28:] == packet
    assert internet_sum(answer[20:]) == 0xFFFF


@pytest.mark.parametrize(
    "packet",
    [
        ipv4(socket.IPPROTO_ICMP),
        ipv4(socket.IPPROTO_TCP, fragment=1),
        ipv4(socket.IPPROTO_TCP, version=6),
        ipv4(socket.IPPROTO_TCP)[:19],
        b"",
    ],
    ids=["an ICMP message", "a later fragment", "IPv6", "too short", "nothing"],
)
def test_what_must_not_be_answered_is_not(packet: bytes) -> None:
    assert net_unreachable(packet, PEER) is None


def test_the_first_fragment_is_answered() -> None:
    assert net_unreachable(ipv4(socket.IPPROTO_TCP, fragment=0x2000), PEER) is not None


def test_the_device_goes_when_it_is_closed(host: Namespace) -> None:
    before = standing(host)
    device = host.call(TunDevice, "tnat64d")
    assert standing(host) != before
    device.close()
    assert standing(host) == before


def test_a_device_that_is_down_is_no_error(host: Namespace) -> None:
    device = host.call(TunDevice, "tnat64d")
    device.answer(PEER)
    device.close()


def test_a_second_device_of_that_name_is_refused(host: Namespace) -> None:
    device = host.call(TunDevice, "tnat64d")
    with pytest.raises(Tnat64Error, match="another tnat64d runs here"):
        host.call(TunDevice, "tnat64d")
    device.close()


@pytest.mark.parametrize(
    ("wrapper", "said"),
    [
        (["setpriv", "--bounding-set=-net_admin", "--"], "PrivilegeError: making a TUN device needs root"),
        (
            ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none /dev/net; exec "$@"', "sh"],
            "UnavailableError: /dev/net/tun: No such file or directory",
        ),
    ],
    ids=["no privilege", "no /dev/net/tun"],
)
def test_where_it_cannot_be_had_it_says_why(host: Namespace, wrapper: list[str], said: str) -> None:
    code = """
from tnat64d.errors import Tnat64Error
from tnat64d.kernel.tun import TunDevice
try:
    TunDevice("tnat64d")
except Tnat64Error as error:
    print(f"{type(error).__name__}: {error}")
"""
    assert run_python(host, code, wrapper=wrapper).startswith(said)
