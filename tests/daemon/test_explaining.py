"""The requests `why` and `files`: their arguments, and what the daemon answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab import SERVER_V4, IdealNat64Lab, Port, wait_until
from tests.lab.daemon import Daemon, Tables, dial, echo, expect_reset
from tnat64d.cli import inputs
from tnat64d.core.facts import Told
from tnat64d.core.files import Files
from tnat64d.daemon import explaining
from tnat64d.errors import Tnat64Error


def ask(daemon: Daemon, **arguments: Any) -> Told:
    return explaining.ask(daemon.control_socket, **arguments)


def test_it_tells_the_way_the_state_of_the_scope_and_the_last_failure(ideal_lab: IdealNat64Lab) -> None:
    settings: Tables = {"proxy": {"workers": 2}, "policy": {"sticky_scope": "destination"}}
    with Daemon(ideal_lab.client, ideal_lab.directory, settings=settings) as daemon:
        said = ask(daemon, address=SERVER_V4, port=int(Port.ECHO))
        assert (said.state, said.pid, said.listener) == ("serving", daemon.process.pid, "127.0.0.1:6464")
        assert said.files == Files(
            inputs.load_config(str(daemon.conf)), inputs.load_settings(str(daemon.settings))
        )
        assert (said.is_sticky, said.failure) == (False, None)
        with dial(ideal_lab.client, Port.ECHO) as sock:
            echo(sock)
        wait_until(lambda: ask(daemon, address=SERVER_V4).is_sticky, "the scope is sticky")
        assert not ask(daemon, address="198.51.100.11").is_sticky
        expect_reset(ideal_lab.client, Port.REFUSED)
        wait_until(lambda: ask(daemon, address=SERVER_V4).failure, "the failure is known")
        failure = ask(daemon, address=SERVER_V4, port=int(Port.REFUSED)).failure
        assert failure is not None
        assert (failure.ipv4_error, failure.nat64_error, failure.because) == (0, 111, "NAT64 sticky")


def test_a_failure_is_remembered_beyond_the_worker_that_met_it(ideal_lab: IdealNat64Lab) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory, settings={"proxy": {"workers": 1}}) as daemon:
        for port in range(20000, 20040):
            expect_reset(ideal_lab.client, port)
        wait_until(lambda: ask(daemon, address=SERVER_V4, port=20039).failure, "the last failure is known")
        assert all(ask(daemon, address=SERVER_V4, port=port).failure for port in range(20000, 20040))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, '"why" needs an IPv4 "address"'),
        ({"address": "2001:db8::1"}, '"why" needs an IPv4 "address"'),
        ({"address": ["192.0.2.1"]}, '"why" needs an IPv4 "address"'),
        ({"address": "192.0.2.1", "port": 65536}, '"port" must be a number up to 65535, 0 for none'),
        ({"address": "192.0.2.1", "port": "http"}, '"port" must be a number up to 65535, 0 for none'),
    ],
)
def test_arguments_that_make_no_sense_are_refused_with_a_sentence(
    ideal_lab: IdealNat64Lab, arguments: dict[str, object], sentence: str
) -> None:
    with Daemon(ideal_lab.client, ideal_lab.directory) as daemon, pytest.raises(Tnat64Error, match=sentence):
        ask(daemon, **arguments)
