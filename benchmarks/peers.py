"""What is compared: tnat64d, its peers, and the limit.

Owns how each is configured and started, and the reason when one is not there. A peer that relays to one fixed
server is started anew for each service; so are the others, and every measure begins with a fresh process.
All proxies listen on LISTEN_PORT behind the same rules (`RuledLab`) and dial the server by IPv6 only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import platform
import resource
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import tnat64d as tnat64d_package
from benchmarks.lab import CLAT_V6_PREFIX, COMPILED, LISTEN_PORT, ClatLab, PlainLab, RuledLab, Service, tnat64d
from benchmarks.peer import Peer
from tests.lab import LabError
from tnat64d.core import settings
from tnat64d.errors import ConfigurationError

PROXY_FILES = min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
"""Open files of one proxy process: ten thousand connections of two sockets each."""

_HAPROXY_CONF = """\
global
    nbthread {threads}
    maxconn 9200
    maxpipes 700
defaults
    mode tcp
    option splice-auto
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen nat64
    bind 127.0.0.1:{listen} backlog 8192
    server s [{server}]:+0
"""
_NGINX_CONF = """\
{module}
daemon off;
worker_processes {workers};
worker_rlimit_nofile {files};
pid {stem}.pid;
error_log {stem}.log error;
events {{ worker_connections {connections}; }}
stream {{
    server {{
        listen 127.0.0.1:{listen} backlog=8192{reuseport};
        proxy_pass [{server}]:{port};
        proxy_timeout 1h;
    }}
}}
"""
_NGINX_STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
# pproxy 2.7 counts on uvloop.install() to leave a loop behind; since uvloop 0.22 it does not.
_PPROXY = """\
import asyncio, uvloop
uvloop.install = lambda: asyncio.set_event_loop(uvloop.new_event_loop())
from pproxy.server import main
main()
"""
_TAYGA_CONF = """\
tun-device clat
ipv4-addr 192.0.0.9
ipv6-addr {own}
prefix {prefix}
map 192.0.0.2 {host}
data-dir {directory}
"""
_TNAT64D_TOML = """\
[proxy]
port = {port}
workers = {workers}
connect = "{connect}"
[control]
socket = "{socket}"
[log]
connections = "{log}"
"""
_numbers = itertools.count()


class Direct(Peer):
    """IPv6 to the server itself: the limit, and what a program with IPv6 has."""

    lab = PlainLab

    def address(self, lab: PlainLab) -> str:
        """The server under the prefix."""
        return lab.server_nat64

    def command(self, lab: PlainLab, service: Service) -> None:
        """Nothing runs."""
        return


class Preload(Peer):
    """The original tnat64, a library preloaded into the load itself."""

    lab = PlainLab
    programs = ("tnat64",)

    def version(self) -> str:
        """Of the package."""
        return _package_version("tnat64")

    def command(self, lab: PlainLab, service: Service) -> None:
        """Nothing runs."""
        return

    def under(self, lab: PlainLab) -> list[str]:
        """The wrapper that preloads it."""
        return ["env", f"TNAT64_CONF_FILE={lab.conf}", "tnat64"]


class Tnat64d(Peer):
    """This program, as a user starts it, but without a log line per connection: its peers write none either."""

    def __init__(
        self,
        name: str,
        title: str,
        *,
        workers: int = 1,
        log: str = "none",
        connect: str = "plain",
        compiled: bool = False,
    ) -> None:
        super().__init__(name, title)
        self._compiled = compiled
        self._workers = workers
        self._log = log
        self._connect = connect
        self.compared_with = name

    def missing(self) -> str | None:
        """What was not built, or a way to connect that this version does not know."""
        if self._compiled and not COMPILED.is_dir():
            return f"it is not built: make {COMPILED.parent.name}/{COMPILED.name}"
        try:
            settings.parse(self.settings(Path("/unused")), "tnat64d.toml")
        except ConfigurationError:
            return f'this version has no connect = "{self._connect}"'
        return None

    def version(self) -> str:
        """With what it runs on."""
        return f"{tnat64d_package.__version__} with Python {platform.python_version()}"

    def settings(self, socket: Path) -> str:
        """The tnat64d.toml."""
        return _TNAT64D_TOML.format(
            port=LISTEN_PORT, workers=self._workers, log=self._log, connect=self._connect, socket=socket
        )

    def command(self, lab: PlainLab, service: Service) -> list[str]:
        """`tnat64d serve`."""
        stem = lab.directory / f"{self.name}-{next(_numbers)}"
        file = stem.with_suffix(".toml")
        file.write_text(self.settings(stem.with_suffix(".sock")))
        return [*tnat64d("serve", compiled=self._compiled), "-f", str(lab.conf), "-c", str(file)]


class Haproxy(Peer):
    """HAProxy with splice(2), one process; it takes the destination's port from the redirected connection."""

    programs = ("haproxy",)

    def __init__(self, name: str, title: str, *, threads: int = 1) -> None:
        super().__init__(name, title)
        self._threads = threads
        self.compared_with = "tnat64d" if threads == 1 else f"tnat64d-{threads}"

    def version(self) -> str:
        """As `haproxy -v` says."""
        return _first_line(["haproxy", "-v"]).removeprefix("HAProxy version ").split()[0]

    def command(self, lab: PlainLab, service: Service) -> list[str]:
        """In the foreground."""
        conf = lab.directory / f"{self.name}.cfg"
        conf.write_text(_HAPROXY_CONF.format(threads=self._threads, listen=LISTEN_PORT, server=lab.server_nat64))
        return ["haproxy", "-db", "-f", str(conf)]


class Nginx(Peer):
    """nginx's stream module."""

    programs = ("nginx",)

    def __init__(self, name: str, title: str, *, workers: int = 1) -> None:
        super().__init__(name, title)
        self._workers = workers
        self.compared_with = "tnat64d" if workers == 1 else f"tnat64d-{workers}"

    def missing(self) -> str | None:
        """nginx, or its module."""
        return super().missing() or (None if self._module() is not None else "nginx has no stream module")

    def version(self) -> str:
        """As `nginx -v` says."""
        return _first_line(["nginx", "-v"]).rpartition("/")[2]

    def command(self, lab: PlainLab, service: Service) -> list[str]:
        """In the foreground."""
        conf = lab.directory / f"{self.name}.conf"
        conf.write_text(
            _NGINX_CONF.format(
                module=self._module(),
                workers=self._workers,
                files=PROXY_FILES,
                connections=PROXY_FILES - 100,
                stem=conf.with_suffix(""),
                listen=LISTEN_PORT,
                reuseport=" reuseport" if self._workers > 1 else "",
                server=lab.server_nat64,
                port=service.value,
            )
        )
        return ["nginx", "-c", str(conf)]

    def _module(self) -> str | None:
        """The line that loads the stream module: empty where it is built in, None where there is none."""
        if _NGINX_STREAM_MODULE.exists():
            return f"load_module {_NGINX_STREAM_MODULE};"
        build = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=False).stderr
        return "" if "--with-stream" in build.split() else None


class Socat(Peer):
    """socat, which forks a process for each connection."""

    programs = ("socat",)
    most_idle = 4000

    def version(self) -> str:
        """Of the package."""
        return _package_version("socat")

    def command(self, lab: PlainLab, service: Service) -> list[str]:
        """Its usual form."""
        listen = f"TCP4-LISTEN:{LISTEN_PORT},bind=127.0.0.1,fork,reuseaddr,backlog=8192"
        return ["socat", listen, f"TCP6:[{lab.server_nat64}]:{service.value}"]


class Pproxy(Peer):
    """pproxy, on asyncio with uvloop, in its redir mode."""

    def missing(self) -> str | None:
        """The package."""
        return None if importlib.util.find_spec("pproxy") else "pproxy is not installed: pip install -e .[bench]"

    def version(self) -> str:
        """Of the package."""
        return metadata.version("pproxy")

    def command(self, lab: PlainLab, service: Service) -> list[str]:
        """Quiet, as it is by default."""
        remote = f"tunnel://[{lab.server_nat64}]:{service.value}"
        return [sys.executable, "-c", _PPROXY, "-l", f"redir://127.0.0.1:{LISTEN_PORT}", "-r", remote]


class Tayga(Peer):
    """tayga as a CLAT: a translator of packets behind a TUN device of its own, as clatd sets it up."""

    lab = ClatLab
    programs = ("tayga",)

    def __init__(self, name: str, title: str, *, mtu: int) -> None:
        super().__init__(name, title)
        self._mtu = mtu

    def version(self) -> str:
        """Of the package."""
        return _package_version("tayga")

    def command(self, lab: PlainLab, service: Service) -> list[str]:
        """Device, address and route, then the translator."""
        network = CLAT_V6_PREFIX.partition("/")[0]
        conf = lab.directory / f"{self.name}.conf"
        conf.write_text(
            _TAYGA_CONF.format(own=f"{network}9", host=f"{network}2", prefix=lab.prefix, directory=lab.directory)
        )
        lab.ip(
            "client",
            "tuntap add dev clat mode tun",
            "link set clat up",
            "addr add 192.0.0.2/32 dev clat",
            # On the route, as clatd does: a device of less than 1280 bytes has no IPv6.
            f"route add default dev clat src 192.0.0.2 mtu {self._mtu}",
            f"route add {CLAT_V6_PREFIX} dev clat",
        )
        return ["tayga", "--nodetach", "-c", str(conf)]

    def clean_up(self, lab: PlainLab) -> None:
        """The device, and with it addresses and routes."""
        with contextlib.suppress(LabError):
            lab.ip("client", "link del clat")


class HonestLab(RuledLab):
    """The rules of honest connects."""

    settings = '[proxy]\nconnect = "honest"\n'


def _honest() -> Tnat64d:
    peer = Tnat64d("tnat64d-honest", "tnat64d, honest connect", connect="honest")
    peer.lab = HonestLab
    return peer


def _logging() -> Tnat64d:
    peer = Tnat64d("tnat64d-log", "tnat64d, each connection logged", log="all")
    peer.only = frozenset({"connections"})
    return peer


PEERS: tuple[Peer, ...] = (
    Tnat64d("tnat64d", "tnat64d"),
    Tnat64d("tnat64d-compiled", "tnat64d, compiled", compiled=True),
    Tnat64d("tnat64d-2", "tnat64d, 2 workers", workers=2),
    _honest(),
    _logging(),
    Haproxy("haproxy", "HAProxy, splice"),
    Haproxy("haproxy-2", "HAProxy, 2 threads", threads=2),
    Nginx("nginx", "nginx stream"),
    Nginx("nginx-2", "nginx, 2 workers", workers=2),
    Socat("socat", "socat"),
    Pproxy("pproxy", "pproxy (Python)"),
    Tayga("tayga-1480", "tayga CLAT, MTU 1480", mtu=1480),
    Tayga("tayga-1260", "tayga CLAT, MTU 1260", mtu=1260),
    Preload("tnat64", "tnat64, LD_PRELOAD"),
    Direct("direct", "direct IPv6"),
)
"""In the order of the tables."""


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0]


def _package_version(package: str) -> str:
    """Of a Debian package; empty elsewhere."""
    if shutil.which("dpkg-query") is None:
        return ""
    return _first_line(["dpkg-query", "-W", "-f", "${Version}", package])
