# SPDX-License-Identifier: Apache-2.0
"""From what the kernel says about its devices to the rows that the data path reads. Pure.

A VLAN device becomes the device that really transmits plus the tags to push, as far as the data path can
push them: one 802.1Q tag, or an 802.1ad tag with an 802.1Q tag inside. Any other VLAN device (three tags,
other tag types, an egress priority map) stands for itself: frames are given to it, and it tags them itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from clearway.linux.rtnetlink import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_OPTIMISTIC,
    IFA_F_SECONDARY,
    IFA_F_TENTATIVE,
    RT_SCOPE_UNIVERSE,
    VLAN_8021AD,
    VLAN_8021Q,
    Address,
    Link,
    Vlan,
)

_PUSHABLE = ([VLAN_8021Q], [VLAN_8021AD, VLAN_8021Q])

NO_ADDRESS4 = bytes(4)
NO_ADDRESS6 = bytes(16)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """struct device (bpf/types.h); the key is the ifindex as the routing table names it."""

    lower: int
    vlan_outer: int = 0
    vlan_inner: int = 0
    address4: bytes = NO_ADDRESS4
    address6: bytes = NO_ADDRESS6
    xdp_transmit: bool = False
    proved: bool = False


@dataclass(frozen=True, slots=True)
class VlanKey:
    """struct vlan_key: the device that received, and the tags."""

    ifindex: int
    outer: int
    inner: int


@dataclass(frozen=True, slots=True)
class PortRow:
    """struct port: the link address of a device with an XDP program."""

    ifindex: int
    mac: bytes
    listened: bool = False


@dataclass(frozen=True)
class Rows:
    """Everything the data path is told about devices."""

    devices: Mapping[int, DeviceRow] = field(default_factory=dict)
    vlans: Mapping[VlanKey, int] = field(default_factory=dict)
    ports: Mapping[int, PortRow] = field(default_factory=dict)  # by slot


@dataclass(frozen=True, slots=True)
class Way:
    """How frames leave through a device: who transmits, and the tags they get, outermost first."""

    lower: int
    tags: tuple[int, ...] = ()


def way_out(link: Link, links: Mapping[int, Link], shaped: Collection[int] = ()) -> Way:
    """Resolve a VLAN device to what is below it; every other device is its own way out. shaped: devices
    of which tc looks at what leaves; a VLAN device whose frames are to go through one stands for itself.
    """
    below = _look_below(link, links)
    if below is None or any(device.ifindex in shaped for device in below.vlans):
        return Way(link.ifindex)
    if [tag.protocol for tag in below.tags] not in _PUSHABLE or any(tag.priorities for tag in below.tags):
        return Way(link.ifindex)
    return Way(below.physical.ifindex, tuple(tag.vid for tag in below.tags))


def downwards(link: Link, links: Mapping[int, Link]) -> list[Link]:
    """The device and, of a VLAN device, what is below it, as far as that is known here."""
    found = [link]
    while link.vlan is not None and link.lower in links and len(found) <= len(links):
        link = links[link.lower]
        found.append(link)
    return found


@dataclass(frozen=True, slots=True)
class _Below:
    """What is below a VLAN device. `vlans`: those on the way, itself first. `tags`: theirs, outermost
    first. `up`: they all are.
    """

    physical: Link
    vlans: tuple[Link, ...]
    tags: tuple[Vlan, ...]
    up: bool


def _look_below(link: Link, links: Mapping[int, Link]) -> _Below | None:
    """None for a device that is no VLAN device, or whose lower device is not known here."""
    *vlans, physical = downwards(link, links)
    if not vlans or physical.vlan is not None:
        return None
    tags = tuple(device.vlan for device in reversed(vlans) if device.vlan is not None)
    return _Below(physical, tuple(vlans), tags, all(device.up for device in vlans))


def vlan_rows(links: Mapping[int, Link]) -> dict[VlanKey, int]:
    """Which VLAN device frames with some tags belong to. Two devices that claim the same tags get none.

    A device that is down gets no row: its frames go to Linux, which drops them as it always did.
    """
    claims: dict[VlanKey, list[int]] = {}
    for link in links.values():
        below = _look_below(link, links)
        if below is None or len(below.tags) > 2:
            continue
        outer, inner = below.tags[0].vid, below.tags[1].vid if len(below.tags) == 2 else 0
        claim = claims.setdefault(VlanKey(below.physical.ifindex, outer, inner), [])
        claim.append(link.ifindex if below.up else 0)
    return {key: claim[0] for key, claim in claims.items() if len(claim) == 1 and claim[0]}


def primary_address4(addresses: Iterable[Address]) -> bytes:
    """What Linux would masquerade with (inet_select_addr): the first primary address of global scope."""
    for address in addresses:
        if (
            isinstance(address.ip, IPv4Address)
            and address.scope == RT_SCOPE_UNIVERSE
            and not address.flags & IFA_F_SECONDARY
        ):
            return address.ip.packed
    return NO_ADDRESS4


def primary_address6(addresses: Iterable[Address]) -> bytes:
    """The global address to send from: not deprecated, not temporary; of several the oldest, which stays.

    Linux chooses by the destination (RFC 6724); a row has one address, so the choice is the device's.
    """
    usable = [address for address in addresses if _usable6(address)]
    return min(usable, key=_preference6).ip.packed if usable else NO_ADDRESS6


def _usable6(address: Address) -> bool:
    if not isinstance(address.ip, IPv6Address) or address.scope != RT_SCOPE_UNIVERSE:
        return False
    if address.flags & IFA_F_DADFAILED:
        return False
    return not address.flags & IFA_F_TENTATIVE or bool(address.flags & IFA_F_OPTIMISTIC)


def _preference6(address: Address) -> tuple[bool, bool, int, bytes]:
    temporary = bool(address.flags & IFA_F_SECONDARY)
    return bool(address.flags & IFA_F_DEPRECATED), temporary, address.created, address.ip.packed


def port_rows(
    links: Mapping[int, Link], attached: Collection[int], slots: int, listened: Collection[int] = ()
) -> tuple[dict[int, PortRow], list[Link]]:
    """Link addresses of the devices with these ifindexes, by slot; and those that found theirs taken.
    listened: devices that packet sockets listen to.
    """
    rows: dict[int, PortRow] = {}
    homeless: list[Link] = []
    for ifindex in sorted(attached):
        link = links.get(ifindex)
        if link is None or len(link.mac) != 6:
            continue
        if ifindex % slots in rows:
            homeless.append(link)
        else:
            rows[ifindex % slots] = PortRow(ifindex, link.mac, ifindex in listened)
    return rows, homeless


def device_rows(
    links: Mapping[int, Link],
    addresses: Iterable[Address],
    xdp_transmit: Mapping[int, bool],
    proved: Mapping[int, str] | None = None,
    shaped: Collection[int] = (),
) -> dict[int, DeviceRow]:
    """A row for every device. `xdp_transmit`: does it take frames that XDP redirects; unknown means no.
    `proved`: names by which the proof of Linux' rules knows devices. `shaped`: devices of which tc looks at
    what leaves.
    """
    by_device: dict[int, list[Address]] = {}
    for address in addresses:
        by_device.setdefault(address.ifindex, []).append(address)
    rows = {}
    for link in links.values():
        way = way_out(link, links, shaped)
        own = by_device.get(link.ifindex, [])
        rows[link.ifindex] = DeviceRow(
            lower=way.lower,
            vlan_outer=way.tags[0] if way.tags else 0,
            vlan_inner=way.tags[1] if len(way.tags) > 1 else 0,
            address4=primary_address4(own),
            address6=primary_address6(own),
            xdp_transmit=xdp_transmit.get(way.lower, False),
            proved=(proved or {}).get(link.ifindex) == link.name,
        )
    return rows
