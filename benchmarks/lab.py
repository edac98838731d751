"""The hosts of the benchmark, and the servers that every peer is measured against.

    client ──────── server: owns the whole prefix (an ideal NAT64), so that nothing but the peer costs time
                    nginx with one small file on port HTTP, `load serve` on port LOAD

Three kinds of client, one lab each, of the same shape:

    PlainLab   an IPv6-only host, for what needs no help of the kernel (direct IPv6, LD_PRELOAD)
    RuledLab   the rules of `tnat64d setup` stand: every proxy is reached by them, on the daemon's port
    ClatLab    forwards, and the server knows the way back to the CLAT's own prefix

Owns hosts, routes, rules, servers, and building `load`. Refuses to own the peers.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.lab import CLIENT_V6, IdealNat64Lab, LabError, wait_until

LISTEN_PORT = 6464
"""Where the rules send every connection, and where each proxy listens."""

CLAT_V6_PREFIX = "2001:db8:2:c1a7::/64"
WIDE_PORTS = "10000 65000"
"""Enough ports for connections at ten thousand a second, those in TIME_WAIT included."""

ANSWER_TIMEOUT_S = 0.25
SERVER_FILES = 20_000
_SOURCE = Path(__file__).with_name("load.c")
_COMPILE = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread")
_PAGE = b"a small page: what a short exchange carries\n"
_NGINX_CONF = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/http.pid;
error_log {directory}/http.log error;
events {{ worker_connections {files}; multi_accept on; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    open_file_cache max=10;
    client_body_temp_path {directory}/http-body;
    proxy_temp_path {directory}/http-proxy;
    fastcgi_temp_path {directory}/http-fastcgi;
    uwsgi_temp_path {directory}/http-uwsgi;
    scgi_temp_path {directory}/http-scgi;
    server {{ listen [::]:{port} backlog=32768 ipv6only=off; root {root}; }}
}}
"""


class Service(enum.IntEnum):
    """A server behind the NAT64, by its port."""

    HTTP = 80
    LOAD = 7000


@contextlib.contextmanager
def compiled_load() -> Iterator[Path]:
    """The program `load`, in a directory of its own that goes afterwards. Raises LabError with gcc's words."""
    with tempfile.TemporaryDirectory(prefix="tnat64d-load-") as directory:
        program = Path(directory) / "load"
        try:
            done = subprocess.run([*_COMPILE, "-o", program, _SOURCE], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise LabError("gcc is not installed, and the load generator needs it") from None
        if done.returncode != 0:
            raise LabError(f"{_SOURCE}:\n{done.stderr}")
        yield program


class PlainLab(IdealNat64Lab):
    """An IPv6-only host and the servers."""

    def __init__(self, load: Path) -> None:
        """`load`: the compiled load.c."""
        super().__init__()
        self.load = load

    def build(self) -> None:
        """Hosts, then servers that answer."""
        super().build()
        for namespace in (self.client, self.server):
            namespace.write_sysctl("net.ipv4.ip_local_port_range", WIDE_PORTS)
            namespace.write_sysctl("net.ipv4.ip_local_reserved_ports", LISTEN_PORT)
            namespace.write_sysctl("net.ipv4.tcp_tw_reuse", 1)
            namespace.write_sysctl("net.core.somaxconn", 32768)
            namespace.write_sysctl("net.ipv4.tcp_max_syn_backlog", 32768)
        self.conf.write_text(f"nat64_prefix = {self.prefix.partition('/')[0]}\n")
        self.load_server = self.server.start([self.load, "serve", str(Service.LOAD.value), self.counter])
        self.load_server.wait_for_output("^ready$")
        self._start_http()

    @property
    def conf(self) -> Path:
        """A tnat64.conf that the original and the daemon both read."""
        return self.directory / "tnat64.conf"

    @property
    def counter(self) -> Path:
        """The file in which `load` counts the bytes that have arrived."""
        return self.directory / "arrived-bytes"

    def _start_http(self) -> None:
        root = self.directory / "www"
        root.mkdir()
        (root / "small").write_bytes(_PAGE)
        root.chmod(0o755)
        self.directory.chmod(0o755)  # nginx's workers are not root
        conf = self.directory / "http.conf"
        conf.write_text(
            _NGINX_CONF.format(directory=self.directory, root=root, port=Service.HTTP.value, files=SERVER_FILES)
        )
        try:
            nginx = self.server.start(["nginx", "-c", conf])
            wait_until(
                lambda: nginx.returncode is not None or self.answers(self.server_nat64, Service.HTTP), "nginx"
            )
        except FileNotFoundError:
            raise LabError("nginx is not installed, and the benchmark's web server needs it") from None
        if nginx.returncode is not None:
            raise LabError(
                f"the web server does not start: {nginx.stderr}{(self.directory / 'http.log').read_text()}"
            )

    def answers(self, address: str, service: Service) -> bool:
        """Whether a byte comes back from `service` when the client goes by `address` (either family)."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        request = b"e" if service is Service.LOAD else b"GET /small HTTP/1.0\r\n\r\n"
        with self.client.socket(family) as connection:
            connection.settimeout(ANSWER_TIMEOUT_S)
            try:
                connection.connect((address, service.value))
                connection.sendall(request)
                return bool(connection.recv(1))
            except OSError:
                return False


class RuledLab(PlainLab):
    """What connects over IPv4 is redirected to LISTEN_PORT, by the daemon's own rules."""

    settings = ""
    """A tnat64d.toml of which `setup` reads [rules] and the port."""

    def build(self) -> None:
        """As usual, then `tnat64d setup`."""
        super().build()
        settings = self.directory / "setup.toml"
        settings.write_text(self.settings)
        self.client.run([*tnat64d("setup"), "-f", self.conf, "-c", settings])
        # A quarter of a million connections of half a minute, each tracked for two minutes more, fill the table
        # (nf_conntrack_max), and then SYNs are dropped: seconds that are nobody's.
        self.client.write_sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", 1)


class ClatLab(PlainLab):
    """Ready for a CLAT in the client."""

    def build(self) -> None:
        """As usual, then the ways from and to the translator."""
        super().build()
        self.client.write_sysctl("net.ipv4.ip_forward", 1)
        self.client.write_sysctl("net.ipv6.conf.all.forwarding", 1)
        self.ip("server", f"route add {CLAT_V6_PREFIX} via {CLIENT_V6}")


COMPILED = Path(__file__).parents[1] / ".stamps/compiled"
"""Where `make bench` builds tnat64d with its data plane compiled."""


def tnat64d(command: str, *, compiled: bool = False) -> list[str]:
    """The command line of the tnat64d of this checkout."""
    if compiled:
        return ["env", f"PYTHONPATH={COMPILED}", sys.executable, "-P", "-m", "tnat64d", command]
    return [sys.executable, "-m", "tnat64d", command]
