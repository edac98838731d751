"""`tnat64d why`, compared with what a real connection then does."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Namespace, Nat64Failure, Nat64Lab, Port, nat64_address, wait_until
from tests.lab.daemon import (
    CONF,
    PROGRAM,
    Daemon,
    Service,
    Tables,
    dial,
    echo,
    expect_refused,
    expect_reset,
    run_cli,
)

pytestmark = pytest.mark.netns("setpriv")

OTHER_SERVER = "203.0.113.10"
NOBODY = 65534


def why(daemon: Daemon, target: str, *options: str, exit_code: int = 0) -> dict[str, Any]:
    """What it says of one address, with its steps by name."""
    done = run_cli(daemon.namespace, *arguments(daemon, target, "--json", *options))
    assert (done.returncode, done.stderr) == (exit_code, "")
    said: dict[str, Any] = json.loads(done.stdout)
    said["steps"] = {step["name"]: step for step in said["steps"]}
    return said


def arguments(daemon: Daemon, *more: str) -> tuple[str, ...]:
    return ("why", "-f", str(daemon.conf), "-c", str(daemon.settings), *more)


def fact(said: dict[str, Any], step: str) -> str:
    text: str = said["steps"][step]["fact"]
    return text


def source(said: dict[str, Any], step: str) -> str:
    text: str = said["steps"][step]["source"]
    return text


def error_of_connect(namespace: Namespace, address: str, port: int) -> str:
    try:
        dial(namespace, port, address).close()
    except OSError as error:
        return str(error.strerror)
    return "connected"


def go_through(daemon: Daemon, way: str, address: str = SERVER_V4, port: int = Port.ECHO) -> None:
    """Require that a connection is relayed by `way` (NAT64, IPv4), as its line in the log says."""
    lines = daemon.log.count(f"-> {address}:{port} via {way}")
    with dial(daemon.namespace, port, address) as sock:
        echo(sock)
    wait_until(lambda: daemon.log.count(f"-> {address}:{port} via {way}") > lines, f"it went by {way}")


def test_nat64_because_ipv4_is_unreachable_and_then_because_it_has_answered(nat64_lab: Nat64Lab) -> None:
    with Daemon(nat64_lab.client, nat64_lab.directory) as daemon:
        target = f"{SERVER_V4}:{int(Port.ECHO)}"
        said = why(daemon, target)
        assert (said["way"], said["because"]) == ("nat64", "IPv4 is unreachable (ENETUNREACH)")
        assert (said["prefix"], said["nat64_address"]) == ("2001:db8:64::/96", nat64_address(SERVER_V4))
        assert list(said["steps"]) == [
            *("route", "local", "scope", "rules", "daemon", "prefix", "state", "ipv4", "nat64", "last failure"),
        ]
        assert "table 6464: that of tnat64d" in fact(said, "route")
        assert "nftables table ip tnat64d, owned by the running daemon" in source(said, "rules")
        assert fact(said, "daemon") == f"serving, pid {daemon.process.pid}, on 127.0.0.1:6464"
        assert source(said, "prefix") == f"{daemon.conf}:1"
        assert fact(said, "state") == "IPv4 first (scope global)"
        assert fact(said, "ipv4") == "unreachable, ENETUNREACH"
        assert "default via 2001:db8:1::1 dev eth0" in fact(said, "nat64")
        assert fact(said, "last failure") == "none is remembered"
        for step, shown in (("route", "default dev tnat64d"), ("nat64", "default via 2001:db8:1::1 dev eth0")):
            assert nat64_lab.client.run(source(said, step).split()).stdout.startswith(shown)
        assert "unreachable" in nat64_lab.client.run(source(said, "ipv4").split(), check=False).stderr
        go_through(daemon, "NAT64")
        wait_until(lambda: daemon.status()["sticky"], "it is sticky")
        said = why(daemon, target)
        assert (said["way"], said["because"]) == ("nat64", "NAT64 has answered before: IPv4 is not tried")
        assert fact(said, "state") == "NAT64 sticky: it is dialled at once (scope global)"
        go_through(daemon, "NAT64")


@pytest.mark.parametrize("is_static", [True, False])
def test_ipv4_where_the_host_has_a_route_of_its_own_although_it_is_captured(
    nat64_lab: Nat64Lab, is_static: bool
) -> None:
    nat64_lab.add_ipv4_to_client()
    with Service(nat64_lab.client, nat64_lab.directory, is_static=is_static) as service:
        said = why(service.daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert (said["way"], said["because"]) == ("ipv4", "IPv4 comes first, and this host has a route")
        assert fact(said, "route") == fact(said, "ipv4") == "default via 203.0.113.1 dev eth0 table main"
        assert fact(said, "rules") == "they stand, and capture it"
        go_through(service.daemon, "IPv4")


def test_rules_that_remember_refusals_capture(ideal_lab: IdealNat64Lab) -> None:
    settings = {"proxy": {"refusal_memory_s": 5.0}}
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=settings) as daemon:
        said = why(daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert (said["way"], fact(said, "rules")) == ("nat64", "they stand, and capture it")


def test_a_local_network_is_left_alone_and_fails_at_once(ideal_lab: IdealNat64Lab) -> None:
    conf = f"{CONF}# comment\nlocal = 198.51.100.0/255.255.255.0\n"
    with Daemon(ideal_lab.client, ideal_lab.directory, conf=conf) as daemon:
        said = why(daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert said["way"] == "local"
        assert "there is no IPv4 route to it: connect() fails at once" in said["because"]
        assert said["steps"].keys() == {"route", "local"}
        assert fact(said, "local") == "local network 198.51.100.0/24"
        assert source(said, "local") == f"{daemon.conf}:3"
        assert error_of_connect(ideal_lab.client, SERVER_V4, Port.ECHO) == "Network is unreachable"
        for address, shown in (("127.0.0.1", "an address of this host"), ("169.254.7.7", "always local")):
            said = why(daemon, address)
            assert (said["way"], fact(said, "local")[: len(shown)]) == ("local", shown)
        assert daemon.total("accepted") == 0


def test_what_is_not_in_the_scope_is_not_captured(ideal_lab: IdealNat64Lab) -> None:
    scope = {"not_ports": [str(int(Port.BANNER))], "not_users": ["nobody"]}
    with Daemon(ideal_lab.client, ideal_lab.directory, settings={"scope": scope}) as daemon:
        said = why(daemon, f"{SERVER_V4}:{int(Port.BANNER)}")
        assert said["way"] == "not captured"
        assert fact(said, "scope") == f"left alone: port {int(Port.BANNER)}"
        assert source(said, "scope") == f"{daemon.settings}: scope.not_ports"
        alone = f"scope.not_ports leaves port {int(Port.BANNER)} alone"
        assert said["because"] == f"{alone}, and there is no IPv4 route to it: connect() fails at once"
        assert error_of_connect(ideal_lab.client, SERVER_V4, Port.BANNER) == "Network is unreachable"
        target = f"{SERVER_V4}:{int(Port.ECHO)}"
        assert why(daemon, target)["way"] == "nat64"
        go_through(daemon, "NAT64")
        said = why(daemon, target, "--user", "nobody")
        assert said["way"] == "not captured"
        assert fact(said, "scope") == f"left alone: user {NOBODY}"
        assert source(said, "scope") == f"{daemon.settings}: scope.not_users"
        program = f"import socket; socket.create_connection(({SERVER_V4!r}, {int(Port.ECHO)}))"
        as_nobody = ["setpriv", "--reuid=nobody", "--clear-groups", "--", sys.executable, "-Ic", program]
        assert "Network is unreachable" in ideal_lab.client.run(as_nobody, check=False).stderr


def test_a_destination_without_a_prefix_has_no_way(ideal_lab: IdealNat64Lab) -> None:
    conf = f"path {{\nsubnet = 198.51.100.0/24\n{CONF}}}\n"
    with Daemon(ideal_lab.client, ideal_lab.directory, conf=conf) as daemon:
        said = why(daemon, f"{OTHER_SERVER}:{int(Port.ECHO)}")
        assert said["way"] == "none"
        assert said["because"] == "no prefix for this destination, and IPv4 is unreachable (ENETUNREACH)"
        expect_reset(ideal_lab.client, Port.ECHO, OTHER_SERVER)
        said = why(daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert (said["way"], source(said, "prefix")) == ("nat64", f"{daemon.conf}:1")


def test_a_prefix_that_is_unreachable_shows_itself_as_the_last_failure(nat64_lab: Nat64Lab) -> None:
    with Daemon(nat64_lab.client, nat64_lab.directory) as daemon:
        nat64_lab.stop_nat64(Nat64Failure.UNREACHABLE)
        expect_reset(nat64_lab.client, Port.ECHO)
        target = f"{SERVER_V4}:{int(Port.ECHO)}"
        wait_until(lambda: why(daemon, target)["last_failure"], "the failure is known")
        said = why(daemon, target)
        assert "port 7: IPv4 ENETUNREACH, NAT64 E" in fact(said, "last failure")
        assert "UNREACH" in fact(said, "last failure").partition("NAT64")[2]
        assert why(daemon, SERVER_V4)["last_failure"] == said["last_failure"]
        assert why(daemon, f"{SERVER_V4}:80")["last_failure"] is None
        nat64_lab.start_nat64()


@pytest.mark.parametrize("is_static", [False, True], ids=["up", "setup"])
def test_rules_that_remember_refusals_or_ought_to_are_ours_all_the_same(
    ideal_lab: IdealNat64Lab, is_static: bool
) -> None:
    settings: Tables = {"proxy": {"refusal_memory_s": 5}}
    with Service(ideal_lab.client, ideal_lab.directory, settings=settings, is_static=is_static) as service:
        said = why(service.daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert (said["way"], fact(said, "rules")) == ("nat64", "they stand, and capture it")


@pytest.mark.parametrize("rules", [{}, {"mode": "tproxy", "backend": "nftables"}], ids=["owned", "static"])
def test_what_the_kernel_refuses_is_told_with_the_time_and_the_failure(
    ideal_lab: IdealNat64Lab, rules: dict[str, str]
) -> None:
    settings: Tables = {"proxy": {"refusal_memory_s": 1.5}, "rules": rules}
    target = f"{SERVER_V4}:{int(Port.REFUSED)}"
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=settings) as daemon:
        assert why(daemon, target)["way"] == "nat64"
        expect_reset(ideal_lab.client, Port.REFUSED)
        said = wait_until(
            lambda: (found := why(daemon, target))["way"] == "refused" and found, "the kernel refuses"
        )
        assert 0 < said["refused_for_s"] <= 1.5
        port = int(Port.REFUSED)
        assert said["because"].startswith("it failed ")
        assert said["because"].endswith(f" s ago, port {port}: IPv4 ENETUNREACH, NAT64 ECONNREFUSED")
        assert fact(said, "refusal").startswith("the kernel itself refuses it, for another ")
        shown = ideal_lab.client.run(source(said, "refusal").split()).stdout
        assert f"{SERVER_V4} . {int(Port.REFUSED)}" in shown or "elements" not in shown, "it may be over by now"
        assert why(daemon, f"{SERVER_V4}:{int(Port.ECHO)}")["way"] == "nat64"
        assert why(daemon, SERVER_V4)["way"] == "nat64"
        said = wait_until(lambda: (found := why(daemon, target))["way"] == "nat64" and found, "it is over")
        assert said["refused_for_s"] is None


def test_without_any_route_to_the_prefix_there_is_no_way(nat64_lab: Nat64Lab) -> None:
    with Daemon(nat64_lab.client, nat64_lab.directory) as daemon:
        nat64_lab.stop_nat64(Nat64Failure.NO_ROUTE)
        said = why(daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert said["way"] == "none"
        assert "the host has no route to NAT64 (ENETUNREACH)" in said["because"]
        expect_reset(nat64_lab.client, Port.ECHO)
        nat64_lab.start_nat64()


def test_without_a_daemon_it_explains_from_files_and_kernel(ideal_lab: IdealNat64Lab) -> None:
    target = f"{SERVER_V4}:{int(Port.ECHO)}"
    with Service(ideal_lab.client, ideal_lab.directory) as service:
        daemon = service.daemon
        daemon.process.terminate()
        said = why(daemon, target, exit_code=69)
        assert (said["way"], said["because"]) == ("none", "the daemon does not run: what is captured is refused")
        assert f"no tnat64d answers at {daemon.control_socket}" in fact(said, "daemon")
        assert fact(said, "prefix").startswith("2001:db8:64::/96, default prefix")
        expect_refused(ideal_lab.client, Port.ECHO)
    said = why(daemon, target, exit_code=69)
    assert said["way"] == "not captured"
    assert said["because"] == "there is no route: connect() fails with ENETUNREACH"
    assert fact(said, "rules").startswith("none stand")
    assert error_of_connect(ideal_lab.client, SERVER_V4, Port.ECHO) == "Network is unreachable"


@pytest.mark.parametrize(
    ("rules", "shown"),
    [
        ({"backend": "nftables"}, "nftables table ip tnat64d, static"),
        ({"backend": "iptables", "iptables": "iptables-nft"}, "iptables-nft -t nat chain TNAT64D"),
        ({"backend": "iptables", "iptables": "iptables-legacy"}, "iptables-legacy -t nat chain TNAT64D"),
        ({"backend": "nftables", "mode": "tproxy"}, "nftables table ip tnat64d, static"),
    ],
)
def test_it_names_what_holds_the_rules(ideal_lab: IdealNat64Lab, rules: dict[str, str], shown: str) -> None:
    with Service(ideal_lab.client, ideal_lab.directory, settings={"rules": rules}) as service:
        said = why(service.daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert (said["way"], source(said, "rules")) == ("nat64", shown)
        go_through(service.daemon, "NAT64")


def test_who_is_neither_root_nor_the_daemons_user_is_told_what_stays_unknown(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory) as daemon:
        for path in (ideal_lab.directory, daemon.directory):
            path.chmod(0o755)
        command = (sys.executable, "-m", "tnat64d", *arguments(daemon, f"{SERVER_V4}:{int(Port.ECHO)}"))
        done = ideal_lab.client.run(["setpriv", "--reuid=nobody", "--clear-groups", "--", *command])
        assert done.stderr == ""
        assert f"{SERVER_V4}:7: NAT64 at {nat64_address(SERVER_V4)}, because IPv4 is unreachable" in done.stdout
        assert "  rules   taken to stand: only root may look" in done.stdout
        assert "it runs, and does not tell: only root and the daemon's own user may ask" in done.stdout


def test_a_file_that_has_changed_since_is_told(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory) as daemon:
        daemon.conf.write_text("nat64_prefix = 2001:db8:65::\n")
        said = why(daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert said["prefix"] == "2001:db8:64::/96"
        assert f"{daemon.conf} has changed since it was read: run tnat64d reload" in fact(said, "daemon")
        go_through(daemon, "NAT64")


def test_the_scope_is_that_of_the_running_daemon_whatever_the_file_says_by_now(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory) as daemon:
        with daemon.settings.open("a") as file:
            file.write(f"[scope]\nnot_ports = ['{int(Port.ECHO)}']\n")
        said = why(daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert said["way"] == "nat64"
        assert f"{daemon.settings} has changed since it was read: run tnat64d reload" in fact(said, "daemon")
        go_through(daemon, "NAT64")
        assert daemon.run("reload").returncode == 0
        said = why(daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert (said["way"], said["steps"].keys()) == ("not captured", {"route", "local", "scope"})


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_rules_that_are_gutted_capture_nothing(ideal_lab: IdealNat64Lab, backend: str) -> None:
    settings = {"rules": {"backend": backend}}
    with Service(ideal_lab.client, ideal_lab.directory, settings=settings) as service:
        gut = "nft flush chain ip tnat64d redirect-output-rules"
        ideal_lab.client.run((gut if backend == "nftables" else "iptables -t nat -F TNAT64D").split())
        said = why(service.daemon, f"{SERVER_V4}:{int(Port.ECHO)}")
        assert said["way"] == "not captured"
        assert fact(said, "rules").startswith("gone or changed: the ")
        assert service.daemon.run("setup", "-f", str(service.daemon.conf)).returncode == 0
        assert why(service.daemon, f"{SERVER_V4}:{int(Port.ECHO)}")["way"] == "nat64"


@pytest.mark.parametrize("target", ["2001:db8::1", "[2001:db8::1]:80"])
def test_an_ipv6_address_is_said_to_be_one(ideal_lab: IdealNat64Lab, target: str) -> None:
    done = run_cli(ideal_lab.client, "why", target)
    said = f"tnat64d: {target!r} is no IPv4 address: connections to IPv6 addresses are never touched\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_what_only_exec_carries_is_told(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory, settings={"scope": {"exec": True}}) as daemon:
        said = why(daemon, SERVER_V4)
        assert said["because"].startswith("the scope does not include it (scope.exec), and ")
        launcher = (*PROGRAM, "exec", "-c", str(daemon.settings), "--", *PROGRAM)
        done = run_cli(ideal_lab.client, *arguments(daemon, SERVER_V4), program=launcher)
        assert f"carried: started by tnat64d exec  [{daemon.settings}: scope.exec]" in done.stdout


def test_names_are_looked_up_and_each_address_is_told(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory) as daemon:
        done = run_cli(ideal_lab.client, *arguments(daemon, "localhost"))
        assert (done.returncode, done.stdout.splitlines()[0][:16]) == (0, "127.0.0.1: local")
        done = run_cli(ideal_lab.client, *arguments(daemon, SERVER_V4, "-u", "nonesuch"))
        assert (done.returncode, done.stderr) == (2, "tnat64d: there is no user 'nonesuch' on this host\n")
