"""Others take the daemon's rules away, in every way that there is; it puts them back, once, and not for ever."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.lab import IdealNat64Lab, Namespace, Port, wait_until
from tests.lab.daemon import CONF, Daemon, Service, Tables, dial, echo, iptables_after, snapshot
from tests.test_fail_open import POLICY_RULES, daemon_in, difference, kill
from tnat64d.core.healing import ATTEMPTS

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft")

SOON_S = 2.0
OWNED: Tables = {}
NFTABLES: Tables = {"rules": {"backend": "nftables", "mode": "tproxy"}}
IPTABLES: dict[str, Tables] = {
    program: {"rules": {"backend": "iptables", "iptables": program}}
    for program in ("iptables-nft", "iptables-legacy")
}
FOREIGN = """
add table ip theirs
add chain ip theirs output { type nat hook output priority -100; }
add rule ip theirs output tcp dport 25 redirect to :2525
"""
ROUTING = ("ip rule del pref 32769", "ip rule del pref 32768", "ip route flush table 6464")

LOSSES: dict[str, tuple[Tables, str]] = {
    **{f"owned: {command}": (OWNED, command) for command in ROUTING},
    "owned: the address": (OWNED, "ip addr del 192.0.0.2 peer 192.0.0.1/32 dev tnat64d"),
    "owned: the device": (OWNED, "ip link del tnat64d"),
    "owned: the device down": (OWNED, "ip link set tnat64d down"),
    "nftables: everything": (NFTABLES, "nft flush ruleset"),
    "nftables: the table": (NFTABLES, "nft delete table ip tnat64d"),
    "nftables: a chain's rules": (NFTABLES, "nft flush chain ip tnat64d mark-output-rules"),
    "nftables: the address": (NFTABLES, "ip addr del 192.0.0.2/32 dev lo"),
    "nftables: the tproxy rule": (NFTABLES, "ip rule del pref 32765"),
    "iptables-nft: everything": (IPTABLES["iptables-nft"], "nft flush ruleset"),
}
for _program, _settings in IPTABLES.items():
    LOSSES |= {
        f"{_program}: {command}": (_settings, command)
        for command in (
            f"{_program} -w -t nat -F",
            f"{_program} -w -F",
            f"{_program} -w -t nat -D OUTPUT -p tcp -j TNAT64D",
            "ip rule del pref 32769",
            "ip addr del 192.0.0.2/32 dev lo",
        )
    }


@contextlib.contextmanager
def held(lab: IdealNat64Lab, settings: Tables) -> Iterator[Daemon]:
    """`up`, seen to work."""
    with Daemon(lab.client, lab.directory, settings=settings) as daemon:
        with dial(lab.client, Port.ECHO) as sock:
            echo(sock)
        yield daemon


def works(host: Namespace) -> bool:
    try:
        with dial(host, Port.ECHO, timeout_s=0.5) as sock:
            echo(sock)
    except (OSError, AssertionError):
        return False
    return True


def restorations(daemon: Daemon) -> list[str]:
    return re.findall(r"WARNING: (.*) gone or changed: restored$", daemon.log, re.MULTILINE)


def wait_for_restorations(daemon: Daemon, number: int) -> None:
    wait_until(lambda: daemon.status()["rules_restored"] == number, f"{number} restorations")


def foreign_rules(host: Namespace) -> str:
    return host.run(["nft", "-s", "list", "table", "ip", "theirs"], check=False).stdout


@pytest.mark.parametrize(("settings", "command"), LOSSES.values(), ids=LOSSES)
def test_what_others_take_away_is_put_back_once(ideal_lab: IdealNat64Lab, settings: Tables, command: str) -> None:
    client = ideal_lab.client
    with held(ideal_lab, settings) as daemon:
        stood = snapshot(client)
        client.run(["nft", "-f", "-"], input=FOREIGN)
        client.run(command.split())
        theirs = foreign_rules(client)
        started = time.monotonic()
        daemon.wait_for_log("restored$", timeout_s=SOON_S)
        wait_until(lambda: works(client), "connections work again", timeout_s=SOON_S)
        assert time.monotonic() - started < SOON_S
        assert foreign_rules(client) == theirs
        client.run(["nft", "delete", "table", "ip", "theirs"], check=False)
        after = snapshot(client)
        for shown in ("ip rule", "ip -4 route show table all", "ip -o address"):
            assert sorted(re.sub(r"^\d+: ", "", line) for line in after[shown].splitlines()) == sorted(
                re.sub(r"^\d+: ", "", line) for line in stood[shown].splitlines()
            )
        status = daemon.status()
        assert (status["rules"]["state"], status["rules"]["missing"]) == ("restored", [])
        assert status["rules_restored"] == len(restorations(daemon)) == 1


def test_an_owned_table_is_not_touched_by_a_flush(ideal_lab: IdealNat64Lab) -> None:
    with held(ideal_lab, OWNED) as daemon:
        stood = snapshot(ideal_lab.client)
        ideal_lab.client.run(["nft", "flush", "ruleset"])
        assert snapshot(ideal_lab.client) == stood
        assert works(ideal_lab.client)
        assert daemon.status()["rules"] == {
            "way": "owned",
            "state": "standing",
            "missing": [],
            "error": None,
            "watcher": None,
        }


def test_a_device_that_was_restored_goes_with_the_daemon_all_the_same(ideal_lab: IdealNat64Lab) -> None:
    client = ideal_lab.client
    with daemon_in(ideal_lab, settings={"scope": {"not_networks": ["198.51.100.77/32"]}}) as daemon:
        for number in (1, 2):
            client.run(["ip", "link", "del", "tnat64d"])
            wait_for_restorations(daemon, number)
        assert_out_of_scope_fails_at_once(client)
        kill(daemon, "the supervisor")
        assert difference(daemon.before, snapshot(client)) == POLICY_RULES
    assert daemon.run("teardown").returncode == 0
    assert snapshot(client) == daemon.before


def assert_out_of_scope_fails_at_once(host: Namespace) -> None:
    """The device answers."""
    with host.socket() as sock:
        sock.settimeout(2)
        assert sock.connect_ex(("198.51.100.77", 80)) == errno.ENETUNREACH


def test_a_reload_is_no_loss(ideal_lab: IdealNat64Lab) -> None:
    with held(ideal_lab, NFTABLES) as daemon:
        daemon.conf.write_text(f"local = 198.51.100.99/32\n{CONF}")
        assert daemon.run("reload").returncode == 0
        ideal_lab.client.run(["ip", "rule", "del", "pref", "32769"])
        daemon.wait_for_log("restored$")
        assert restorations(daemon) == ["the routing rule 32769 was"]
        assert "198.51.100.99" in snapshot(ideal_lab.client)["nft list ruleset"]


def test_a_fight_slows_down_and_a_reload_begins_anew(ideal_lab: IdealNat64Lab) -> None:
    script = "while sleep 0.02; do ip rule del pref 32769; done 2>/dev/null"
    with held(ideal_lab, OWNED) as daemon:
        opponent = ideal_lab.client.start(["sh", "-c", script])
        daemon.wait_for_log(
            "ERROR: something keeps removing the routing rule 32769: restored only each 60 s", timeout_s=30
        )
        status = daemon.status()
        assert (status["rules"]["state"], status["rules_restored"]) == ("contested", ATTEMPTS)
        assert status["rules"]["missing"] == ["the routing rule 32769"]
        assert "contested (owned)" in daemon.run("status").stdout
        findings = json.loads(daemon.run("doctor", "-f", str(daemon.conf), "--json").stdout)
        (finding,) = (each for each in findings if each["check"] == "daemon")
        assert (finding["level"], "again and again" in finding["sentence"]) == ("fail", True)
        opponent.terminate()
        assert daemon.run("reload").returncode == 0
        assert works(ideal_lab.client)
        assert daemon.status()["rules"]["state"] == "standing"
        assert len(restorations(daemon)) == ATTEMPTS
        assert daemon.log.count("something keeps removing") == 1


def test_what_cannot_be_restored_is_told_and_tried_again(ideal_lab: IdealNat64Lab) -> None:
    flag = ideal_lab.directory / "fail"
    program = iptables_after(ideal_lab.directory, f"if [ -e {flag} ]; then echo no room >&2; exit 4; fi")
    with held(ideal_lab, {"rules": {"backend": "iptables", "iptables": program}}) as daemon:
        flag.touch()
        ideal_lab.client.run(["iptables-nft", "-w", "-t", "nat", "-F"])
        daemon.wait_for_log("WARNING: .* gone or changed, and cannot be restored: .*no room")
        assert daemon.status()["rules"]["state"] == "missing"
        assert "no room" in daemon.status()["rules"]["error"]
        assert re.search("; cannot be restored: .*no room", daemon.run("status").stdout)
        flag.unlink()
        wait_for_restorations(daemon, 1)
        rules = daemon.status()["rules"]
        assert rules == {"way": "static", "state": "restored", "missing": [], "error": None, "watcher": None}
        assert works(ideal_lab.client)


def test_beside_setup_the_daemon_says_what_is_gone_and_what_restores_it(ideal_lab: IdealNat64Lab) -> None:
    client = ideal_lab.client
    with Service(client, ideal_lab.directory) as service:
        daemon = service.daemon
        assert daemon.status()["rules"] == {
            "way": "setup",
            "state": "routing",
            "missing": [],
            "error": None,
            "watcher": None,
        }
        client.run(["ip", "rule", "del", "pref", "32769"])
        daemon.wait_for_log('WARNING: the routing rule 32769 .*gone.*"tnat64d setup" restores')
        assert daemon.status()["rules"]["state"] == "missing"
        assert "missing (setup), packet rules are not looked at; missing: " in daemon.run("status").stdout
        assert daemon.run("setup", "-f", str(daemon.conf)).returncode == 0
        daemon.wait_for_log("stand again")
        assert daemon.status()["rules"]["state"] == "routing"
        assert works(client)
        assert daemon.status()["rules_restored"] == 0


@pytest.mark.parametrize("settings", [NFTABLES, *IPTABLES.values()], ids=["nftables", *IPTABLES])
def test_beside_setup_no_more_is_said_to_stand_than_was_looked_at(
    ideal_lab: IdealNat64Lab, settings: Tables
) -> None:
    """A daemon without CAP_NET_ADMIN cannot see packet rules, so it cannot see that they are gone."""
    with Service(ideal_lab.client, ideal_lab.directory, settings=settings) as service:
        for command in ("nft flush ruleset", "iptables-legacy -w -t nat -F", "iptables-legacy -w -F"):
            ideal_lab.client.run(command.split())
        assert not works(ideal_lab.client)
        said = service.daemon.run("status").stdout
        assert "rules          routing stands (setup), packet rules are not looked at\n" in said
        assert service.daemon.run("setup", "-f", str(service.daemon.conf)).returncode == 0
        assert works(ideal_lab.client)


def test_a_daemon_without_any_rules_says_so(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory, command="serve") as daemon:
        assert daemon.status()["rules"] == {
            "way": "setup",
            "state": "absent",
            "missing": [],
            "error": None,
            "watcher": None,
        }
