# SPDX-License-Identifier: Apache-2.0
"""Which packets a fast path carries, as boxes: what chains at each hook see of them.

Of connections that are adopted: TCP with ACK and without SYN, FIN and RST, and UDP; no fragments, no IP
options, no extension headers of IPv6, TTL or hop limit 2 or more; of connections that conntrack knows as
established. Who carries more than that has no proof for it. (A segment without ACK is invalid to conntrack,
whatever its connection: tcp_valid_flags, nf_conntrack_proto_tcp.c.) nat chains see none of them: they are for
the first packet of a connection.

Of what clearway's own configuration claims the first packet is asked about and then those that follow, which
are all that a connection of TCP has (tcp_valid_flags). conntrack does not know these, so they have no mark.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from functools import cache
from typing import Any

from clearway.importer.box import (
    ANY_INTERFACE,
    ANY_TYPE,
    ESTABLISHED,
    INVALID,
    NEW,
    NO_INTERFACE,
    TYPES,
    Box,
    Boxes,
    whole,
)
from clearway.importer.marks import ANY_MARK, ZERO
from clearway.importer.ranges import Ranges
from clearway.importer.words import flags_where
from clearway.model.protocols import TCP, TCP_FLAGS, UDP

from .result import View

HOOKS = ("prerouting", "forward", "postrouting")
"""Of forwarded packets, in their order."""
CONNTRACK, DSTNAT, SRCNAT = -200, -100, 100
"""enum nf_ip_hook_priorities, include/uapi/linux/netfilter_ipv4.h; IPv6 has the same. NAT is done at these,
whatever priority a nat chain was given (nf_nat_register_fn)."""


class Region(StrEnum):
    """Which packets are asked about."""

    CARRIED = "carried"  # of adopted connections
    FIRST = "first"  # that opens a connection which clearway's own configuration claims
    LATER = "later"  # those that follow, of both directions


FIN, SYN, RST, ACK = (TCP_FLAGS[name] for name in ("fin", "syn", "rst", "ack"))
_ASKED = FIN | SYN | RST | ACK
FLAGS = {
    Region.CARRIED: flags_where(_ASKED, ACK),
    Region.FIRST: flags_where(_ASKED, SYN),
    Region.LATER: flags_where(SYN | RST | ACK, ACK)
    | flags_where(FIN | SYN | RST, RST)
    | flags_where(FIN | SYN | RST, SYN),
}
ASKED = ("source", "destination", "sport", "dport", "inside", "outside", "connmark")
"""Fields by which it is told what is kept, beside the protocol."""
UNICAST = Ranges.numbers([TYPES.index("unicast")])

VARYING = {
    "flags": "TCP flags",
    "dscp": "the DSCP",
    "hops": "the TTL or hop limit",
    "icmp": "the type of ICMP",
    "code": "the code of ICMP",
    "state": "conntrack's state where it may not be known yet",
    "to": "the type of an address that may still be translated",
}
"""Fields that may differ between packets of a flow, or that nobody here knows."""


@cache
def start(hook: str, priority: int, family: int, region: Region = Region.CARRIED) -> Box:
    """All that is carried, as a chain of this priority sees it.

    Forwarding lowers the TTL before it calls the forward hook (ip_forward(), ip6_forward()). Routing has
    found a unicast route by then; an address that is still to be translated may be of any type. Rules at
    prerouting see no interface to leave by, and no state before conntrack ("invalid": nft_ct.c,
    xt_conntrack.c).
    """
    first = hook == "prerouting"
    state = NEW if region is Region.FIRST else ESTABLISHED
    box = replace(
        whole(family),
        protocol=Ranges.numbers([TCP, UDP]),
        flags=FLAGS[region],
        hops=Ranges(((2 if first else 1, 255),)),
        state=state,
        to=ANY_TYPE if first and priority <= DSTNAT else UNICAST,
        outside=NO_INTERFACE if first else ANY_INTERFACE,
        connmark=ANY_MARK if region is Region.CARRIED else ZERO,
    )
    if first and priority <= CONNTRACK:
        box = replace(box, state=INVALID if priority < CONNTRACK else INVALID | state)
    return box


def is_all_carried(box: Box) -> bool:
    """Whether everything that is carried of its family is in it, by what keeps are asked by (Keep)."""
    everything = whole(box.family)
    return Ranges.numbers([TCP, UDP]).within(box.protocol) and all(
        getattr(everything, name).within(getattr(box, name)) for name in ASKED
    )


def views_of(hook: str, priority: int, kind: str = "filter") -> tuple[View, ...]:
    """Who has the priority of NAT may come before or behind it; chains of type nat see what they may
    translate.
    """
    if kind == "nat":
        return (View.BEFORE,) if hook == "prerouting" else (View.BETWEEN,)
    if hook == "prerouting":
        return tuple(
            view
            for view, there in ((View.BEFORE, priority <= DSTNAT), (View.BETWEEN, priority >= DSTNAT))
            if there
        )
    if hook == "postrouting":
        return tuple(
            view
            for view, there in ((View.BETWEEN, priority <= SRCNAT), (View.AFTER, priority >= SRCNAT))
            if there
        )
    return (View.BETWEEN,)


def varying(boxes: Boxes, whole_start: Box) -> str:
    """What these boxes, parts of the start, ask for that differs from packet to packet; "" for nothing."""
    for box in boxes:
        for name, what in VARYING.items():
            mine, all_there = getattr(box, name), getattr(whole_start, name)
            if mine is not all_there and mine != all_there:
                return what
    return ""


def invariant(boxes: Boxes, whole_start: Box) -> Boxes:
    """The boxes, without what differs from packet to packet."""
    if not varying(boxes, whole_start):
        return boxes
    same = {name: getattr(whole_start, name) for name in VARYING}
    return tuple(dict.fromkeys(replace(box, **same) for box in boxes))


def widened(boxes: Boxes, whole_start: Box) -> Boxes:
    """The boxes as all views have them: of flows, with the interface by which they leave; of any mark, where
    there is only one.
    """
    boxes = invariant(boxes, whole_start)
    same: dict[str, Any] = {}
    if whole_start.outside is not ANY_INTERFACE:
        same["outside"] = ANY_INTERFACE
    if whole_start.connmark is not ANY_MARK:
        same["connmark"] = ANY_MARK
    return tuple(replace(box, **same) for box in boxes) if same else boxes
