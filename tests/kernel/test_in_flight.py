"""Descriptors that wait in a message: who holds them, for how long, and what is opened after."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tnat64d.kernel import in_flight

HOLDING = """
import os, signal, sys
from tnat64d.kernel import in_flight
in_flight.put([int(sys.argv[1])])
print("holds", flush=True)
signal.pause()
"""


def hangs_up(sock: socket.socket, timeout_s: float) -> bool:
    return bool(select.select([sock], [], [], timeout_s)[0])


def test_what_is_in_flight_is_open_though_no_descriptor_shows_it() -> None:
    near, far = socket.socketpair()
    with near:
        holder = in_flight.put([far.detach()])
        assert not hangs_up(near, 0.0)
        os.close(holder)
        assert hangs_up(near, 5.0)


def test_it_is_let_go_with_the_process_however_that_ends() -> None:
    near, far = socket.socketpair()
    with near, far:
        command = [sys.executable, "-c", HOLDING, str(far.fileno())]
        process = subprocess.Popen(command, pass_fds=[far.fileno()], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"holds\n"
        far.close()
        assert not hangs_up(near, 0.0)
        process.send_signal(signal.SIGKILL)
        assert hangs_up(near, 5.0)
        process.wait()
        process.stdout.close()


def test_several_are_closed_in_the_order_in_which_they_were_given() -> None:
    """Each end of a pipe that is closed tells a program that waits for both; one of them waits for the other."""
    order = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True, check=True)
    assert order.stdout == "first second\n"


ORDER = """
import os, select, socket
from tnat64d.kernel import in_flight
pairs = [socket.socketpair() for _ in range(2)]
epoll = select.epoll()
names = {}
for name, (near, far) in zip(("first", "second"), pairs):
    names[near.fileno()] = name
    epoll.register(near.fileno(), select.EPOLLHUP | select.EPOLLET)
holder = in_flight.put([far.detach() for _, far in pairs])
epoll.poll(0)
os.close(holder)
print(*(names[fd] for fd, _ in epoll.poll(1)))  # in the order in which they became ready
"""


def test_after_filling_every_new_descriptor_is_higher(tmp_path: Path) -> None:
    code = """
import os
from tnat64d.kernel import in_flight
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(9)]
for fd in held[:-1:2]:
    os.close(fd)
in_flight.fill_below(held[-1])
print(all(os.open("/dev/null", os.O_RDONLY) > held[-1] for _ in range(9)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
