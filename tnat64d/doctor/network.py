"""Checks of the network: addresses, prefixes, names, and a connection from end to end."""

from __future__ import annotations

import re
import select
import shlex
import socket
import struct
import threading
import time
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network

from tnat64d.core.config import Config, Way
from tnat64d.core.findings import fail, ok, warn
from tnat64d.core.rfc6052 import Prefix
from tnat64d.core.settings import Mode, Scope
from tnat64d.doctor.subject import Findings, Subject
from tnat64d.kernel import processes, routing, sysctl
from tnat64d.kernel.sock_diag import SocketTable

_WELL_KNOWN_NAME = "ipv4only.arpa"
_WELL_KNOWN_ADDRESSES = (IPv4Address("192.0.0.170"), IPv4Address("192.0.0.171"))
"""RFC 7050 section 2.2."""

_CLAT_NETWORK = IPv4Network("192.0.0.0/29")
"""RFC 7335."""

_CLAT_PROGRAMS = ("clatd", "tayga", "tundra-nat64", "jool")
_CLAT_DEVICE = re.compile(r"clat|nat64$|siit")
_DOCUMENTATION = tuple(map(IPv4Address, ("192.0.2.1", "198.51.100.1", "203.0.113.1")))
_TIMEOUT_S = 3.0
_POLL_S = 0.02
_NEARLY = 0.9


def address(subject: Subject) -> Findings:
    """No IPv4 address to send from: getaddrinfo() hides IPv4 addresses from programs (AI_ADDRCONFIG)."""
    own = subject.settings.rules.address
    try:
        socket.getaddrinfo(str(own), None, socket.AF_INET, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        sentence = f"getaddrinfo() with AI_ADDRCONFIG hides IPv4 addresses from programs: {error.strerror}"
        yield fail(sentence, subject.restoring)
    else:
        yield ok("getaddrinfo() shows IPv4 addresses to programs")


def clat(subject: Subject) -> Findings:
    """Another translator for the same programs: clatd, tayga, or one of NetworkManager or systemd-networkd."""
    running = processes.names_in_this_network()
    for name in _CLAT_PROGRAMS:
        if name in running:
            yield warn(f"{name} (pid {running[name]}) runs here, and may be a CLAT", f"kill {running[name]}")
            return
    for device, found in routing.ipv4_addresses():
        if found in _CLAT_NETWORK and found != subject.settings.rules.address:
            yield warn(f"{device} has {found}, an address of a CLAT", f"ip address del {found} dev {device}")
            return
    for _, device in socket.if_nameindex():
        if _CLAT_DEVICE.match(device):
            yield warn(f"the interface {device} may be a CLAT's", f"ip link del {device}")
            return
    yield ok("no other translator is here")


def conntrack(subject: Subject) -> Findings:
    """Connection tracking that is nearly full: the kernel will drop new connections."""
    count = sysctl.read("net.netfilter.nf_conntrack_count")
    limit = sysctl.read("net.netfilter.nf_conntrack_max")
    if count is None or not limit:
        yield ok("connections are not tracked, or not limited")
    elif count > limit * _NEARLY:
        yield warn(
            f"{count} of {limit} connections are tracked: new ones will be dropped",
            f"sysctl -w net.netfilter.nf_conntrack_max={limit * 2}",
        )
    else:
        yield ok(f"{count} of {limit} connections are tracked")


def prefix(subject: Subject) -> Findings:
    """No IPv6 route to a NAT64 prefix."""
    assert subject.config is not None
    prefixes = _prefixes(subject.config)
    unreachable = {
        each: why for each in prefixes if (why := routing.why_no_route(each.embed(_WELL_KNOWN_ADDRESSES[0])))
    }
    if unreachable and sysctl.read("net.ipv6.conf.all.disable_ipv6"):
        yield fail("IPv6 is switched off", "sysctl -w net.ipv6.conf.all.disable_ipv6=0")
        return
    for each, why in unreachable.items():
        yield fail(f"no IPv6 route leads to {each}: {why}", f"ip -6 route add {each} via ROUTER")
    if not unreachable:
        yield ok(f"there is a route to {', '.join(map(str, prefixes))}" if prefixes else "there is none to reach")


def _prefixes(config: Config) -> list[Prefix]:
    every = (config.default_prefix, *(path.prefix for path in config.paths))
    return list(dict.fromkeys(each for each in every if each is not None))


def dns64(subject: Subject) -> Findings:
    """No DNS64 in this network, or one with a prefix that tnat64.conf does not have (RFC 7050)."""
    config = subject.written_config
    if config is None:
        return  # the check of the files tells that
    answer = _addresses(_WELL_KNOWN_NAME, socket.AF_INET6)
    if isinstance(answer, str):
        yield warn(f"no DNS64 gives {_WELL_KNOWN_NAME} an IPv6 address: {answer}", "resolvectl dns")
        return
    for each in _prefixes(config):
        if any(str(each.embed(known)) in answer for known in _WELL_KNOWN_ADDRESSES):
            yield ok(f"the network's DNS64 uses {each}, too")
            return
    directive = f"nat64_prefix = {Prefix(f'{answer[0]}/96', strict=False)}"
    file, line = shlex.quote(subject.conf_file), config.default_prefix_line
    change = f"echo '{directive}' >>{file}" if line is None else f"sed -i '{line}s|.*|{directive}|' {file}"
    place = subject.conf_file if line is None else f"{subject.conf_file}:{line}"
    sentence = f"the network's DNS64 answers {answer[0]}, of no prefix of {place}"
    yield warn(sentence, f"{change} && {subject.command('reload')}")


def _addresses(name: str, family: socket.AddressFamily) -> list[str] | str:
    """By the resolver that programs use, which may take its time: a thread of its own, left alone if it does.

    A sentence where there are none.
    """
    answer: list[list[str] | str] = []

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
            answer.append([str(entry[4][0]) for entry in found])
        except OSError as error:
            answer.append(error.strerror or str(error))
        except UnicodeError:
            answer.append("not a host name")

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    return answer[0] if answer else f"no answer within {_TIMEOUT_S:g} s"


def connection(subject: Subject) -> Findings:
    """A connection of our own that the kernel does not hand to the daemon, or that is refused on its way."""
    if subject.target is None and subject.settings.scope != Scope(gateway=subject.settings.scope.gateway):
        yield ok("not tried, as [scope] may leave this program out: -t names a destination")
        return
    name, port = subject.target or (str(_destination(subject)), 443)
    look = subject.command("check") + f" -t {shlex.quote(f'{name}:{port}')}"
    answer = _addresses(name, socket.AF_INET)
    if isinstance(answer, str):
        yield fail(f"{name} has no IPv4 address to try: {answer}", f"getent ahostsv4 {shlex.quote(name)}")
        return
    host = answer[0]
    before = subject.count("accepted")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(_TIMEOUT_S)
        try:
            probe.connect((host, port))
        except OSError as error:
            # The daemon may have reset it already: then it has come there.
            if not isinstance(error, ConnectionResetError):
                yield fail(f"a connection to {host}:{port} fails: {error.strerror or error}", look)
                return
        if not _comes_to_daemon(subject, probe, (host, port), before):
            yield fail(f"a connection to {host}:{port} does not come to the daemon", look)
        elif subject.target is None:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            yield ok(f"a connection to {host}:{port} comes to the daemon; -t HOST:PORT tries a whole one")
        elif why := _why_it_ends(probe):
            yield fail(f"the daemon has the connection to {host}:{port}, and then: {why}", look)
        else:
            yield ok(f"a connection to {host}:{port} reaches its server")


def _destination(subject: Subject) -> IPv4Address:
    """One where nobody is (RFC 5737), and that is carried."""
    assert subject.config is not None
    for each in _DOCUMENTATION:
        if subject.config.route(each, 443).way is not Way.LOCAL:
            return each
    return _DOCUMENTATION[0]


def _comes_to_daemon(subject: Subject, probe: socket.socket, target: tuple[str, int], before: int) -> bool:
    """Whether the other end of `probe` is a socket of the daemon's; once it has gone, whether one was counted."""
    is_redirected = subject.settings.rules.mode is Mode.REDIRECT
    end = ("127.0.0.1", subject.settings.proxy.port) if is_redirected else target
    with closing(SocketTable()) as sockets:
        is_there = sockets.has(end, probe.getsockname())
    return is_there or (_has_been_reset(probe) and _grows(subject, before))


def _has_been_reset(probe: socket.socket) -> bool:
    """Without taking the error away from who asks next."""
    poll = select.poll()
    poll.register(probe, 0)
    return bool(poll.poll(0))


def _grows(subject: Subject, before: int) -> bool:
    deadline = time.monotonic() + _TIMEOUT_S
    while subject.count("accepted") <= before:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _why_it_ends(probe: socket.socket) -> str | None:
    """None if the server says something, or ends in order after we have, or listens in silence."""
    try:
        probe.shutdown(socket.SHUT_WR)
        probe.recv(1)
    except TimeoutError:
        return f"neither word nor end within {_TIMEOUT_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return None
