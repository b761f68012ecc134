# SPDX-License-Identifier: Apache-2.0
"""Links, addresses, neighbours and routes as the kernel tells them, reduced to what forwarding depends on.

Whatever does not matter for forwarding (statistics, lifetimes, timers) is left out on purpose: two records
that are equal mean that nothing has to be done.
Layouts: include/uapi/linux/{if_link,if_addr,neighbour,rtnetlink}.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from clearway.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Conversation,
    Message,
    attribute,
    attributes,
    text,
    u16,
    u32,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_GETROUTE = 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

RTNLGRP_LINK = 1
RTNLGRP_NEIGH = 3
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV4_ROUTE = 7
RTNLGRP_IPV4_RULE = 8
RTNLGRP_IPV6_IFADDR = 9
RTNLGRP_IPV6_ROUTE = 11
RTNLGRP_IPV6_RULE = 19
RTNLGRP_NEXTHOP = 32

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_NOARP = 0x80
IFF_LOWER_UP = 0x10000

RT_SCOPE_UNIVERSE = 0

IFA_F_SECONDARY = 0x01  # IPv4; for IPv6 the same bit says: temporary
IFA_F_OPTIMISTIC = 0x04
IFA_F_DADFAILED = 0x08
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40

NUD_PERMANENT = 0x80
NUD_VALID = 0xDE  # permanent, noarp, reachable, probe, stale, delay (include/net/neighbour.h)

NTF_USE = 0x01
NTF_EXT_MANAGED = 0x01  # the kernel keeps the entry resolved; since 5.16

RTN_UNICAST = 1

VLAN_8021Q = 0x8100
VLAN_8021AD = 0x88A8

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK = 1, 3, 4, 5
_IFLA_MASTER, _IFLA_WIRELESS, _IFLA_LINKINFO = 10, 11, 18
_IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 29, 37
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_BR_NF_CALL = {4: 36, 6: 37}
_IFLA_VLAN_ID, _IFLA_VLAN_EGRESS_QOS, _IFLA_VLAN_PROTOCOL = 1, 3, 5
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 6, 8
_NDA_DST, _NDA_LLADDR, _NDA_PROTOCOL, _NDA_FLAGS_EXT = 1, 2, 12, 15
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MARK, _RTA_VIA = 1, 4, 5, 16, 18

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_RTMSG = struct.Struct("=BBBBBBBBI")

Ip = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Vlan:
    """What a VLAN device adds to the device below it."""

    vid: int
    protocol: int  # VLAN_8021Q or VLAN_8021AD
    priorities: bool  # it has an egress priority map


@dataclass(frozen=True, slots=True)
class Link:
    """A network device."""

    ifindex: int
    name: str
    up: bool
    carrier: bool
    resolves: bool  # its neighbours are asked for by ARP or neighbour discovery
    mac: bytes
    mtu: int
    kind: str = ""
    lower: int = 0  # ifindex of the device below; 0: none, or in another network namespace
    vlan: Vlan | None = None
    master: int = 0  # ifindex of the bridge, bond, VRF... that it belongs to
    filters: frozenset[int] = frozenset()  # families whose rules a bridge applies to its frames by itself


@dataclass(frozen=True, slots=True)
class Address:
    """An address of this machine."""

    ifindex: int
    ip: Ip
    scope: int
    flags: int
    created: int  # hundredths of a second since boot


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table. `mac` is None while the kernel does not know it."""

    ifindex: int
    ip: Ip
    mac: bytes | None
    state: int
    managed: bool
    protocol: int


@dataclass(frozen=True, slots=True)
class Hop:
    """Where the kernel sends packets for some destination."""

    ifindex: int
    ip: Ip


def decode_link(message: Message) -> Link | None:
    """None for what is not about a device as such: bridge ports, wireless events."""
    family, _type, ifindex, flags, _change = _IFINFO.unpack_from(message.body)
    found = attributes(message.body, _IFINFO.size)
    if family != socket.AF_UNSPEC or _IFLA_WIRELESS in found or _IFLA_IFNAME not in found:
        return None
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = text(info.get(_IFLA_INFO_KIND, b""))
    data = attributes(info.get(_IFLA_INFO_DATA, b""))
    # With IFLA_LINK_NETNSID the device below is in another namespace, where its number means something else.
    below = 0 if _IFLA_LINK_NETNSID in found else u32(found.get(_IFLA_LINK, bytes(4)))
    return Link(
        ifindex=ifindex,
        name=text(found[_IFLA_IFNAME]),
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        resolves=not flags & (IFF_NOARP | IFF_LOOPBACK),
        mac=found.get(_IFLA_ADDRESS, b""),
        mtu=u32(found.get(_IFLA_MTU, bytes(4))),
        kind=kind,
        lower=below if below != ifindex else 0,
        vlan=_decode_vlan(data) if kind == "vlan" else None,
        master=u32(found.get(_IFLA_MASTER, bytes(4))),
        filters=_decode_filters(data) if kind == "bridge" else frozenset(),
    )


def _decode_vlan(data: dict[int, bytes]) -> Vlan | None:
    if _IFLA_VLAN_ID not in data:
        return None
    protocol = int.from_bytes(data[_IFLA_VLAN_PROTOCOL], "big") if _IFLA_VLAN_PROTOCOL in data else VLAN_8021Q
    return Vlan(u16(data[_IFLA_VLAN_ID]), protocol, bool(data.get(_IFLA_VLAN_EGRESS_QOS)))


def _decode_filters(data: dict[int, bytes]) -> frozenset[int]:
    return frozenset(family for family, number in _IFLA_BR_NF_CALL.items() if any(data.get(number, b"")))


def decode_address(message: Message) -> Address | None:
    family, _prefix, flags, scope, ifindex = _IFADDR.unpack_from(message.body)
    found = attributes(message.body, _IFADDR.size)
    # Where the two differ, IFA_ADDRESS is the other end of a point-to-point link.
    raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if family not in (socket.AF_INET, socket.AF_INET6) or raw is None:
        return None
    if _IFA_FLAGS in found:
        flags = u32(found[_IFA_FLAGS])
    created = u32(found[_IFA_CACHEINFO][8:12]) if _IFA_CACHEINFO in found else 0
    return Address(ifindex, ip_address(raw), scope, flags, created)


def decode_neighbour(message: Message) -> Neighbour | None:
    """None for what is not a neighbour of IPv4 or IPv6, such as a bridge's forwarding entries."""
    family, ifindex, state, _flags, _type = _NDMSG.unpack_from(message.body)
    found = attributes(message.body, _NDMSG.size)
    if family not in (socket.AF_INET, socket.AF_INET6) or _NDA_DST not in found:
        return None
    return Neighbour(
        ifindex=ifindex,
        ip=ip_address(found[_NDA_DST]),
        mac=found.get(_NDA_LLADDR, b"") if state & NUD_VALID else None,
        state=state,
        managed=bool(u32(found.get(_NDA_FLAGS_EXT, bytes(4))) & NTF_EXT_MANAGED),
        protocol=found.get(_NDA_PROTOCOL, b"\0")[0],
    )


def decode_route(message: Message) -> Hop | None:
    """The next hop of an answer to RTM_GETROUTE; None when it leads nowhere, or to this machine."""
    _family, _dst, _src, _tos, _table, _protocol, _scope, kind, _flags = _RTMSG.unpack_from(message.body)
    found = attributes(message.body, _RTMSG.size)
    if kind != RTN_UNICAST or _RTA_OIF not in found:
        return None
    # RTA_VIA is a gateway of the other family: struct rtvia, two bytes of family before the address.
    hop = found.get(_RTA_VIA, b"")[2:] or found.get(_RTA_GATEWAY) or found[_RTA_DST]
    return Hop(u32(found[_RTA_OIF]), ip_address(hop))


T = TypeVar("T")


def _decoded(answer: Iterable[Message], decode: Callable[[Message], T | None]) -> list[T]:
    return [record for record in map(decode, answer) if record is not None]


def links(kernel: Conversation) -> list[Link]:
    """Every device of this namespace."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    body += attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    return _decoded(kernel.ask(RTM_GETLINK, body, NLM_F_DUMP), decode_link)


def addresses(kernel: Conversation) -> list[Address]:
    return _decoded(kernel.ask(RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0), NLM_F_DUMP), decode_address)


def neighbours(kernel: Conversation) -> list[Neighbour]:
    return _decoded(kernel.ask(RTM_GETNEIGH, _NDMSG.pack(0, 0, 0, 0, 0), NLM_F_DUMP), decode_neighbour)


def family_of(ip: Ip) -> int:
    return int(socket.AF_INET if ip.version == 4 else socket.AF_INET6)


def route(kernel: Conversation, destination: Ip, mark: int = 0) -> Hop | None:
    """The kernel's next hop for packets to `destination` with this mark. NetlinkError when there is no
    route.
    """
    body = _RTMSG.pack(family_of(destination), destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += attribute(_RTA_DST, destination.packed) + attribute(_RTA_MARK, struct.pack("=I", mark))
    answer = kernel.ask(RTM_GETROUTE, body)
    return decode_route(answer[0]) if answer else None


def set_neighbour(kernel: Conversation, hop: Hop, *, managed: bool, protocol: int) -> None:
    """Create or change the entry: have the kernel keep it resolved, or leave it to its own devices again.

    What the kernel knows of the entry so far, it keeps. Raises NetlinkError.
    """
    body = _NDMSG.pack(family_of(hop.ip), hop.ifindex, 0, NTF_USE, 0)
    body += attribute(_NDA_DST, hop.ip.packed) + attribute(_NDA_PROTOCOL, bytes([protocol]))
    if managed:
        body += attribute(_NDA_FLAGS_EXT, struct.pack("=I", NTF_EXT_MANAGED))
    kernel.ask(RTM_NEWNEIGH, body, NLM_F_CREATE | NLM_F_REPLACE)
