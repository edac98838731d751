"""Checks of the way from a gateway's interfaces to the listener.

Owns what may be in it: no address there, a firewall, and what the kernel does to packets that TPROXY diverts.
Refuses to own our rules (`doctor.rules`).
"""

from __future__ import annotations

import fnmatch

from tnat64d.core.findings import fail, ok, warn
from tnat64d.core.settings import Mode
from tnat64d.doctor.subject import Findings, Subject
from tnat64d.kernel import firewall, routing, sysctl

_IPTABLES_SOCKET, _NFT_SOCKET = "-m socket --transparent", "socket transparent 1"
"""What TPROXY has diverted (iptables-extensions(8), nft(8)), whatever its address and port."""


def gateway(subject: Subject) -> Findings:
    """Whatever keeps what comes in by gateway interfaces from the listener, and an interface without IPv4."""
    devices = subject.settings.scope.gateway
    if not devices:
        yield ok("no gateway interfaces are asked for")
        return
    is_diverted = subject.settings.rules.mode is Mode.TPROXY
    port = None if is_diverted else subject.settings.proxy.port
    faults = [*_without_address(devices), *(_lost(devices) if is_diverted else ()), *_closed(devices, port)]
    yield from faults
    if not faults:
        yield ok(f"{'the listener' if port is None else f'port {port}'} is open to {', '.join(devices)}")


def _without_address(devices: tuple[str, ...]) -> Findings:
    having = [device for device, _ in routing.ipv4_addresses()]
    for device in devices:
        if not fnmatch.filter(having, device):
            yield warn(
                f"no interface {device} with an IPv4 address is here", f"ip address add ADDRESS/24 dev {device}"
            )


def _lost(devices: tuple[str, ...]) -> Findings:
    """What happens to a packet between TPROXY and the listener: see `routing.losing_bridges`.

    With src_valid_mark the way back to its source is looked up with our mark, which leads to lo
    (__fib_validate_source() in net/ipv4/fib_frontend.c).
    """
    if bridges := routing.losing_bridges(devices):
        yield fail(
            f"{routing.BRIDGES_ASK_RULES} is 1: what comes in by a bridge ({', '.join(bridges)}) is lost on "
            "TPROXY, not on REDIRECT; 0 also ends what container engines filter between containers",
            f"sysctl -w {routing.BRIDGES_ASK_RULES}=0",
        )
    present = _meant(devices, {device for device, _ in routing.ipv4_addresses()})
    for name in ("all", *present):
        key = f"net/ipv4/conf/{name}/src_valid_mark"
        if present and sysctl.read(key):
            yield fail(
                f"{key} is 1: the kernel drops what TPROXY has marked on {', '.join(present)}",
                f"sysctl -w {key}=0",
            )


def _meant(devices: tuple[str, ...], present: set[str]) -> list[str]:
    return sorted(name for name in present if any(fnmatch.fnmatchcase(name, device) for device in devices))


def _closed(devices: tuple[str, ...], port: int | None) -> Findings:
    """`port`: what packets of these go to; None where TPROXY diverts them, whatever their port."""
    listing = firewall.listings()
    closed = [device for device in devices if not firewall.accepts(listing, port, device)]
    for place in firewall.dropping_inputs(listing) if closed else ():
        aim = "the listener" if port is None else f"port {port}"
        yield warn(
            f"{place}, drops what gateway interfaces send to {aim}",
            " && ".join(_opening(place, "".join(listing.values()), device, port) for device in closed),
        )


def _opening(place: str, listing: str, device: str, port: int | None) -> str:
    """The command that lets them in, of whoever manages the rules."""
    if "firewalld" in place:
        return f"firewall-cmd --zone=trusted --add-interface={device}"
    if "ufw-" in listing and port is not None:
        return f"ufw allow in on {device} to any port {port} proto tcp"
    rule = (
        f"-i {device.replace('*', '+')} -p tcp {_IPTABLES_SOCKET if port is None else f'--dport {port}'} -j ACCEPT"
    )
    if "ufw-" in listing:  # which has no words of its own for that
        first = "-A ufw-before-input -i lo -j ACCEPT"
        return f"sed -i '/^{first}/a -A ufw-before-input {rule}' /etc/ufw/before.rules && ufw reload"
    if place.startswith("nft"):
        _, family, table, _, chain = place.replace(",", "").replace("table ", "").split()
        aim = _NFT_SOCKET if port is None else f"tcp dport {port}"
        return f"nft insert rule {family} {table} {chain} iifname {device} {aim} accept"
    return f"{place.partition(',')[0]} -I INPUT {rule}"
