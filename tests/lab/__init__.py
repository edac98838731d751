"""Network laboratories for the tests and the demo, made of network namespaces and real programs.

    with Nat64Lab() as lab:
        lab.start_servers()
        lab.client.run(["tnat64", "curl", f"http://{SERVER_V4}/"])

Owns hosts, links, a real NAT64, servers and IPv4-only clients. Knows nothing of tnat64d. Needs root.
"""

from tests.lab.lab import Lab
from tests.lab.namespace import LabError, Namespace, Process, wait_until
from tests.lab.nat64 import (
    CLIENT_V4,
    CLIENT_V6,
    PREFIX,
    ROUTER_V4,
    ROUTER_V6,
    SERVER_GATEWAY_V4,
    SERVER_V4,
    IdealNat64Lab,
    Nat64Failure,
    Nat64Lab,
    nat64_address,
)
from tests.lab.servers import Port

__all__ = [
    "CLIENT_V4",
    "CLIENT_V6",
    "PREFIX",
    "ROUTER_V4",
    "ROUTER_V6",
    "SERVER_GATEWAY_V4",
    "SERVER_V4",
    "IdealNat64Lab",
    "Lab",
    "LabError",
    "Namespace",
    "Nat64Failure",
    "Nat64Lab",
    "Port",
    "Process",
    "nat64_address",
    "wait_until",
]
