"""What the kernel answers to a dump, and what it refuses."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from tests.kernel.bare_host import ip
from tests.lab import Namespace
from tnat64d.kernel.rtnetlink import RTM_GETADDR, RTM_GETROUTE, RTMSG, attributes, dump, dumped, dumping

_IFA_LOCAL, _RTA_TABLE = 2, 15


def test_a_refused_dump_is_an_error_and_no_wait_without_end() -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with kernel, ours:
        kernel.send(struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -errno.EOPNOTSUPP) + bytes(16))
        with pytest.raises(OSError, match="not supported"):
            list(dumped(ours))


@pytest.mark.netns
def test_the_attributes_of_an_address_are_found(host: Namespace) -> None:
    def addresses() -> list[bytes]:
        with dumping() as netlink:
            found = [dict(attributes(body, 8)) for _, body in dump(netlink, RTM_GETADDR, bytes((2,)) + bytes(7))]
        return [each[_IFA_LOCAL] for each in found]

    ip(host, "address add 192.0.2.1/32 dev lo")
    assert bytes((192, 0, 2, 1)) in host.call(addresses)


@pytest.mark.netns
def test_a_table_that_is_not_there_is_refused_to_who_asks_for_it_alone(host: Namespace) -> None:
    def routes() -> None:
        with dumping(strict=True) as netlink:
            request = RTMSG.pack(2, 0, 0, 0, 0, 0, 0, 0, 0) + struct.pack("=HHI", 8, _RTA_TABLE, 4711)
            list(dump(netlink, RTM_GETROUTE, request))

    with pytest.raises(OSError, match="No such file") as refused:
        host.call(routes)
    assert refused.value.errno == errno.ENOENT
