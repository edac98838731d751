"""`make demo`: an IPv4-only connection on an IPv6-only host, before, with and after tnat64d.

    demo.py [PROGRAM]     PROGRAM: the tnat64d to show; by default the one beside this Python

Everything happens in network namespaces; nothing of the host's own network is read or changed. Exit codes: 0 all
went as announced, 1 a step did not, 77 not root or the kernel makes no namespaces.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

from tests.lab import SERVER_V4, LabError, Nat64Lab, Process
from tests.lab.needs import NAT64_PROGRAMS, what_is_missing
from tests.lab.servers import INDEX_PAGE

URL = f"http://{SERVER_V4}/"
CURL = ("curl", "--silent", "--show-error", "--max-time", "10", URL)
NETWORK_STATE = (
    ("ip", "-oneline", "address"),
    ("ip", "rule"),
    ("ip", "route", "show", "table", "all"),
    ("iptables-save",),
    ("nft", "list", "ruleset"),
)


def main(program: str) -> int:
    """Run the demonstration; the exit code."""
    if reason := what_is_missing((*NAT64_PROGRAMS, "curl", "nft")):
        print(f"demo: {reason}", file=sys.stderr)
        return 77
    try:
        with Nat64Lab() as lab:
            demonstrate(lab, program)
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything was taken down", file=sys.stderr)
        return 128 + signal.SIGINT
    step("All as announced; the namespaces are gone")
    return 0


def demonstrate(lab: Nat64Lab, program: str) -> None:
    """Every step in turn. Raises LabError at the first that does not do what it should."""
    step(f"Three hosts: client (IPv6 only) — router (tayga, NAT64 {lab.prefix}) — server ({SERVER_V4}, IPv4 only)")
    show(lab, ("ip", "-4", "route"))
    show(lab, ("ip", "-6", "route"))
    lab.start_servers()
    before = network_state(lab)

    step("Without tnat64d the client has no way to the server")
    failed = show(lab, CURL)
    expect(failed.returncode != 0, "curl reached the server without tnat64d")

    step("tnat64.conf names the NAT64 prefix of the network")
    conf, settings = write_configuration(lab)
    print(indented(conf.read_text()))

    command = (program, "up", "-f", str(conf), "-c", str(settings))
    step("tnat64d comes up")
    print(f"    client$ {shlex.join(command)} &")
    daemon = lab.client.start(command)
    print(indented(whole_line(daemon.wait_for_output("ready", timeout_s=30))))

    step("The same curl, unchanged")
    page = show(lab, CURL)
    expect(page.stdout.encode() == INDEX_PAGE, "curl did not get the server's page through tnat64d")

    step("What tnat64d says of that connection")
    line = daemon.wait_for_output(rf"{re.escape(SERVER_V4)}:80\b")
    print(indented(whole_line(line)))

    step("tnat64d is told to stop")
    stop(daemon)

    step("Addresses, rules, routes and packet filter of the client are as they were")
    compare(before, network_state(lab))
    failed = show(lab, CURL)
    expect(failed.returncode != 0, "curl still reaches the server")


def write_configuration(lab: Nat64Lab) -> tuple[Path, Path]:
    """tnat64.conf with the prefix of the lab, and settings that keep the control socket in the lab's directory."""
    conf, settings = lab.directory / "tnat64.conf", lab.directory / "tnat64d.toml"
    conf.write_text(f"nat64_prefix = {lab.prefix.removesuffix('/96')}\n")
    settings.write_text(f'[control]\nsocket = "{lab.directory}/control.sock"\n')
    return conf, settings


def stop(daemon: Process) -> None:
    """SIGTERM, as systemd does."""
    daemon.send_signal(signal.SIGTERM)
    code = daemon.wait(timeout_s=40)
    print(f"    exit code {code}")
    expect(code == 0, f"it should end with 0:\n{daemon.stderr}")


def network_state(lab: Nat64Lab) -> dict[str, str]:
    """What each command of NETWORK_STATE prints in the client, without what changes by itself."""
    return {shlex.join(command): steady(lab.client.run(command).stdout) for command in NETWORK_STATE}


def steady(text: str) -> str:
    """Without the comments of iptables-save (they hold the time), packet counters, and empty standard chains."""
    lines = [re.sub(r"\[\d+:\d+\]", "", line).strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if not re.match(r"#|\*|COMMIT|:\w+ ACCEPT", line))


def compare(before: dict[str, str], after: dict[str, str]) -> None:
    """Print each command; raises LabError where its answer is another than before."""
    for command, was in before.items():
        now = after[command]
        expect(now == was, f"{command} was\n{indented(was)}\nand is now\n{indented(now)}")
        print(f"    client$ {command}: as before ({len(now.splitlines())} lines)")


def show(lab: Nat64Lab, command: Sequence[str]) -> CompletedProcess[str]:
    """Run in the client as a person would, and print what that person would see."""
    print(f"    client$ {shlex.join(command)}")
    done = lab.client.run(command, check=False)
    print(indented(done.stdout + done.stderr) or "    (nothing)")
    return done


def step(text: str) -> None:
    print(f"==> {text}", flush=True)


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise LabError(otherwise)


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


def whole_line(match: re.Match[str]) -> str:
    start = match.string.rfind("\n", 0, match.start()) + 1
    return match.string[start:].partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else str(Path(sys.executable).parent / "tnat64d")))
