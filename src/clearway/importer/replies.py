# SPDX-License-Identifier: Apache-2.0
"""Packets that clearway does not ask rules about: of accepted connections, and neighbour discovery.

clearway always lets them pass. Where a ruleset does not, it does something else, and that has to be said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from clearway.model.protocols import ICMP, ICMPV6

from .box import (
    ANY_TYPE,
    BYTE,
    DSCPS,
    ESTABLISHED,
    INVALID,
    NEW,
    RELATED,
    REPLIES,
    UNTRACKED,
    Box,
    Boxes,
    common,
    limited,
    unlimited,
    without,
)
from .errors import InexactError
from .flatten import Entry
from .index import Index
from .ranges import Ranges
from .ruleset import ENDS, Verb

LOOKS_MAX = 1_000_000
"""Boxes of a region beside boxes of entries: a second or two."""
LINK_LOCAL = Ranges(((0xFE80 << 112, (0xFEC0 << 112) - 1),))
DISCOVERY = Ranges.numbers([133, 134, 135, 136])
REDIRECT = Ranges.numbers([137])
LISTENERS = Ranges.numbers([130, 131, 132, 143])
"""Linux' conntrack has the first and the last untracked, redirects invalid (nf_conntrack_proto_icmpv6.c)."""


def dropped(entries: Sequence[Entry], region: Boxes) -> Iterator[Entry]:
    """The entries that drop or may drop what is in the region, as far as no entry before accepts it. Where
    that takes too long to be told, the last one that drops anything.
    """
    looks = 0
    for entry in entries:
        if not region or entry.verb not in ENDS:
            continue
        looks += len(region) * len(entry.boxes)
        if looks > LOOKS_MAX:
            yield from [one for one in entries if one.verb in ENDS and one.verb is not Verb.ACCEPT][-1:]
            return
        if entry.verb is not Verb.ACCEPT and common(region, entry.boxes):
            yield entry
        if entry.decides:
            with suppress(InexactError):  # then it is left too large
                region = without(region, entry.boxes)


def replies_dropped(entries: Sequence[Entry], start: Boxes, hook: str) -> list[Entry]:
    """What drops packets of connections that were accepted, or that this machine opened."""
    found = list(dropped(entries, limited(start, state=REPLIES)))
    if not found or hook == "input":
        return found
    return list(dropped(entries, _of_accepted(entries)))


def _of_accepted(entries: Sequence[Entry]) -> Boxes:
    """Packets of all connections that are accepted, in both directions, and ICMP errors about them."""
    region: list[Box] = []
    gone = Index()
    for entry in entries:
        first = limited(entry.boxes, state=NEW)
        if entry.verb is Verb.ACCEPT:
            with suppress(InexactError):  # more than there are
                first = without(first, (box for number in gone.near(first) for box in gone.boxes[number]))
            for box in first:
                region += [replace(box, state=ESTABLISHED), _mirrored(box), *_errors(box)]
        elif entry.decides:
            gone.add(first)
    return tuple(region)


def _mirrored(box: Box) -> Box:
    """What answers it."""
    return Box(
        box.family,
        source=box.destination,
        destination=box.source,
        protocol=box.protocol,
        inside=box.outside,
        outside=box.inside,
        sport=box.dport,
        dport=box.sport,
        state=ESTABLISHED,
    )


def _errors(box: Box) -> list[Box]:
    """ICMP errors go the way of the packets, from anybody."""
    error = replace(
        box,
        protocol=Ranges.numbers([ICMP if box.family == 4 else ICMPV6]),
        source=Ranges(((0, (1 << (32 if box.family == 4 else 128)) - 1),)),
        sport=Ranges(((0, 65535),)),
        dport=Ranges(((0, 65535),)),
        icmp=BYTE,
        code=BYTE,
        flags=BYTE,
        dscp=DSCPS,
        hops=BYTE,
        to=ANY_TYPE,
        state=RELATED,
    )
    back = replace(error, destination=box.source, inside=box.outside, outside=box.inside)
    return [error, back]


def discovery_dropped(entries: Sequence[Entry], start: Boxes) -> list[Entry]:
    """What drops neighbour discovery or multicast group management, of those that hosts would heed."""
    v6 = limited((box for box in start if box.family == 6), protocol=Ranges.numbers([ICMPV6]))
    heeded = Ranges.numbers([255])  # RFC 4861 7.1.1: others are ignored
    region = (
        *unlimited(v6, icmp=DISCOVERY, hops=heeded, state=UNTRACKED),
        *unlimited(v6, icmp=REDIRECT, hops=heeded, state=INVALID),
        *unlimited(v6, icmp=LISTENERS, source=LINK_LOCAL, state=UNTRACKED),
    )
    return list(dropped(entries, region))
