# SPDX-License-Identifier: Apache-2.0
"""Boxes: what a rule asks of a packet, as one set of values for each field.

Intersections, differences and inclusion of boxes are exact, which is all that jumps, returns, negations and
several chains at a hook need. A box is of one address family; a rule that is for both has two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clearway.model.protocols import ICMPV6

from .errors import InexactError
from .marks import ANY_MARK, UNMARKED, Mark, Marks
from .ranges import Names, Ranges

BITS = {4: 32, 6: 128}
FAMILIES = (4, 6)
PIECES_MAX = 64
"""Boxes that a difference may leave before it counts as not expressible."""

BYTE = Ranges(((0, 255),))
PORTS = Ranges(((0, 65535),))
DSCPS = Ranges(((0, 63),))

STATES = {"invalid": 0, "established": 1, "related": 2, "new": 3, "untracked": 4}
"""conntrack's; a packet is in exactly one."""
ANY_STATE = Ranges(((0, 4),))
INVALID, ESTABLISHED, RELATED, NEW, UNTRACKED = (Ranges.numbers([number]) for number in range(5))
REPLIES = ESTABLISHED | RELATED

TYPES = (
    *("unspec", "unicast", "local", "broadcast", "anycast", "multicast"),
    *("blackhole", "unreachable", "prohibit"),
)
"""RTN_..., include/uapi/linux/rtnetlink.h: what routing calls an address, in the order of their numbers."""
ANY_TYPE = Ranges(((0, 255),))

ANY_INTERFACE = Names.but()
NO_INTERFACE = Names.of("")
"""What is for this machine goes out by none."""

NEVER_JUDGED = Ranges(((130, 137), (143, 143)))
"""ICMPv6 types of neighbour discovery and multicast group management (RFC 4861, RFC 2710, RFC 3810)."""


_ALL_ADDRESSES = {family: Ranges(((0, (1 << bits) - 1),)) for family, bits in BITS.items()}


def all_addresses(family: int) -> Ranges:
    return _ALL_ADDRESSES[family]


@dataclass(frozen=True, slots=True)
class Box:
    """All packets of a family whose fields are in these sets.

    `sport` and `dport` are the first two 16-bit words of layer 4, `icmp` and `code` its first two bytes,
    whatever the protocol is; `hops` is the TTL or hop limit, `to` what routing calls the destination.
    `connmark` is conntrack's mark, `mark` the packet's own.

    Of packets on their way through rules (clearway.proof) `has` tells their mark, and `mark` any: it is no
    field that boxes are compared by, and goes along with what is left of them. None: it is not known.
    """

    family: int
    source: Ranges
    destination: Ranges
    protocol: Ranges = BYTE
    inside: Names = ANY_INTERFACE
    outside: Names = ANY_INTERFACE
    sport: Ranges = PORTS
    dport: Ranges = PORTS
    icmp: Ranges = BYTE
    code: Ranges = BYTE
    flags: Ranges = BYTE
    dscp: Ranges = DSCPS
    hops: Ranges = BYTE
    state: Ranges = ANY_STATE
    to: Ranges = ANY_TYPE
    connmark: Marks = ANY_MARK
    mark: Marks = ANY_MARK
    has: Mark | None = UNMARKED

    def __and__(self, other: Box) -> Box | None:
        """What is in both, if anything."""
        if self.family != other.family:
            return None
        values: dict[str, Any] = {}
        for name in FIELDS:
            mine, theirs = getattr(self, name), getattr(other, name)
            values[name] = mine if mine is theirs else mine & theirs  # most are cut down in few fields
            if not values[name]:
                return None
        return Box(self.family, **values, has=self.has)

    def within(self, other: Box) -> bool:
        # In long lists of rules most differ in their source or their port.
        return (
            self.family == other.family
            and self.source.within(other.source)
            and self.dport.within(other.dport)
            and all(getattr(self, name).within(getattr(other, name)) for name in FIELDS)
        )

    def minus(self, other: Box) -> list[Box]:
        """What is in this and not in the other, in boxes that do not overlap."""
        if (self & other) is None:
            return [self]
        left, pieces = self, []
        for name in FIELDS:
            mine, theirs = getattr(left, name), getattr(other, name)
            if mine is not theirs and (rest := mine - theirs):
                pieces.append(replace(left, **{name: rest}))
                left = replace(left, **{name: mine & theirs})
        return pieces


# The protocol first: what other fields mean depends on it.
FIELDS = (
    "protocol",
    "source",
    "destination",
    "inside",
    "outside",
    "sport",
    "dport",
    "icmp",
    "code",
    "flags",
    "dscp",
    "hops",
    "state",
    "to",
    "connmark",
    "mark",
)
Boxes = tuple[Box, ...]


_WHOLE = {family: Box(family, all_addresses(family), all_addresses(family)) for family in FAMILIES}


def whole(family: int) -> Box:
    return _WHOLE[family]


def everything(families: Iterable[int] = FAMILIES) -> Boxes:
    return tuple(whole(family) for family in families)


def common(some: Iterable[Box], others: Sequence[Box]) -> Boxes:
    return tuple(both for one in some for other in others if (both := one & other) is not None)


def without(some: Iterable[Box], others: Iterable[Box]) -> Boxes:
    """What is in some and not in others. Raises InexactError when that falls into too many pieces, and more
    than there were.
    """
    left = list(some)
    most = max(PIECES_MAX, len(left))
    for other in others:
        left = [piece for one in left for piece in one.minus(other)]
        if len(left) > most:
            raise InexactError(f"what is left falls into more than {PIECES_MAX} rules")
    return tuple(left)


def covered(some: Iterable[Box], others: Sequence[Box]) -> bool:
    """Whether every box of some is in a single box of others."""
    return all(any(one.within(other) for other in others) for one in some)


def limited(boxes: Iterable[Box], **values: Ranges | Names | Marks) -> Boxes:
    """The boxes with these fields cut down; without those of which nothing is left."""
    found = []
    for box in boxes:
        cut: dict[str, Any] = {name: getattr(box, name) & value for name, value in values.items()}
        if all(cut.values()):
            found.append(replace(box, **cut))
    return tuple(found)


def unlimited(boxes: Iterable[Box], **values: Ranges | Names) -> Boxes:
    """The boxes with these fields set."""
    fields: dict[str, Any] = {**values}
    return tuple(replace(box, **fields) for box in boxes)


def never_judged(box: Box) -> bool:
    """Whether clearway leaves all of these packets alone."""
    return box.family == 6 and set(box.protocol) == {ICMPV6} and box.icmp.within(NEVER_JUDGED)
