"""A stranger's socket that holds up whoever closes it last: it lingers, and its peer reads nothing."""

from __future__ import annotations

MAKE_LINGERING_AS_NOBODY = """
import os, socket, struct, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    lingering = socket.create_connection(listener.getsockname())
    reads_nothing, _ = listener.accept()
lingering.setblocking(False)
try:
    while True:
        lingering.send(b"x" * 65536)
except BlockingIOError:
    lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
"""The beginning of a program: leaves `lingering`, and the process as user nobody."""
