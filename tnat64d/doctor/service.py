"""Checks of what the daemon is made of: its files, privileges, kernel and processes."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from tnat64d.core.findings import fail, ok, warn
from tnat64d.core.reloading import require_reloadable
from tnat64d.doctor.subject import Findings, Subject
from tnat64d.errors import ConfigurationError
from tnat64d.kernel import owned, processes
from tnat64d.kernel.nftables import Nftables

_TUN = Path("/dev/net/tun")
_SYSTEMD = Path("/run/systemd/system")
"""sd_booted(3)."""

_FILES_OF_A_CONNECTION = 2
_NEARLY = 0.8


def configuration(subject: Subject) -> Findings:
    """A mistake in one of the two files, or no prefix in tnat64.conf."""
    for problem in subject.problems:
        yield fail(problem, f"$EDITOR {problem.partition(':')[0]}")
    config = subject.written_config
    if subject.problems or config is None:
        return
    if config.default_prefix is None and not config.paths:
        yield warn(
            f"{subject.conf_file} has no nat64_prefix: every destination is tried by IPv4 only",
            f"echo 'nat64_prefix = PREFIX' >>{shlex.quote(subject.conf_file)}",
        )
    else:
        yield ok("both files are right")


def privileges(subject: Subject) -> Findings:
    """Not root: some checks cannot look."""
    if subject.is_root:
        yield ok("CAP_NET_ADMIN")
    else:
        yield warn("not root (CAP_NET_ADMIN): some checks cannot look", f"sudo {subject.command('doctor')}")


def kernel(subject: Subject) -> Findings:
    """No program or kernel facility that could hold the rules, or no TUN device to own them with."""
    rules = subject.settings.rules
    has_iptables = shutil.which(f"{rules.iptables}-restore") is not None
    if rules.backend == "iptables" and not has_iptables:
        yield fail(f"rules.backend asks for iptables, and there is no {rules.iptables}", "apt install iptables")
        return
    has_nf_tables = Nftables.is_supported() if subject.is_root else None
    if has_nf_tables is False and not has_iptables:
        yield fail("neither nf_tables nor iptables is here to hold the rules", "modprobe nf_tables")
    elif not _TUN.exists():
        yield warn("there is no /dev/net/tun: rules stay if the daemon is killed", "modprobe tun")
    else:
        yield ok("TUN devices" if has_nf_tables is None else "nf_tables and TUN devices")


def daemon(subject: Subject) -> Findings:
    """No daemon that answers, or one that does not serve, or whose rules somebody else takes away."""
    status = subject.daemon
    if status is None and not subject.is_root and "only root" in subject.why_no_daemon:
        yield warn("one runs, and answers root only", f"sudo {subject.command('doctor')}")
    elif status is None:
        start = "systemctl start tnat64d" if _SYSTEMD.exists() else subject.command("up")
        yield fail(subject.why_no_daemon, start)
    elif status["state"] != "serving":
        yield fail(f"pid {status['pid']} is {status['state']}", subject.command("status"))
    elif status.get("rules", {}).get("state") == "contested":
        yield fail("something takes the rules away again and again", subject.restoring)
    else:
        held = " and holds its rules" if owned.is_held() else ""
        yield ok(f"{status['version']}, pid {status['pid']}, serves on {status['listener']}{held}")


def reload(subject: Subject) -> Findings:
    """A file that was changed since the daemon has read it, which goes by the old one."""
    loaded, config = subject.loaded, subject.written_config
    if loaded is None:
        yield warn("the daemon does not tell what it has read", _restarting(subject))
        return
    changed = [subject.conf_file] if config is not None and config != loaded.config else []
    remedy = subject.command("reload")
    settings = subject.written_settings
    if settings is not None and settings != loaded.settings:
        changed.append(subject.settings_file)
        try:
            require_reloadable(loaded.settings, settings, subject.settings_file)
        except ConfigurationError:
            remedy = _restarting(subject)
    for file in changed:
        yield warn(f"{file} was changed and not reloaded", remedy)
    if not changed and not subject.problems:
        yield ok("the daemon goes by both files as they are now")


def _restarting(subject: Subject) -> str:
    if _SYSTEMD.exists():
        return "systemctl restart tnat64d"
    assert subject.daemon is not None
    start = ("setup", "serve") if subject.daemon["rules"]["way"] == "setup" else ("up",)
    return " && ".join(map(subject.command, ("drain", *start)))


def files(subject: Subject) -> Findings:
    """A limit of open files that the workers will meet, or have nearly met."""
    assert subject.daemon is not None
    workers = [worker["pid"] for worker in subject.daemon["workers"]]
    share = subject.settings.proxy.max_connections / max(1, len(workers))
    for pid in workers:
        used, limit = processes.open_files(pid)
        wanted = round(used + share * _FILES_OF_A_CONNECTION)
        remedy = f"prlimit --pid {pid} --nofile={max(2 * limit, wanted)}"
        if used > limit * _NEARLY:
            yield warn(f"worker {pid} has {used} files open of {limit} that it may have", remedy)
            return
        if wanted > limit:
            yield warn(f"worker {pid} may have {limit} files open, and max_connections takes {wanted}", remedy)
            return
    yield ok(f"each of {len(workers)} workers may open enough files")
