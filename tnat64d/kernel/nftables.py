"""A `core.ruleset` as a table of nf_tables, `ip tnat64d`, written by netlink.

Owns that table: nothing in it is anybody else's, and nothing of ours is outside of it. Refuses to own what is in
it (`core.ruleset`). Replacing it is one transaction, and no program is needed.

    set refused         address . port, which the kernel forgets by itself
    chain HOOK          type, hook, priority;  entry conditions, jump to HOOK-rules
    chain HOOK-rules    the rules, in order

Each condition and verdict stands here once, as the text that nft(8) would print and the expressions that the
kernel is given. A test compares them: what the kernel then lists is that text.
"""

from __future__ import annotations

import errno
import struct
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from tnat64d.core.config import Network
from tnat64d.core.ruleset import HOLD_BITS, REFUSED, Chain, Hook, Match, Rule, Ruleset, Verdict
from tnat64d.errors import PrivilegeError, Tnat64Error, UnavailableError
from tnat64d.kernel import cgroup, refused_set
from tnat64d.kernel.nfnetlink import (
    APPEND,
    CREATE,
    NFT_MSG_DELTABLE,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    NFT_TABLE_F_OWNER,
    Message,
    NfTables,
    attribute,
    nested,
    number,
    text,
)
from tnat64d.kernel.refused_set import Destination
from tnat64d.kernel.rtnetlink import attributes
from tnat64d.kernel.standing import Standing

TABLE = "tnat64d"
PART = f"the table ip {TABLE}"

_NF_INET_PRE_ROUTING, _NF_INET_LOCAL_OUT = 0, 3


@dataclass(frozen=True, slots=True)
class _BaseChain:
    """After other people's chains of the same kind by 10, or before them (linux/netfilter_ipv4.h)."""

    name: str
    kind: str
    hook_name: str
    hook: int
    priority: int


BASE_CHAINS = {
    Hook.REDIRECT_OUTPUT: _BaseChain("redirect-output", "nat", "output", _NF_INET_LOCAL_OUT, -90),
    Hook.REDIRECT_PREROUTING: _BaseChain("redirect-prerouting", "nat", "prerouting", _NF_INET_PRE_ROUTING, -90),
    Hook.MARK_OUTPUT: _BaseChain("mark-output", "route", "output", _NF_INET_LOCAL_OUT, -140),
    Hook.DIVERT_PREROUTING: _BaseChain("divert-prerouting", "filter", "prerouting", _NF_INET_PRE_ROUTING, -140),
    Hook.HOLD_OUTPUT: _BaseChain("hold-output", "filter", "output", _NF_INET_LOCAL_OUT, -130),
    Hook.HOLD_PREROUTING: _BaseChain("hold-prerouting", "filter", "prerouting", _NF_INET_PRE_ROUTING, -130),
    Hook.UNTRACK_OUTPUT: _BaseChain("untrack-output", "filter", "output", _NF_INET_LOCAL_OUT, -290),
    Hook.GUARD_OUTPUT: _BaseChain("guard-output", "filter", "output", _NF_INET_LOCAL_OUT, -10),
}


@dataclass(frozen=True, slots=True)
class _Part:
    """A condition or a verdict: as nft(8) prints it, and as expressions."""

    text: str
    expressions: tuple[bytes, ...]


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
        text = render(ruleset)
        with NfTables() as netlink:
            if not _has_queues(netlink, ruleset):
                return f"# this kernel queues by xtables, in words that nft(8) does not take\n{text.rstrip()}"
        _check_with_nft(text)
        return f"nft -f - <<'EOF'\n{text}EOF"

    def install(self, ruleset: Ruleset) -> None:
        """Make the table stand, in place of one that stands already."""
        with NfTables() as netlink:
            queues = _has_queues(netlink, ruleset)
            netlink.commit([*_replace(), *messages(ruleset, flags=0, queues=queues)])

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
            self._netlink.commit([*_replace(), _new_table(NFT_TABLE_F_OWNER)])
        except PrivilegeError:
            raise
        except Tnat64Error as error:
            raise UnavailableError(f"nf_tables has no tables with an owner (Linux 5.12): {error}") from None

    def install(self, ruleset: Ruleset) -> None:
        """Make `ruleset` stand in it, in place of the one before. Raises PrivilegeError, Tnat64Error."""
        before = Message(NFT_MSG_DELTABLE, (text(1, TABLE),))
        queues = _has_queues(self._netlink, ruleset)
        self._netlink.commit([before, *messages(ruleset, NFT_TABLE_F_OWNER, queues=queues)])

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


def _replace() -> list[Message]:
    """Adding first makes deleting right whether or not there was one."""
    table = (text(1, TABLE),)
    return [Message(NFT_MSG_NEWTABLE, table, CREATE), Message(NFT_MSG_DELTABLE, table)]


def render(ruleset: Ruleset) -> str:
    """The table in the language of nft(8), to be read or given to `nft -f`."""
    lines = [f"add table ip {TABLE}", f"delete table ip {TABLE}", f"table ip {TABLE} {{"]
    if ruleset.refusal_memory_ms:
        lines.append(f"\tset {REFUSED} {{")
        lines += [f"\t\t{line}" for line in refused_set.describe(ruleset.refusal_memory_ms)]
        lines += ["\t}", ""]
    for chain in ruleset.chains:
        base = BASE_CHAINS[chain.hook]
        lines.append(f"\tchain {base.name}-rules {{")
        lines += [f"\t\t{_text(rule, ruleset)}" for rule in chain.rules]
        lines += ["\t}", "", f"\tchain {base.name} {{"]
        lines.append(f"\t\ttype {base.kind} hook {base.hook_name} priority {base.priority}; policy accept;")
        for entry in chain.entries:
            conditions = (part.text for part in _match(entry))
            lines.append(f"\t\t{' '.join((*conditions, f'jump {base.name}-rules'))}")
        lines += ["\t}", ""]
    return "\n".join(lines[:-1]) + "\n}\n"


def _text(rule: Rule, ruleset: Ruleset) -> str:
    return " ".join(part.text for part in (*_match(rule.match), _verdict(rule, ruleset)))


def _new_table(flags: int) -> Message:
    return Message(NFT_MSG_NEWTABLE, (text(1, TABLE), number(2, flags)), CREATE)


def messages(ruleset: Ruleset, flags: int, *, queues: bool) -> Iterator[Message]:
    """The messages that make the table; `flags`: NFT_TABLE_F_OWNER or 0; `queues`: see `_has_queues`."""
    yield _new_table(flags)
    if ruleset.refusal_memory_ms:
        yield refused_set.make(TABLE, ruleset.refusal_memory_ms)
    for chain in ruleset.chains:
        yield from _chain_messages(chain, ruleset, queues)


def _has_queues(netlink: NfTables, ruleset: Ruleset) -> bool:
    """Whether the kernel has nf_tables' own way to queue; without it, that of xtables does the same.

    Asked by making such a rule and taking it away in one transaction, and only if `ruleset` has any.
    """
    if all(rule.queue is None for chain in ruleset.chains for rule in chain.rules):
        return True
    table = f"{TABLE}-probe"
    try:
        netlink.commit(
            [
                Message(NFT_MSG_NEWTABLE, (text(1, table),), CREATE),
                Message(NFT_MSG_NEWCHAIN, (text(1, table), text(3, "queue")), CREATE),
                Message(NFT_MSG_NEWRULE, (text(1, table), text(2, "queue"), nested(4, _queue(0))), APPEND),
                Message(NFT_MSG_DELTABLE, (text(1, table),)),
            ]
        )
    except PrivilegeError:
        raise
    except Tnat64Error:
        return False
    return True


def _chain_messages(chain: Chain, ruleset: Ruleset, queues: bool) -> Iterator[Message]:
    base = BASE_CHAINS[chain.hook]
    rules_chain = f"{base.name}-rules"
    hook = nested(4, number(1, base.hook), number(2, base.priority))
    yield Message(NFT_MSG_NEWCHAIN, (text(1, TABLE), text(3, rules_chain)), CREATE)
    yield Message(NFT_MSG_NEWCHAIN, (text(1, TABLE), text(3, base.name), hook, text(7, base.kind)), CREATE)
    for rule in chain.rules:
        yield _rule_message(rules_chain, [*_match(rule.match), _verdict(rule, ruleset, queues=queues)])
    for entry in chain.entries:
        yield _rule_message(base.name, [*_match(entry), _jump(rules_chain)])


def _rule_message(chain: str, parts: list[_Part]) -> Message:
    expressions = [expression for part in parts for expression in part.expressions]
    return Message(NFT_MSG_NEWRULE, (text(1, TABLE), text(2, chain), nested(4, *expressions)), APPEND)


_REG_VERDICT, _REG_1, _REG_2 = 0, 1, 2
_REG_1_SECOND_WORD = 9  # NFT_REG32_01
_CMP_EQ, _CMP_LTE, _CMP_GTE = 0, 3, 5
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_MARK, _META_IIFNAME, _META_OIFNAME, _META_SKUID, _META_SKGID, _META_L4PROTO = 3, 6, 7, 10, 11, 16
_SADDR_OFFSET, _DADDR_OFFSET, _SPORT_OFFSET, _DPORT_OFFSET = 12, 16, 0, 2
_FLAGS_OFFSET = 13
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_CT_MARK = 3
_FIB_RESULT_ADDRTYPE, _FIB_F_DADDR, _RTN_LOCAL = 3, 2, 2
_SOCKET_CGROUPV2 = 3
_NFT_RETURN, _NFT_JUMP, _NF_ACCEPT = -5, -3, 1
_REJECT_TCP_RST = 1
_NF_NAT_RANGE_PROTO_SPECIFIED = 2
_IPPROTO_TCP = 6
_IFNAMSIZ = 16


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


def _ct_mark() -> bytes:
    return _expression("ct", number(2, _CT_MARK), number(1, _REG_1))


def _set_ct_mark() -> bytes:
    return _expression("ct", number(2, _CT_MARK), number(4, _REG_1))


def _immediate(register: int, value: bytes) -> bytes:
    return _expression("immediate", number(1, register), nested(2, attribute(1, value)))


def _verdict_expression(code: int, *chain: bytes) -> bytes:
    return _expression("immediate", number(1, _REG_VERDICT), nested(2, nested(2, number(1, code), *chain)))


def _jump(chain: str) -> _Part:
    return _Part(f"jump {chain}", (_verdict_expression(_NFT_JUMP, text(2, chain)),))


def _host(value: int) -> bytes:
    """A 32-bit number as the kernel keeps marks, users and address types: in the host's byte order."""
    return struct.pack("=I", value)


def _match(match: Match) -> Iterator[_Part]:
    if match.tcp_only:
        yield _Part("meta l4proto tcp", (_meta(_META_L4PROTO), _compare(bytes((_IPPROTO_TCP,)))))
    if match.in_device is not None:
        yield _Part(f'iifname "{match.in_device}"', (_meta(_META_IIFNAME), _compare(_device(match.in_device))))
    if match.out_device is not None:
        yield _Part(f'oifname "{match.out_device}"', (_meta(_META_OIFNAME), _compare(_device(match.out_device))))
    if match.source is not None:
        saddr = _payload(_NETWORK_HEADER, _SADDR_OFFSET, 4)
        yield _Part(f"ip saddr {match.source}", (saddr, _compare(match.source.packed)))
    if match.destination is not None:
        yield _destination(match.destination)
    if match.destination_is_own:
        fib = _expression("fib", number(1, _REG_1), number(2, _FIB_RESULT_ADDRTYPE), number(3, _FIB_F_DADDR))
        yield _Part("fib daddr type local", (fib, _compare(_host(_RTN_LOCAL))))
    if match.ports is not None:
        yield _ports(*match.ports)
    if match.source_port_bits is not None:
        sport = _payload(_TRANSPORT_HEADER, _SPORT_OFFSET, 2)
        parts = (sport, _mask(struct.pack("!H", HOLD_BITS)), _compare(struct.pack("!H", match.source_port_bits)))
        yield _Part(f"tcp sport & {HOLD_BITS} == {match.source_port_bits}", parts)
    if match.mark is not None:
        value, mask = match.mark.value, match.mark.mask
        parts = (_meta(_META_MARK), _mask(_host(mask)), _compare(_host(value)))
        yield _Part(f"meta mark & 0x{mask:08x} == 0x{value:08x}", parts)
    if match.begins_connection:
        flags = _payload(_TRANSPORT_HEADER, _FLAGS_OFFSET, 1)
        parts = (flags, _mask(bytes((_FIN | _SYN | _RST | _ACK,))), _compare(bytes((_SYN,))))
        yield _Part("tcp flags & (fin | syn | rst | ack) == syn", parts)
    if match.is_refused:
        daddr = _payload(_NETWORK_HEADER, _DADDR_OFFSET, 4)
        dport = _payload(_TRANSPORT_HEADER, _DPORT_OFFSET, 2, _REG_1_SECOND_WORD)
        lookup = _expression("lookup", text(1, REFUSED), number(2, _REG_1))
        yield _Part(f"ip daddr . tcp dport @{REFUSED}", (daddr, dport, lookup))
    if match.connection_mark is not None:
        value, mask = match.connection_mark.value, match.connection_mark.mask
        parts = (_ct_mark(), _mask(_host(mask)), _compare(_host(value)))
        yield _Part(f"ct mark & 0x{mask:08x} == 0x{value:08x}", parts)
    if match.uid is not None:
        yield _Part(f"meta skuid {match.uid}", (_meta(_META_SKUID), _compare(_host(match.uid))))
    if match.gid is not None:
        yield _Part(f"meta skgid {match.gid}", (_meta(_META_SKGID), _compare(_host(match.gid))))
    if match.cgroup is not None:
        yield _cgroup(match.cgroup)


def _device(name: str) -> bytes:
    """Compared in full, or as far as the wildcard."""
    return name[:-1].encode() if name.endswith("*") else name.encode().ljust(_IFNAMSIZ, b"\0")


def _destination(network: Network) -> _Part:
    address, mask = IPv4Address(network.address).packed, IPv4Address(network.mask).packed
    daddr = _payload(_NETWORK_HEADER, _DADDR_OFFSET, 4)
    if network.prefix_length == 32:
        return _Part(f"ip daddr {IPv4Address(network.address)}", (daddr, _compare(address)))
    masked = f"ip daddr & {IPv4Address(network.mask)} == {IPv4Address(network.address)}"
    shown = masked if network.prefix_length is None else f"ip daddr {network}"
    return _Part(shown, (daddr, _mask(mask), _compare(address)))


def _ports(first: int, last: int) -> _Part:
    dport = _payload(_TRANSPORT_HEADER, _DPORT_OFFSET, 2)
    if first == last:
        return _Part(f"tcp dport {first}", (dport, _compare(struct.pack("!H", first))))
    bounds = (_compare(struct.pack("!H", first), _CMP_GTE), _compare(struct.pack("!H", last), _CMP_LTE))
    return _Part(f"tcp dport {first}-{last}", (dport, *bounds))


def _cgroup(path: str) -> _Part:
    """By the identity of the group that has this path now (nft_socket.c, nft_sock_get_eval_cgroupv2)."""
    level = path.count("/") + 1
    socket_expression = _expression("socket", number(1, _SOCKET_CGROUPV2), number(2, _REG_1), number(3, level))
    identity = struct.pack("=Q", cgroup.identity(path))
    shown = f'socket cgroupv2 level {level} "{cgroup.path_for_nft(path)}"'
    return _Part(shown, (socket_expression, _compare(identity)))


def _verdict(rule: Rule, ruleset: Ruleset, *, queues: bool = True) -> _Part:
    """`queues`: whether the kernel has the expression for that."""
    port = struct.pack("!H", ruleset.port)
    match rule.verdict:
        case Verdict.RETURN:
            return _Part("return", (_verdict_expression(_NFT_RETURN),))
        case Verdict.REDIRECT:
            flags = number(3, _NF_NAT_RANGE_PROTO_SPECIFIED)
            redirect = _expression("redir", number(1, _REG_1), number(2, _REG_1), flags)
            return _Part(f"redirect to :{ruleset.port}", (_immediate(_REG_1, port), redirect))
        case Verdict.MARK:
            value, mask = ruleset.captured.value, ruleset.captured.mask
            kept = mask ^ 0xFFFFFFFF
            shown = f"meta mark set meta mark & 0x{kept:08x} | 0x{value:08x}"
            masked = _mask(_host(kept), _host(value))
            return _Part(shown, (_meta(_META_MARK), masked, _set_meta(_META_MARK)))
        case Verdict.MARK_CONNECTION:
            value, mask = ruleset.captured.value, ruleset.captured.mask
            kept = mask ^ 0xFFFFFFFF
            shown = f"ct mark set ct mark & 0x{kept:08x} | 0x{value:08x}"
            return _Part(shown, (_ct_mark(), _mask(_host(kept), _host(value)), _set_ct_mark()))
        case Verdict.TPROXY:
            tproxy = _expression("tproxy", number(1, 2), number(2, _REG_1), number(3, _REG_2))
            loopback = _immediate(_REG_1, IPv4Address("127.0.0.1").packed)
            parts = (loopback, _immediate(_REG_2, port), tproxy, _verdict_expression(_NF_ACCEPT))
            return _Part(f"tproxy to 127.0.0.1:{ruleset.port} accept", parts)
        case Verdict.RESET:
            return _Part("reject with tcp reset", (_expression("reject", number(1, _REJECT_TCP_RST)),))
        case Verdict.QUEUE:
            assert rule.queue is not None
            expression = _queue(rule.queue) if queues else _queue_by_xtables(rule.queue)
            return _Part(f"queue flags bypass to {rule.queue}", (expression,))
        case Verdict.UNTRACK:
            return _Part("notrack", (_expression("notrack"),))


def _queue(number: int) -> bytes:
    attributes = (attribute(kind, struct.pack("!H", value)) for kind, value in ((1, number), (2, 1), (3, 1)))
    return _expression("queue", *attributes)


def _queue_by_xtables(queue: int) -> bytes:
    """struct xt_NFQ_info_v3 in linux/netfilter/xt_NFQUEUE.h, aligned: number, how many, flags (1: bypass)."""
    info = attribute(3, struct.pack("=HHH2x", queue, 1, 1))
    return _expression("target", text(1, "NFQUEUE"), number(2, 3), info)
