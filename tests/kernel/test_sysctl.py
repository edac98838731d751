"""Kernel parameters are those of the namespace."""

from __future__ import annotations

import pytest

from tests.lab import Namespace
from tnat64d.kernel import sysctl

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("value", [0, 1])
def test_a_parameter_is_read_in_the_namespace_of_the_caller(host: Namespace, value: int) -> None:
    host.write_sysctl("net.ipv4.ip_forward", value)
    assert host.call(sysctl.read, "net.ipv4.ip_forward") == value


def test_an_interface_with_a_dot_in_its_name_has_its_parameters(host: Namespace) -> None:
    host.run(["ip", "link", "add", "br.7", "type", "bridge"])
    assert host.call(sysctl.read, "net/ipv4/conf/br.7/forwarding") is not None


def test_a_parameter_that_does_not_exist_or_is_no_number_is_none(host: Namespace) -> None:
    assert host.call(sysctl.read, "net.ipv4.no_such_thing") is None
    assert host.call(sysctl.read, "net.ipv4.tcp_congestion_control") is None
