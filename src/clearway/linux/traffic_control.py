# SPDX-License-Identifier: Apache-2.0
"""What traffic control (tc) does on devices, as far as a packet that goes past it would miss something
(include/uapi/linux/rtnetlink.h, net/sched/).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from clearway.linux.netlink import (
    NETLINK_ROUTE,
    NLM_F_DUMP,
    Conversation,
    NetlinkError,
    attributes,
    text,
)

RTNLGRP_TC = 4
_GETQDISC, _GETTFILTER = 38, 46
_TCMSG = struct.Struct("=BBHiIII")
_KIND = 1
_CLSACT_INGRESS, _CLSACT_EGRESS, _INGRESS = 0xFFFFFFF2, 0xFFFFFFF3, 0xFFFF0000
FILTERING = frozenset({"clsact", "ingress"})
"""No queues: filters hang on them."""
PLAIN = frozenset({"noqueue", "mq", "pfifo_fast", "pfifo", "bfifo", "fq", "fq_codel", "noop", "sfq"})
"""Queues that neither shape nor mark nor drop by what a packet is; there is nothing in them to miss when a
device takes a frame at once."""


@dataclass(frozen=True)
class TrafficControl:
    """Devices with filters for what arrives; those with filters, or a queue that shapes, for what leaves."""

    ingress: frozenset[int] = frozenset()
    egress: frozenset[int] = frozenset()


def traffic_control() -> TrafficControl:
    """Of all devices in the calling thread's network namespace. NetlinkError."""
    with Conversation(NETLINK_ROUTE) as kernel:
        shaped, filtering = _queueing(kernel)
        ingress = [
            ifindex
            for ifindex in filtering
            if _filters(kernel, ifindex, _CLSACT_INGRESS) or _filters(kernel, ifindex, _INGRESS)
        ]
        egress = [ifindex for ifindex in filtering - shaped if _filters(kernel, ifindex, _CLSACT_EGRESS)]
    return TrafficControl(frozenset(ingress), shaped | frozenset(egress))


def _queueing(kernel: Conversation) -> tuple[frozenset[int], frozenset[int]]:
    """Devices with a queue that shapes, wherever among their queues, and those that may have filters."""
    shaped, filtering = set(), set()
    for message in kernel.ask(_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0, 0, 0), NLM_F_DUMP):
        _family, _pad, _pad2, ifindex, *_others = _TCMSG.unpack_from(message.body)
        kind = text(attributes(message.body, _TCMSG.size).get(_KIND, b""))
        if kind in FILTERING:
            filtering.add(ifindex)
        elif kind not in PLAIN:
            shaped.add(ifindex)
    return frozenset(shaped), frozenset(filtering)


def _filters(kernel: Conversation, ifindex: int, parent: int) -> bool:
    """Whether there are any; not, where there is nothing that could have some."""
    try:
        return bool(kernel.ask(_GETTFILTER, _TCMSG.pack(0, 0, 0, ifindex, 0, parent, 0), NLM_F_DUMP))
    except NetlinkError as error:
        if error.number in (errno.EINVAL, errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return False
        raise
