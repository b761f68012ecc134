# SPDX-License-Identifier: Apache-2.0
"""From a listing of devices and addresses to the rows that the data path reads."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearway.linux.mirror import (
    NO_ADDRESS4,
    NO_ADDRESS6,
    DeviceRow,
    PortRow,
    VlanKey,
    Way,
    device_rows,
    port_rows,
    primary_address4,
    primary_address6,
    vlan_rows,
    way_out,
)
from clearway.linux.rtnetlink import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_OPTIMISTIC,
    IFA_F_SECONDARY,
    IFA_F_TENTATIVE,
    VLAN_8021AD,
    VLAN_8021Q,
    Address,
    Link,
    Vlan,
)

LINK_SCOPE = 253
MAC = bytes.fromhex("020000000001")


def link(
    ifindex: int, name: str = "eth", *, lower: int = 0, vlan: Vlan | None = None, up: bool = True
) -> Link:
    return Link(ifindex, name, up, up, True, MAC, 1500, "vlan" if vlan else "", lower, vlan)


def tagged(
    ifindex: int,
    lower: int,
    vid: int,
    protocol: int = VLAN_8021Q,
    *,
    up: bool = True,
    priorities: bool = False,
) -> Link:
    return link(ifindex, f"vlan{vid}", lower=lower, vlan=Vlan(vid, protocol, priorities), up=up)


def by_index(*links: Link) -> dict[int, Link]:
    return {item.ifindex: item for item in links}


def address(text: str, *, ifindex: int = 1, scope: int = 0, flags: int = 0, created: int = 0) -> Address:
    return Address(ifindex, ip_address(text), scope, flags, created)


# ---- devices ----


def test_plain_device_transmits_itself() -> None:
    rows = device_rows(by_index(link(3)), [address("10.0.0.1", ifindex=3)], {3: True})
    assert rows == {3: DeviceRow(lower=3, address4=bytes([10, 0, 0, 1]), xdp_transmit=True)}


def test_device_of_unknown_features_does_not_take_redirected_frames() -> None:
    assert not device_rows(by_index(link(3)), [], {})[3].xdp_transmit


def test_vlan_device_is_the_device_below_and_a_tag() -> None:
    links = by_index(link(3), tagged(7, 3, 100))
    row = device_rows(links, [address("10.7.0.1", ifindex=7)], {3: True, 7: False})[7]
    assert row == DeviceRow(lower=3, vlan_outer=100, address4=bytes([10, 7, 0, 1]), xdp_transmit=True)


@pytest.mark.parametrize(("shaped", "way"), [({3}, Way(3, (100, 200))), ({7}, Way(8)), ({8}, Way(8))])
def test_vlan_device_whose_queue_looks_at_frames_gets_them(shaped: set[int], way: Way) -> None:
    links = by_index(link(3), tagged(7, 3, 100, VLAN_8021AD), tagged(8, 7, 200))
    assert way_out(links[8], links, shaped) == way
    assert device_rows(links, [], {3: True}, shaped=shaped)[8].lower == way.lower


def test_qinq_device_is_the_physical_device_and_two_tags() -> None:
    links = by_index(link(3), tagged(7, 3, 100, VLAN_8021AD), tagged(8, 7, 200))
    assert way_out(links[8], links) == Way(3, (100, 200))


@pytest.mark.parametrize(
    "links",
    [
        by_index(link(3), tagged(7, 3, 100, VLAN_8021AD)),
        by_index(link(3), tagged(6, 3, 100), tagged(7, 6, 200)),
        by_index(link(3), tagged(7, 3, 100, priorities=True)),
        by_index(link(3), tagged(5, 3, 1, VLAN_8021AD), tagged(6, 5, 2), tagged(7, 6, 3)),
        by_index(tagged(7, 3, 100)),
    ],
    ids=["802.1ad alone", "802.1Q in 802.1Q", "priority map", "three tags", "lower device elsewhere"],
)
def test_what_cannot_be_tagged_here_tags_itself(links: dict[int, Link]) -> None:
    assert way_out(links[7], links) == Way(7)
    assert not device_rows(links, [], {3: True})[7].xdp_transmit


def test_devices_below_each_other_do_not_hang_anything() -> None:
    links = by_index(tagged(7, 8, 100), tagged(8, 7, 200))
    assert way_out(links[7], links) == Way(7)
    assert vlan_rows(links) == {}


# ---- VLANs ----


def test_frames_find_the_device_of_their_tags() -> None:
    links = by_index(link(3), tagged(7, 3, 100, VLAN_8021AD), tagged(8, 7, 200), tagged(9, 3, 101))
    assert vlan_rows(links) == {VlanKey(3, 100, 0): 7, VlanKey(3, 100, 200): 8, VlanKey(3, 101, 0): 9}


def test_vlan_device_that_is_down_is_left_to_linux() -> None:
    links = by_index(link(3), tagged(7, 3, 100, up=False), tagged(8, 7, 200))
    assert vlan_rows(links) == {}


def test_two_devices_of_the_same_tag_are_left_to_linux() -> None:
    links = by_index(link(3), tagged(7, 3, 100), tagged(8, 3, 100, VLAN_8021AD))
    assert vlan_rows(links) == {}


# ---- addresses ----


def test_first_primary_global_ipv4_address_counts() -> None:
    found = [
        address("169.254.0.1", scope=LINK_SCOPE),
        address("10.0.0.9", flags=IFA_F_SECONDARY),
        address("fe80::1", scope=LINK_SCOPE),
        address("10.0.0.2"),
        address("10.0.0.1"),
    ]
    assert primary_address4(found) == bytes([10, 0, 0, 2])


def test_no_usable_address_is_zero() -> None:
    assert primary_address4([address("127.0.0.1", scope=254)]) == NO_ADDRESS4
    assert primary_address6([address("fe80::1", scope=LINK_SCOPE), address("10.0.0.1")]) == NO_ADDRESS6


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (address("2001:db8::9", created=9), address("2001:db8::1", flags=IFA_F_DEPRECATED)),
        (address("2001:db8::9", created=9), address("2001:db8::1", flags=IFA_F_SECONDARY)),
        (address("2001:db8::9", created=1), address("2001:db8::1", created=2)),
        (address("2001:db8::9", created=9), address("2001:db8::1", flags=IFA_F_TENTATIVE)),
        (address("2001:db8::9", created=9), address("2001:db8::1", flags=IFA_F_DADFAILED)),
        (
            address("2001:db8::9", created=1, flags=IFA_F_TENTATIVE | IFA_F_OPTIMISTIC),
            address("2001:db8::1", created=2),
        ),
    ],
    ids=["deprecated", "temporary", "younger", "tentative", "duplicate", "optimistic"],
)
def test_ipv6_address_to_send_from(better: Address, worse: Address) -> None:
    assert primary_address6([worse, better]) == primary_address6([better, worse]) == better.ip.packed


# ---- ports ----


def test_port_has_the_link_address_of_its_device() -> None:
    assert port_rows(by_index(link(3), link(4)), {3}, 4096) == ({3: PortRow(3, MAC)}, [])


def test_device_without_ethernet_address_has_no_port() -> None:
    tunnel = Link(3, "tun0", True, True, False, b"", 1500)
    assert port_rows({3: tunnel}, {3}, 4096) == ({}, [])


@given(st.sets(st.integers(1, 200), max_size=40), st.integers(1, 16))
def test_every_device_has_its_port_or_is_named(ifindexes: set[int], slots: int) -> None:
    rows, homeless = port_rows(by_index(*map(link, ifindexes)), ifindexes, slots)
    assert {row.ifindex for row in rows.values()} | {item.ifindex for item in homeless} == ifindexes
    assert len(rows) + len(homeless) == len(ifindexes)
    assert all(row.ifindex % slots == slot for slot, row in rows.items())
    # the slot belongs to the first
    assert all(rows[item.ifindex % slots].ifindex < item.ifindex for item in homeless)
