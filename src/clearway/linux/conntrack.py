# SPDX-License-Identifier: Apache-2.0
"""Connections that Linux' conntrack deletes, as the kernel announces them (include/uapi/linux/netfilter/
nfnetlink_conntrack.h).
"""

from __future__ import annotations

from dataclasses import dataclass

from clearway.linux.netlink import NETLINK_NETFILTER, Listener, Message, attributes

NFNLGRP_CONNTRACK_DESTROY = 3
_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_NFGENMSG_SIZE = 4
_TUPLE_ORIG, _STATUS = 1, 3
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_SPORT, _PROTO_DPORT = 1, 2, 3
_IPS_ASSURED = 1 << 2
FAMILIES = {2: 4, 10: 6}


@dataclass(frozen=True, slots=True)
class Deleted:
    """A connection, by the tuple of the direction that opened it. Addresses: 4 or 16 bytes, ports in host
    order.
    """

    family: int
    protocol: int
    source: bytes
    destination: bytes
    sport: int
    dport: int


def listener() -> Listener:
    """Hears of the calling thread's network namespace. Conntrack tells of connections that began after
    somebody listened (net.netfilter.nf_conntrack_events = 2).
    """
    return Listener(NETLINK_NETFILTER, (NFNLGRP_CONNTRACK_DESTROY,))


def decode(message: Message) -> Deleted | None:
    """The connection that a message tells of, if it had come so far that it can have been adopted."""
    family = FAMILIES.get(message.body[0]) if message.body else None
    if message.kind != _DELETE or family is None:
        return None
    values = attributes(message.body, _NFGENMSG_SIZE)
    if not int.from_bytes(values.get(_STATUS, b""), "big") & _IPS_ASSURED:
        return None
    tuple_ = attributes(values[_TUPLE_ORIG])
    addresses, protocol = attributes(tuple_[_TUPLE_IP]), attributes(tuple_[_TUPLE_PROTO])
    if _PROTO_SPORT not in protocol:
        return None
    source, destination = (_V4_SRC, _V4_DST) if family == 4 else (_V6_SRC, _V6_DST)
    return Deleted(
        family,
        protocol[_PROTO_NUM][0],
        addresses[source],
        addresses[destination],
        int.from_bytes(protocol[_PROTO_SPORT], "big"),
        int.from_bytes(protocol[_PROTO_DPORT], "big"),
    )
