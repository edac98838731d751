"""What a program sees of a refusal, in a real connect()."""

from __future__ import annotations

import errno
import threading

import pytest

from tests.kernel.bare_host import run_python
from tests.kernel.test_nfqueue import QUEUE, connect_error, connecting, queueing, read_one
from tests.lab import Namespace
from tnat64d.kernel.nfqueue import SynQueue
from tnat64d.kernel.refusals import Refusal, Refuser

__all__ = ["queueing"]

pytestmark = pytest.mark.netns("iptables-nft", "setpriv")

SEEN = {
    Refusal.RESET: errno.ECONNREFUSED,
    Refusal.NETWORK_UNREACHABLE: errno.ENETUNREACH,
    Refusal.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    Refusal.PROHIBITED: errno.EHOSTUNREACH,
}


@pytest.mark.parametrize("refusal", Refusal)
def test_a_program_that_polls_sees_it_at_once(queueing: Namespace, refusal: Refusal) -> None:
    queue, refuser = queueing.call(SynQueue, [QUEUE], 10), queueing.call(Refuser, 0x6464)
    with connecting(queueing) as client:
        syn = read_one(queue)
        queue.drop(syn)
        refuser.send(syn, refusal)
        assert connect_error(client, 0.5) == SEEN[refusal]
    queue.close()
    refuser.close()


@pytest.mark.parametrize("refusal", Refusal)
def test_a_program_that_blocks_sees_it_at_once(queueing: Namespace, refusal: Refusal) -> None:
    queue, refuser = queueing.call(SynQueue, [QUEUE], 10), queueing.call(Refuser, 0x6464)
    seen: list[int] = []
    with queueing.socket() as sock:
        thread = threading.Thread(target=lambda: seen.append(sock.connect_ex(("198.51.100.10", 443))))
        thread.start()
        syn = read_one(queue)
        queue.drop(syn)
        refuser.send(syn, refusal)
        thread.join(0.5)
    assert seen == [SEEN[refusal]]
    queue.close()
    refuser.close()


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        (errno.ECONNREFUSED, Refusal.RESET),
        (errno.ECONNRESET, Refusal.RESET),
        (errno.EMFILE, Refusal.RESET),
        (0, Refusal.RESET),
        (errno.ENETUNREACH, Refusal.NETWORK_UNREACHABLE),
        (errno.EHOSTUNREACH, Refusal.HOST_UNREACHABLE),
        (errno.EACCES, Refusal.PROHIBITED),
        (errno.EPERM, Refusal.PROHIBITED),
    ],
)
def test_each_error_of_a_dial_has_its_refusal(code: int, refusal: Refusal) -> None:
    assert Refusal.of(code) is refusal


def test_without_the_capability_it_says_so(host: Namespace) -> None:
    code = """
from tnat64d.errors import PrivilegeError
from tnat64d.kernel.refusals import Refuser
try:
    Refuser(1)
except PrivilegeError as error:
    print(error)
"""
    said = run_python(host, code, wrapper=["setpriv", "--bounding-set=-net_raw"])
    assert said == 'connect = "honest" in tnat64d.toml needs CAP_NET_RAW (or root), to refuse connections\n'
