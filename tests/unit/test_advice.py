# SPDX-License-Identifier: Apache-2.0
"""What the daemon warns of: packets that clearway should see and does not take."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from clearway.daemon.advice import about_endpoints, about_firewall, about_forwarding, about_nat
from clearway.linux.nftables import Chain
from clearway.linux.picture import Picture
from clearway.linux.rtnetlink import Address, Hop, Link, Vlan
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


# ---- forwarding ----


@pytest.mark.parametrize(
    ("addresses", "taken", "families"),
    [
        ({2: "10.0.0.1", 3: "192.0.2.1"}, ("eth0", "uplink"), [4]),
        ({2: "fd00::1", 3: "2001:db8::1"}, ("eth0", "uplink"), [6]),
        ({2: "10.0.0.1", 3: "192.0.2.1"}, ("eth0",), []),
        ({2: "fe80::1", 3: "fe80::2"}, ("eth0", "uplink"), []),
    ],
)
def test_forwarding_that_is_off_between_interfaces(
    addresses: dict[int, str], taken: tuple[str, ...], families: list[int]
) -> None:
    held = [Address(ifindex, ip_address(text), 0, 0, 0) for ifindex, text in addresses.items()]
    picture = Picture(LINKS, {(one.ifindex, one.ip): one for one in held})
    wanted = config_from_data({"interfaces": [{"name": name} for name in taken]})
    found = about_forwarding(wanted, picture, lambda family: f"net.{family}")
    assert found == [
        f"interfaces: Linux forwards no IPv{family} between them: sysctl -w net.{family}=1"
        for family in families
    ]
    assert about_forwarding(wanted, picture, lambda _family: None) == []


# ---- firewall ----


def filtering(*interfaces: str, **rule: Any) -> Config:
    rules = [{"name": "some", "action": "accept", **rule}]
    return config_from_data(
        {"interfaces": [{"name": one} for one in interfaces], "firewall": {"rules": rules}}
    )


def test_without_a_firewall_there_is_nothing_to_say_about_it() -> None:
    assert about_firewall(config("eth0"), LINKS, [Chain("ip nat", "post", "nat", 1)]) == []


def test_firewall_without_interfaces() -> None:
    [sentence] = about_firewall(filtering(), LINKS, [])
    assert "nothing is judged" in sentence


@pytest.mark.parametrize(
    ("asked", "said"),
    [("uplink", 1), (["uplink", "uplink.7"], 1), (["uplink", "eth0"], 0), ("eth0.7", 0), ("gone", 0)],
)
def test_rule_about_packets_that_are_not_judged(asked: str | list[str], said: int) -> None:
    found = about_firewall(filtering("eth0", interface_in=asked), LINKS, [])
    assert len(found) == said
    assert all(one.startswith("firewall rule some: what comes in by uplink") for one in found)


def test_port_of_a_bridge_is_not_the_bridge() -> None:
    links = {**LINKS, 8: replace(link(8, "port"), master=6)}
    [sentence] = about_firewall(filtering("port"), links, [])
    assert "list br0 instead" in sentence
    assert about_firewall(filtering("port", "br0"), links, []) == []
    assert about_firewall(filtering("eth0"), links, []) == []


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan"])
def test_device_with_an_address_of_its_own_on_a_listed_one(kind: str) -> None:
    links = {**LINKS, 8: link(8, "vrrp.51", kind, lower=2)}
    [sentence] = about_firewall(filtering("eth0"), links, [])
    assert sentence == "firewall: what vrrp.51 takes from eth0 is not judged; add vrrp.51"
    assert about_firewall(filtering("eth0", "vrrp.51"), links, []) == []
    assert about_firewall(filtering("uplink"), links, []) == []


def test_linux_translates_what_it_does_not_see() -> None:
    chains = [
        Chain("ip nat", "POSTROUTING", "nat", 2),
        Chain("ip nat", "empty", "nat", 0),
        Chain("ip f", "in", "filter", 3),
    ]
    [sentence] = about_firewall(filtering("eth0"), LINKS, chains)
    assert "chain POSTROUTING of table ip nat" in sentence
