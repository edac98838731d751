"""Each fault of the daemon and its surroundings is made on a host that is well, and is the only one found."""

from __future__ import annotations

import pytest

from tests.doctor.patient import Patient, patient
from tests.lab import IdealNat64Lab
from tests.lab.daemon import Tables
from tnat64d.kernel import processes

pytestmark = pytest.mark.netns("iptables-nft", "iptables-legacy", "nft", "unshare", "setpriv", "prlimit")

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


def test_without_a_daemon_that_is_the_only_fault(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, is_started=False) as host:
        faults = host.faults()
        assert faults.keys() == {"daemon"}
        assert faults["daemon"].startswith("fail: no tnat64d answers at ")


def test_mistakes_in_both_files_are_shown_and_the_rest_is_looked_at(host: Patient) -> None:
    host.daemon.conf.write_text("nat64_prefix = 2001:db8:64::\nlocal = here\n")
    faults = host.faults()
    assert faults.keys() == {"configuration"}
    assert f"{host.daemon.conf}:2:" in faults["configuration"]
    checks = {each["check"] for each in host.findings()}
    assert {"daemon", "rules", "address", "conntrack"} <= checks


def test_a_file_without_prefix_is_found(host: Patient) -> None:
    host.daemon.conf.write_text("")
    assert host.daemon.run("reload").returncode == 0
    assert host.faults().keys() == {"configuration", "dns64"}  # whose prefix the file does not have


def test_a_changed_tnat64_conf_is_reloaded_by_the_remedy(host: Patient) -> None:
    with host.daemon.conf.open("a") as file:
        file.write("local = 203.0.113.0/24\n")
    assert host.faults() == {"reload": f"warn: {host.daemon.conf} was changed and not reloaded"}
    assert host.remedy("reload").startswith("tnat64d reload")
    assert host.faults() == {}


@pytest.mark.parametrize("is_static", [False, True])
def test_changed_settings_are_told_from_rules_that_are_wrong(ideal_lab: IdealNat64Lab, is_static: bool) -> None:
    with patient(ideal_lab, is_static=is_static) as host:
        with host.daemon.settings.open("a") as file:
            file.write("[scope]\nnot_ports = ['25']\n")
        changed = {"reload": f"warn: {host.daemon.settings} was changed and not reloaded"}
        assert host.faults() == changed
        if is_static:
            assert host.daemon.run("setup", "-f", str(host.daemon.conf)).returncode == 0
            assert host.faults() == changed
        host.remedy("reload")
        assert host.faults() == {}


def test_after_a_reload_static_rules_of_the_old_files_are_wrong(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, is_static=True) as host:
        with host.daemon.conf.open("a") as file:
            file.write("local = 203.0.113.0/24\n")
        assert host.faults().keys() == {"reload"}
        host.remedy("reload")
        assert host.faults().keys() == {"rules"}
        host.remedy("rules")
        assert host.faults() == {}


@pytest.mark.parametrize(("is_static", "start"), [(False, "up"), (True, "setup {files} && tnat64d serve")])
def test_a_change_that_needs_a_restart_is_not_said_to_need_a_reload(
    ideal_lab: IdealNat64Lab, is_static: bool, start: str
) -> None:
    with patient(ideal_lab, is_static=is_static) as host:
        host.daemon.write_settings({"proxy": {"port": 6465}})
        files = f"-f {host.daemon.conf} -c {host.daemon.settings}"
        (found,) = [each for each in host.findings() if each["level"] != "ok"]
        assert (found["check"], found["level"]) == ("reload", "warn")
        then = start.format(files=files)
        assert found["remedy"] == f"tnat64d drain -c {host.daemon.settings} && tnat64d {then} {files}"


def test_who_is_not_root_is_told_to_be(host: Patient) -> None:
    for path in (host.lab.directory, host.daemon.directory):
        path.chmod(0o755)
    findings = [each for each in host.findings(wrapper=NOBODY) if each["level"] != "ok"]
    assert {each["level"] for each in findings} == {"warn"}
    assert all(each["remedy"].startswith("sudo tnat64d doctor -f ") for each in findings)
    assert {each["check"] for each in findings} == {
        "privileges",
        "daemon",
        "rules",
        "backends",
        "marks",
        "gateway",
    }


def test_without_tun_devices_rules_are_said_to_stay(host: Patient) -> None:
    empty = ("sh", "-ec", 'mount -t tmpfs none /dev/net; exec "$@"', "sh")
    assert host.faults(wrapper=empty) == {
        "kernel": "warn: there is no /dev/net/tun: rules stay if the daemon is killed"
    }


def test_iptables_that_is_asked_for_and_missing_is_found(ideal_lab: IdealNat64Lab) -> None:
    settings: Tables = {"rules": {"backend": "iptables", "iptables": "/nowhere/iptables"}}
    with patient(ideal_lab, is_started=False, settings=settings) as host:
        faults = host.faults()
    assert faults["kernel"] == "fail: rules.backend asks for iptables, and there is no /nowhere/iptables"


def test_without_any_program_of_others_it_looks_on(host: Patient) -> None:
    bare = ("env", "PATH=/nowhere")
    assert host.faults(wrapper=bare) == {}


def test_a_worker_whose_files_are_nearly_used_up_is_found_and_helped_by_the_remedy(host: Patient) -> None:
    for pid in host.daemon.worker_pids():
        used, _ = processes.open_files(pid)
        host.host.run(["prlimit", "--pid", str(pid), f"--nofile={used * 6 // 5}:1000"])
    assert host.faults().keys() == {"files"}
    for _ in host.daemon.worker_pids():
        host.remedy("files")
    assert host.faults() == {}


def test_more_connections_than_files_are_found(ideal_lab: IdealNat64Lab) -> None:
    with patient(ideal_lab, settings={"proxy": {"workers": 1, "max_connections": 1000}}) as host:
        (pid,) = host.daemon.worker_pids()
        host.host.run(["prlimit", "--pid", str(pid), "--nofile=100:1000"])
        assert host.faults().keys() == {"files"}
