# SPDX-License-Identifier: Apache-2.0
"""What the daemon warns of: packets that clearway should see and does not take."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from clearway.daemon.advice import about_endpoints, about_nat
from clearway.linux.rtnetlink import Hop, Link, Vlan
from clearway.model import Config, config_from_data


def link(ifindex: int, name: str, kind: str = "", lower: int = 0, vlan: int = 0) -> Link:
    tag = Vlan(vlan, 0x8100, False) if vlan else None
    return Link(ifindex, name, True, True, True, bytes(6), 1500, kind, lower, tag)


LINKS = {
    one.ifindex: one
    for one in (
        link(1, "lo"),
        link(2, "eth0"),
        link(3, "uplink"),
        link(4, "eth0.7", "vlan", 2, 7),
        link(5, "uplink.7", "vlan", 3, 7),
        link(6, "br0", "bridge"),
        link(7, "br0.7", "vlan", 6, 7),
    )
}


def config(interface: str) -> Config:
    rule = {"name": "out", "source": "10.0.0.0/8", "interface": interface, "masquerade": True}
    return config_from_data({"interfaces": [{"name": "eth0"}], "nat": [rule]})


@pytest.mark.parametrize("interface", ["uplink", "uplink.7"])
def test_replies_to_nat_that_clearway_does_not_see(interface: str) -> None:
    assert about_nat(config(interface), LINKS) == [
        f"nat out: replies come in by {interface}, which is not among interfaces: they go to Linux; add it"
    ]


@pytest.mark.parametrize("interface", ["eth0", "eth0.7", "br0", "br0.7", "absent"])
def test_replies_to_nat_that_it_may_see(interface: str) -> None:
    assert about_nat(config(interface), LINKS) == []


def test_endpoints_behind_an_interface_that_is_not_listed() -> None:
    hops = [Hop(ifindex, ip_address("10.0.0.1")) for ifindex in (1, 2, 3, 4, 99)]
    [sentence] = about_endpoints(config("eth0"), hops, LINKS)
    assert "through uplink, which is not among interfaces" in sentence
