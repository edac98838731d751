"""tnat64d: transparent TCP proxy from IPv4-only programs to IPv4 servers behind NAT64."""

__version__ = "0.1.0"
