# SPDX-License-Identifier: Apache-2.0
"""Connections in Linux' conntrack: one asked for, and those that it deletes, as the kernel announces them
(include/uapi/linux/netfilter/nfnetlink_conntrack.h).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from clearway.linux.netlink import (
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    Conversation,
    Listener,
    Message,
    NetlinkError,
    attribute,
    attributes,
)

NFNLGRP_CONNTRACK_DESTROY = 3
_NEW, _GET, _DELETE = 1 << 8, 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_...
_NFGENMSG = struct.Struct("=BBH")
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _HELP, _TIMEOUT, _MARK = 1, 2, 3, 4, 5, 7, 8
_STATUS_MASK = 26
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_SPORT, _PROTO_DPORT = 1, 2, 3
_PROTOINFO_TCP, _TCP_STATE, _TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY = 1, 1, 4, 5
_BE_LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL
_NESTED = 0x8000
AF_OF = {4: 2, 6: 10}
FAMILIES = {number: family for family, number in AF_OF.items()}
TCP_STATES = (
    *("none", "syn sent", "syn received", "established", "fin wait", "close wait", "last ack", "time wait"),
    *("close", "syn sent again"),
)

IPS_SRC_NAT, IPS_DST_NAT = 1 << 4, 1 << 5
IPS_SEEN_REPLY, IPS_ASSURED, IPS_DYING = 1 << 1, 1 << 2, 1 << 9
IPS_SEQ_ADJUST, IPS_HELPER, IPS_OFFLOAD, IPS_HW_OFFLOAD = 1 << 6, 1 << 13, 1 << 14, 1 << 15

Ip = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction, as its packets arrive. Ports in host order."""

    protocol: int
    source: Ip
    sport: int
    destination: Ip
    dport: int

    @property
    def reversed(self) -> Tuple:
        return Tuple(self.protocol, self.destination, self.dport, self.source, self.sport)


@dataclass(frozen=True, slots=True)
class Held:
    """A connection. `state`: of TCP, a word of TCP_STATES; "" for others. `status`: bits IPS_..."""

    original: Tuple
    reply: Tuple
    status: int
    mark: int
    state: str
    helper: bool


def find(tuple_: Tuple) -> Held | None:
    """The connection that a tuple is a direction of, in the calling thread's network namespace; None: there
    is none. NetlinkError.
    """
    family = tuple_.source.version
    body = _NFGENMSG.pack(AF_OF[family], 0, 0) + attribute(_TUPLE_ORIG | _NESTED, _encoded(tuple_))
    with Conversation(NETLINK_NETFILTER) as kernel:
        try:
            answer = kernel.ask(_GET, body)
        except NetlinkError as error:
            if error.number == errno.ENOENT:
                return None
            raise
    return _held(attributes(answer[0].body, _NFGENMSG.size)) if answer else None


def shorten(held: Held, seconds: int) -> None:
    """Has a connection last no longer than that without packets, if it is there still. NetlinkError."""
    body = _NFGENMSG.pack(AF_OF[held.original.source.version], 0, 0)
    body += attribute(_TUPLE_ORIG | _NESTED, _encoded(held.original))
    body += attribute(_TIMEOUT, seconds.to_bytes(4, "big"))
    with Conversation(NETLINK_NETFILTER) as kernel:
        try:
            kernel.ask(_NEW, body)
        except NetlinkError as error:
            if error.number != errno.ENOENT:
                raise


def translates() -> bool:
    """Whether there is a connection with a translation, in the calling thread's network namespace.
    NetlinkError.
    """
    with Conversation(NETLINK_NETFILTER) as kernel:
        for number in AF_OF.values():
            for bit in (IPS_SRC_NAT, IPS_DST_NAT):
                asked = attribute(_STATUS, bit.to_bytes(4, "big"))
                asked += attribute(_STATUS_MASK, bit.to_bytes(4, "big"))  # older kernels tell all
                for message in kernel.ask(_GET, _NFGENMSG.pack(number, 0, 0) + asked, NLM_F_DUMP):
                    if _number(attributes(message.body, _NFGENMSG.size), _STATUS) & bit:
                        return True
    return False


def go_on_without_windows() -> int:
    """Has conntrack take whatever sequence numbers come in TCP connections that are established now, in the
    calling thread's network namespace: it has not seen all packets. Returns how many they are; NetlinkError.
    """
    liberal = bytes([_BE_LIBERAL, _BE_LIBERAL])
    flags = b"".join(attribute(kind, liberal) for kind in (_TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY))
    said = attribute(_PROTOINFO | _NESTED, attribute(_PROTOINFO_TCP | _NESTED, flags))
    count = 0
    with Conversation(NETLINK_NETFILTER) as kernel:
        for number in AF_OF.values():
            head = _NFGENMSG.pack(number, 0, 0)
            found = [
                head + attribute(_TUPLE_ORIG | _NESTED, values[_TUPLE_ORIG]) + said
                for message in kernel.ask(_GET, head, NLM_F_DUMP)
                if _is_established(values := attributes(message.body, _NFGENMSG.size))
            ]
            kernel.tell(_NEW, found)
            count += len(found)
    return count


def _is_established(values: Mapping[int, bytes]) -> bool:
    tcp = attributes(attributes(values.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP, b""))
    return _TCP_STATE in tcp and TCP_STATES[tcp[_TCP_STATE][0] % len(TCP_STATES)] == "established"


def listener() -> Listener:
    """Hears of connections that are deleted, in the calling thread's network namespace. Conntrack tells of
    those that began after somebody listened (net.netfilter.nf_conntrack_events = 2).
    """
    return Listener(NETLINK_NETFILTER, (NFNLGRP_CONNTRACK_DESTROY,))


def deleted(message: Message) -> Tuple | None:
    """The original direction of the connection that an announcement tells of, if it had come so far that it
    can have been adopted.
    """
    if message.kind != _DELETE:
        return None
    values = attributes(message.body, _NFGENMSG.size)
    if not _number(values, _STATUS) & IPS_ASSURED:
        return None
    return _decoded(values[_TUPLE_ORIG])


def _encoded(tuple_: Tuple) -> bytes:
    source, destination = (_V4_SRC, _V4_DST) if tuple_.source.version == 4 else (_V6_SRC, _V6_DST)
    addresses = attribute(source, tuple_.source.packed) + attribute(destination, tuple_.destination.packed)
    protocol = attribute(_PROTO_NUM, bytes([tuple_.protocol]))
    protocol += attribute(_PROTO_SPORT, tuple_.sport.to_bytes(2, "big"))
    protocol += attribute(_PROTO_DPORT, tuple_.dport.to_bytes(2, "big"))
    return attribute(_TUPLE_IP | _NESTED, addresses) + attribute(_TUPLE_PROTO | _NESTED, protocol)


def _decoded(value: bytes) -> Tuple | None:
    """None for protocols without ports."""
    parts = attributes(value)
    addresses, protocol = attributes(parts[_TUPLE_IP]), attributes(parts[_TUPLE_PROTO])
    if _PROTO_SPORT not in protocol:
        return None
    source, destination = (_V4_SRC, _V4_DST) if _V4_SRC in addresses else (_V6_SRC, _V6_DST)
    return Tuple(
        protocol[_PROTO_NUM][0],
        ip_address(addresses[source]),
        _number(protocol, _PROTO_SPORT),
        ip_address(addresses[destination]),
        _number(protocol, _PROTO_DPORT),
    )


def _held(values: Mapping[int, bytes]) -> Held | None:
    original, reply = _decoded(values[_TUPLE_ORIG]), _decoded(values[_TUPLE_REPLY])
    if original is None or reply is None:
        return None
    tcp = attributes(attributes(values.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP, b""))
    state = tcp[_TCP_STATE][0] if _TCP_STATE in tcp else None
    return Held(
        original,
        reply,
        _number(values, _STATUS),
        _number(values, _MARK),
        "" if state is None else TCP_STATES[state] if state < len(TCP_STATES) else str(state),
        _HELP in values,
    )


def _number(values: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(values.get(kind, b""), "big")
