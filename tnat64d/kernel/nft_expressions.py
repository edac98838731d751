"""The conditions and verdicts of a `core.ruleset` in the two languages of nf_tables.

Each stands here once, as the text that nft(8) would print and the expressions that the kernel is given (attributes
of linux/netfilter/nf_tables.h). A test compares them: what the kernel then lists is that text. Refuses to own the
rules and chains that are made of them (`kernel.nft_table`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from tnat64d.core.config import Network
from tnat64d.core.ruleset import HOLD_BITS, REFUSED, Match, Rule, Ruleset, Verdict
from tnat64d.kernel import cgroup
from tnat64d.kernel.nfnetlink import attribute, nested, number, text
from tnat64d.kernel.refused_set import NFT_OBJECT_COUNTER

_REG_VERDICT, _REG_1, _REG_2 = 0, 1, 2
_REG_1_SECOND_WORD = 9  # NFT_REG32_01
_CMP_EQ, _CMP_LTE, _CMP_GTE = 0, 3, 5
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_MARK, _META_IIFNAME, _META_OIFNAME, _META_SKUID, _META_SKGID, _META_L4PROTO = 3, 6, 7, 10, 11, 16
_SADDR_OFFSET, _DADDR_OFFSET, _SPORT_OFFSET, _DPORT_OFFSET = 12, 16, 0, 2
_FLAGS_OFFSET = 13
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_CT_DIRECTION, _CT_MARK = 1, 3
_CT_ORIGINAL = 0
_FIB_RESULT_ADDRTYPE, _FIB_F_DADDR, _RTN_LOCAL = 3, 2, 2
_SOCKET_CGROUPV2 = 3
_NFT_RETURN, _NFT_JUMP, _NF_ACCEPT = -5, -3, 1
_REJECT_TCP_RST = 1
_NF_NAT_RANGE_PROTO_SPECIFIED = 2
_IPPROTO_TCP = 6
_IFNAMSIZ = 16


@dataclass(frozen=True, slots=True)
class Part:
    """A condition or a verdict: as nft(8) prints it, and as expressions."""

    text: str
    expressions: tuple[bytes, ...]


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def _compare(value: bytes, operator: int = _CMP_EQ) -> bytes:
    return _expression("cmp", number(1, _REG_1), number(2, operator), nested(3, attribute(1, value)))


def _mask(mask: bytes, xor: bytes | None = None) -> bytes:
    return _expression(
        "bitwise",
        number(1, _REG_1),
        number(2, _REG_1),
        number(3, len(mask)),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, xor or bytes(len(mask)))),
    )


def _payload(base: int, offset: int, size_bytes: int, register: int = _REG_1) -> bytes:
    return _expression("payload", number(1, register), number(2, base), number(3, offset), number(4, size_bytes))


def _meta(key: int) -> bytes:
    return _expression("meta", number(2, key), number(1, _REG_1))


def _set_meta(key: int) -> bytes:
    return _expression("meta", number(2, key), number(3, _REG_1))


def _ct(key: int) -> bytes:
    return _expression("ct", number(2, key), number(1, _REG_1))


def _set_ct_mark() -> bytes:
    return _expression("ct", number(2, _CT_MARK), number(4, _REG_1))


def _immediate(register: int, value: bytes) -> bytes:
    return _expression("immediate", number(1, register), nested(2, attribute(1, value)))


def _verdict_expression(code: int, *chain: bytes) -> bytes:
    return _expression("immediate", number(1, _REG_VERDICT), nested(2, nested(2, number(1, code), *chain)))


def jump(chain: str) -> Part:
    """On to `chain`, and back."""
    return Part(f"jump {chain}", (_verdict_expression(_NFT_JUMP, text(2, chain)),))


def _host(value: int) -> bytes:
    """A 32-bit number as the kernel keeps marks, users and address types: in the host's byte order."""
    return struct.pack("=I", value)


def conditions(match: Match) -> Iterator[Part]:
    """Those of `match`, in the order in which they are asked."""
    if match.tcp_only:
        yield Part("meta l4proto tcp", (_meta(_META_L4PROTO), _compare(bytes((_IPPROTO_TCP,)))))
    if match.in_device is not None:
        yield Part(f'iifname "{match.in_device}"', (_meta(_META_IIFNAME), _compare(_device(match.in_device))))
    if match.out_device is not None:
        yield Part(f'oifname "{match.out_device}"', (_meta(_META_OIFNAME), _compare(_device(match.out_device))))
    if match.source is not None:
        saddr = _payload(_NETWORK_HEADER, _SADDR_OFFSET, 4)
        yield Part(f"ip saddr {match.source}", (saddr, _compare(match.source.packed)))
    if match.destination is not None:
        yield _destination(match.destination)
    if match.destination_is_own:
        fib = _expression("fib", number(1, _REG_1), number(2, _FIB_RESULT_ADDRTYPE), number(3, _FIB_F_DADDR))
        yield Part("fib daddr type local", (fib, _compare(_host(_RTN_LOCAL))))
    if match.ports is not None:
        yield _ports(*match.ports)
    if match.source_port_bits is not None:
        sport = _payload(_TRANSPORT_HEADER, _SPORT_OFFSET, 2)
        parts = (sport, _mask(struct.pack("!H", HOLD_BITS)), _compare(struct.pack("!H", match.source_port_bits)))
        yield Part(f"tcp sport & {HOLD_BITS} == {match.source_port_bits}", parts)
    if match.mark is not None:
        value, mask = match.mark.value, match.mark.mask
        parts = (_meta(_META_MARK), _mask(_host(mask)), _compare(_host(value)))
        yield Part(f"meta mark & 0x{mask:08x} == 0x{value:08x}", parts)
    if match.begins_connection:
        flags = _payload(_TRANSPORT_HEADER, _FLAGS_OFFSET, 1)
        parts = (flags, _mask(bytes((_FIN | _SYN | _RST | _ACK,))), _compare(bytes((_SYN,))))
        yield Part("tcp flags & (fin | syn | rst | ack) == syn", parts)
    if match.is_refused:
        daddr = _payload(_NETWORK_HEADER, _DADDR_OFFSET, 4)
        dport = _payload(_TRANSPORT_HEADER, _DPORT_OFFSET, 2, _REG_1_SECOND_WORD)
        lookup = _expression("lookup", text(1, REFUSED), number(2, _REG_1))
        yield Part(f"ip daddr . tcp dport @{REFUSED}", (daddr, dport, lookup))
    if match.connection_mark is not None:
        value, mask = match.connection_mark.value, match.connection_mark.mask
        parts = (_ct(_CT_MARK), _mask(_host(mask)), _compare(_host(value)))
        yield Part(f"ct mark & 0x{mask:08x} == 0x{value:08x}", parts)
    if match.in_original_direction:
        yield Part("ct direction original", (_ct(_CT_DIRECTION), _compare(bytes((_CT_ORIGINAL,)))))
    if match.uid is not None:
        yield Part(f"meta skuid {match.uid}", (_meta(_META_SKUID), _compare(_host(match.uid))))
    if match.gid is not None:
        yield Part(f"meta skgid {match.gid}", (_meta(_META_SKGID), _compare(_host(match.gid))))
    if match.cgroup is not None:
        yield _cgroup(match.cgroup)


def _device(name: str) -> bytes:
    """Compared in full, or as far as the wildcard."""
    return name[:-1].encode() if name.endswith("*") else name.encode().ljust(_IFNAMSIZ, b"\0")


def _destination(network: Network) -> Part:
    address, mask = IPv4Address(network.address).packed, IPv4Address(network.mask).packed
    daddr = _payload(_NETWORK_HEADER, _DADDR_OFFSET, 4)
    if network.prefix_length == 32:
        return Part(f"ip daddr {IPv4Address(network.address)}", (daddr, _compare(address)))
    masked = f"ip daddr & {IPv4Address(network.mask)} == {IPv4Address(network.address)}"
    shown = masked if network.prefix_length is None else f"ip daddr {network}"
    return Part(shown, (daddr, _mask(mask), _compare(address)))


def _ports(first: int, last: int) -> Part:
    dport = _payload(_TRANSPORT_HEADER, _DPORT_OFFSET, 2)
    if first == last:
        return Part(f"tcp dport {first}", (dport, _compare(struct.pack("!H", first))))
    bounds = (_compare(struct.pack("!H", first), _CMP_GTE), _compare(struct.pack("!H", last), _CMP_LTE))
    return Part(f"tcp dport {first}-{last}", (dport, *bounds))


def _cgroup(path: str) -> Part:
    """By the identity of the group that has this path now (nft_socket.c, nft_sock_get_eval_cgroupv2)."""
    level = path.count("/") + 1
    socket_expression = _expression("socket", number(1, _SOCKET_CGROUPV2), number(2, _REG_1), number(3, level))
    identity = struct.pack("=Q", cgroup.identity(path))
    shown = f'socket cgroupv2 level {level} "{cgroup.path_for_nft(path)}"'
    return Part(shown, (socket_expression, _compare(identity)))


def parts(rule: Rule, ruleset: Ruleset, *, queues: bool = True) -> Iterator[Part]:
    """All of a rule. `queues`: whether the kernel has the expression for that."""
    yield from conditions(rule.match)
    if rule.match.is_refused:
        name = _expression("objref", number(1, NFT_OBJECT_COUNTER), text(2, REFUSED))
        yield Part(f'counter name "{REFUSED}"', (name,))
    yield verdict(rule, ruleset, queues=queues)


def verdict(rule: Rule, ruleset: Ruleset, *, queues: bool = True) -> Part:
    """What `rule` does. `queues`: whether the kernel has the expression to queue, or xtables must do it."""
    port = struct.pack("!H", ruleset.port)
    match rule.verdict:
        case Verdict.RETURN:
            return Part("return", (_verdict_expression(_NFT_RETURN),))
        case Verdict.REDIRECT:
            flags = number(3, _NF_NAT_RANGE_PROTO_SPECIFIED)
            redirect = _expression("redir", number(1, _REG_1), number(2, _REG_1), flags)
            return Part(f"redirect to :{ruleset.port}", (_immediate(_REG_1, port), redirect))
        case Verdict.MARK:
            value, mask = ruleset.captured.value, ruleset.captured.mask
            kept = mask ^ 0xFFFFFFFF
            shown = f"meta mark set meta mark & 0x{kept:08x} | 0x{value:08x}"
            masked = _mask(_host(kept), _host(value))
            return Part(shown, (_meta(_META_MARK), masked, _set_meta(_META_MARK)))
        case Verdict.MARK_CONNECTION:
            value, mask = ruleset.captured.value, ruleset.captured.mask
            kept = mask ^ 0xFFFFFFFF
            shown = f"ct mark set ct mark & 0x{kept:08x} | 0x{value:08x}"
            return Part(shown, (_ct(_CT_MARK), _mask(_host(kept), _host(value)), _set_ct_mark()))
        case Verdict.TPROXY:
            tproxy = _expression("tproxy", number(1, 2), number(2, _REG_1), number(3, _REG_2))
            loopback = _immediate(_REG_1, IPv4Address("127.0.0.1").packed)
            parts = (loopback, _immediate(_REG_2, port), tproxy, _verdict_expression(_NF_ACCEPT))
            return Part(f"tproxy to 127.0.0.1:{ruleset.port} accept", parts)
        case Verdict.RESET:
            return Part("reject with tcp reset", (_expression("reject", number(1, _REJECT_TCP_RST)),))
        case Verdict.QUEUE:
            assert rule.queue is not None
            expression = queue(rule.queue) if queues else _queue_by_xtables(rule.queue)
            return Part(f"queue flags bypass to {rule.queue}", (expression,))
        case Verdict.UNTRACK:
            return Part("notrack", (_expression("notrack"),))


def queue(number: int) -> bytes:
    """The expression that hands a packet to the queue `number`, or on if nobody serves it."""
    attributes = (attribute(kind, struct.pack("!H", value)) for kind, value in ((1, number), (2, 1), (3, 1)))
    return _expression("queue", *attributes)


def _queue_by_xtables(number_of_queue: int) -> bytes:
    """struct xt_NFQ_info_v3 in linux/netfilter/xt_NFQUEUE.h, aligned: number, how many, flags (1: bypass)."""
    info = attribute(3, struct.pack("=HHH2x", number_of_queue, 1, 1))
    return _expression("target", text(1, "NFQUEUE"), number(2, 3), info)
