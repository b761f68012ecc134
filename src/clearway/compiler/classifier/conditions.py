# SPDX-License-Identifier: Apache-2.0
"""What a rule asks of a packet, and its form for the data path: words under masks, and labels.

The words are those of struct fields (bpf/types.h). Prefixes, single ports, protocols and the like are masks.
Ranges of ports, lists and named sets are labels: numbers that stand for what cannot be said by one mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from clearway.model import IPNetwork, PortRange, Prefixes

FAMILY_IPV4 = 4
FIELD_WORDS = 7
IFINDEX_MAX = (1 << 26) - 2
"""All ones stand for every larger one."""
LABEL_MAX = 0xFFFF
MARK_CLASS_MAX = 0x7F
ROWS_MAX = 16
"""Of one rule, as far as addresses and ports go."""
FULL = 0xFFFF_FFFF_FFFF_FFFF


class Classified(IntEnum):
    """Fields that are looked up by themselves (enum classified)."""

    SOURCE = 0
    DESTINATION = 1
    SPORT = 2
    DPORT = 3


NAMES = {
    Classified.SOURCE: "sources",
    Classified.DESTINATION: "destinations",
    Classified.SPORT: "source ports",
    Classified.DPORT: "destination ports",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """All of it must be true; None: whatever it is. Names stand for sets, which come with the rules.

    `dport`: of ICMP the type. `tcp_flags`: (of these, those that are set). `local`: to the machine itself.
    `marks`: classes that the connection's mark is in.
    """

    source: tuple[IPNetwork, ...] | str | None = None
    destination: tuple[IPNetwork, ...] | str | None = None
    sport: tuple[PortRange, ...] | str | None = None
    dport: tuple[PortRange, ...] | str | None = None
    protocols: tuple[int, ...] | None = None
    dscp: tuple[int, ...] | None = None
    tcp_flags: tuple[int, int] | None = None
    local: bool | None = None
    interfaces_in: tuple[int, ...] | None = None
    interfaces_out: tuple[int, ...] | None = None
    vlans: tuple[int, ...] | None = None
    marks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Sets:
    """Named sets that conditions speak of."""

    addresses: Mapping[str, Prefixes | Sequence[IPNetwork]] = field(default_factory=dict)
    ports: Mapping[str, Sequence[PortRange]] = field(default_factory=dict)


Members = tuple[IPNetwork, ...] | tuple[PortRange, ...] | str


class TooBigError(Exception):
    """The rules need more than a classifier can have; one line with the figures."""


class Labels:
    """Numbers for what is no mask, from 1 on, for one field."""

    def __init__(self, field: Classified) -> None:
        self.field = field
        self.number: dict[Members, int] = {}

    def of(self, members: Members) -> int:
        number = self.number.setdefault(members, len(self.number) + 1)
        if number > LABEL_MAX:
            raise TooBigError(
                f"the rules ask for more than {LABEL_MAX:,} different sets and longer lists of"
                f" {NAMES[self.field]}, and that is all that a classifier has numbers for"
            )
        return number


def prefixes_of(members: Members, sets: Sets) -> Prefixes:
    """What a label of addresses stands for. KeyError for the name of a set that is not there."""
    if isinstance(members, str):
        return Prefixes.of(sets.addresses[members])
    return Prefixes.of(one for one in members if not isinstance(one, PortRange))


def ports_of(members: Members, sets: Sets) -> Sequence[PortRange]:
    """What a label of ports stands for. KeyError for the name of a set that is not there."""
    if isinstance(members, str):
        return sets.ports[members]
    return [one for one in members if isinstance(one, PortRange)]


@dataclass(frozen=True)
class Rows:
    """Conditions, one or more rows each: `keys` and `masks` (rows, FIELD_WORDS); `rules`: whose it is;
    `told`: with that.
    """

    keys: NDArray[np.uint64]
    masks: NDArray[np.uint64]
    rules: NDArray[np.uint32]
    told: NDArray[np.uint32]
    labels: tuple[Labels, ...]
    """By Classified."""


Part = tuple[int, int]
"""A word's value and mask, or a part of them."""
ANY: Part = (0, 0)


def rows_of(conditions: Sequence[Condition], family: int, told: Sequence[int]) -> Rows:
    """The rows of all conditions that packets of this family can meet."""
    labels = tuple(Labels(field) for field in Classified)
    words: list[int] = []
    rules: list[int] = []
    for number, condition in enumerate(conditions):
        before = len(words)
        _add_rows(words, condition, family, labels)
        rules += [number] * ((len(words) - before) // (2 * FIELD_WORDS))
    both = np.array(words, np.uint64).reshape(-1, 2, FIELD_WORDS)
    whose = np.array(rules, np.uint32)
    return Rows(both[:, 0], both[:, 1], whose, np.array(told, np.uint32)[whose], labels)


def _add_rows(words: list[int], condition: Condition, family: int, labels: tuple[Labels, ...]) -> None:
    """Appends key and mask of each row. One of many conditions: this has to be quick."""
    wanted = [
        _addresses(condition.source, family),
        _addresses(condition.destination, family),
        _ports(condition.sport),
        _ports(condition.dport),
    ]
    while prod(len(one.choices) for one in wanted) > ROWS_MAX:
        # lists of a few make a row for each; longer ones are better looked up by themselves
        max(wanted, key=lambda one: len(one.choices)).label()
    label = label_mask = 0
    for place, one in enumerate(wanted):
        if one.labelled:
            label |= labels[place].of(one.members) << 48 - 16 * place
            label_mask |= LABEL_MAX << 48 - 16 * place
    flags_mask, flags = (0, 0) if condition.tcp_flags is None else condition.tcp_flags
    always = (flags & flags_mask) << 8 | (condition.local or 0)
    always_mask = flags_mask << 8 | (condition.local is not None)
    choices = product(
        *(one.choices for one in wanted),
        _each(condition.protocols, 0xFF),
        _each(condition.dscp, 0x3F),
        _each(condition.interfaces_in, IFINDEX_MAX + 1),
        _each(condition.interfaces_out, IFINDEX_MAX + 1),
        _each(condition.vlans, 0xFFF),
        _each(condition.marks, MARK_CLASS_MAX),
    )
    for source, destination, sport, dport, protocol, dscp, inside, outside, vlan, mark in choices:
        for number in (0, 1):  # key, mask
            if family == FAMILY_IPV4:
                words += (source[number], 0, destination[number], 0)
            else:
                high, low = source[number] >> 64, source[number] & FULL
                words += (high, low, destination[number] >> 64, destination[number] & FULL)
            words += (
                sport[number] << 48
                | dport[number] << 32
                | protocol[number] << 24
                | dscp[number] << 16
                | mark[number] << 1
                | (always_mask if number else always),
                inside[number] << 38 | outside[number] << 12 | vlan[number],
                label_mask if number else label,
            )


@dataclass(slots=True)
class Wanted:
    """Of a field: the values under masks that will do, one of them; or its members, under a label."""

    choices: Sequence[Part]
    members: Members = ()
    labelled: bool = False

    def label(self) -> None:
        self.choices, self.labelled = (ANY,), True


def _each(values: tuple[int, ...] | None, mask: int) -> Sequence[Part]:
    return (ANY,) if values is None else [(value, mask) for value in values]


def _addresses(asked: tuple[IPNetwork, ...] | str | None, family: int) -> Wanted:
    if asked is None:
        return Wanted((ANY,))
    if isinstance(asked, str):
        return Wanted((ANY,), asked, labelled=True)
    mine = tuple(network for network in asked if network.version == family)
    return Wanted([(int(one.network_address), int(one.netmask)) for one in mine], mine)


def _ports(asked: tuple[PortRange, ...] | str | None) -> Wanted:
    if asked is None:
        return Wanted((ANY,))
    if isinstance(asked, str):
        return Wanted((ANY,), asked, labelled=True)
    return Wanted([part for one in asked for part in _masks_of(one.first, one.last)], asked)


def _masks_of(first: int, last: int) -> Iterator[Part]:
    """The fewest values under masks that are exactly the numbers of a range."""
    while first <= last:
        size = first & -first or 1 << 16
        while size > last - first + 1:
            size >>= 1
        yield first, 0xFFFF ^ (size - 1)
        first += size
