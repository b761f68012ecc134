# SPDX-License-Identifier: Apache-2.0
"""Many passages at once, as columns, and which of them are in a box."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clearway.importer.box import Box
from clearway.importer.marks import ANY_MARK, Marks
from clearway.importer.ranges import Names, Ranges

from .result import Passage, View

Rows = NDArray[np.int64]
"""Numbers of passages."""
Mask = NDArray[np.bool_]
FLOW_FIELDS = ("protocol", "source", "destination", "sport", "dport", "inside", "outside")
"""Fields of boxes that are the same in all packets of a flow."""
UNKNOWN = -1
"""An interface without a name."""
WORD = 64
LOW = (1 << WORD) - 1


@dataclass(frozen=True)
class Addresses:
    """Of n passages. `high`, `low` (n): the two words of an address; of IPv4 it is the lower one alone."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    @classmethod
    def of(cls, addresses: Iterable[int]) -> Addresses:
        numbers = list(addresses)
        high = np.array([number >> WORD for number in numbers], np.uint64)
        return cls(high, np.array([number & LOW for number in numbers], np.uint64))

    def numbers(self) -> tuple[list[int], NDArray[np.int32]]:
        """The different ones, ascending, and for each passage which of them it has."""
        both = np.empty(len(self.low), [("high", np.uint64), ("low", np.uint64)])
        both["high"], both["low"] = self.high, self.low
        order = np.lexsort((self.low, self.high))
        new = np.ones(len(order), np.bool_)
        new[1:] = both[order][1:] != both[order][:-1]
        rank = np.empty(len(order), np.int32)
        rank[order] = np.cumsum(new) - 1
        different = both[order][new]
        highs, lows = different["high"].tolist(), different["low"].tolist()
        return [high << WORD | low for high, low in zip(highs, lows, strict=True)], rank


@dataclass(frozen=True)
class Side:
    """Source and destination of n passages, with ports (n) of 16 bits."""

    source: Addresses
    sport: NDArray[np.uint16]
    destination: Addresses
    dport: NDArray[np.uint16]


class Column:
    """Values of a field, by their rank among the different ones: any set of them is one look-up each."""

    def __init__(self, values: Sequence[int], rank: NDArray[np.int32]) -> None:
        self.values = values
        self.rank = rank

    def among(self, wanted: Ranges) -> Mask | None:
        """Which of the different values are wanted; None when none is."""
        found = np.zeros(len(self.values), np.bool_)
        for first, last in wanted.spans:
            found[bisect_left(self.values, first) : bisect_right(self.values, last)] = True
        return found if found.any() else None


def among(marks: NDArray[np.uint32], wanted: Marks) -> Mask:
    """Which of the marks are wanted."""
    found = np.zeros(len(marks), np.bool_)
    for mask, value in wanted.cubes:
        found |= marks & np.uint32(mask) == np.uint32(value)
    return found


def _column(values: NDArray[np.generic]) -> Column:
    different, rank = np.unique(values, return_inverse=True)
    return Column(different.tolist(), rank.reshape(-1).astype(np.int32))


@dataclass(frozen=True)
class Passages:
    """n passages of one family. `protocol` (n): IP's numbers. `inside`, `outside` (n): those that
    `interfaces` has for names; UNKNOWN for others. `mark` (n): conntrack's.
    """

    family: int
    protocol: NDArray[np.uint8]
    arrives: Side
    leaves: Side
    inside: NDArray[np.int64]
    outside: NDArray[np.int64]
    mark: NDArray[np.uint32]
    interfaces: Mapping[str, int]
    _columns: dict[tuple[View, str], Column] = field(default_factory=dict)

    @classmethod
    def of(cls, passages: Sequence[Passage]) -> Passages:
        """Of at least one. ValueError when they are of several families."""
        [family] = {one.family for one in passages}
        names = sorted({name for one in passages for name in (one.inside, one.outside)})
        interfaces = {name: number for number, name in enumerate(names)}
        return cls(
            family,
            np.array([one.protocol for one in passages], np.uint8),
            _side(passages, View.BEFORE),
            _side(passages, View.AFTER),
            np.array([interfaces[one.inside] for one in passages], np.int64),
            np.array([interfaces[one.outside] for one in passages], np.int64),
            np.array([one.mark for one in passages], np.uint32),
            interfaces,
        )

    def __len__(self) -> int:
        return len(self.protocol)

    def not_from(self, names: frozenset[str]) -> Rows:
        """Those that come in by other devices."""
        numbers = [number for name, number in self.interfaces.items() if name in names]
        return np.flatnonzero(~np.isin(self.inside, numbers))

    def within(self, box: Box, whole: Box, view: View, rows: Rows) -> Mask:
        """Which of these rows are in the box, a part of the whole that all are in."""
        met = np.ones(len(rows), np.bool_)
        for name in FLOW_FIELDS:
            wanted = getattr(box, name)
            if wanted == getattr(whole, name):
                continue
            column = self._column(view, name)
            values = column.among(wanted if isinstance(wanted, Ranges) else self._numbers(wanted))
            if values is None:
                return np.zeros(len(rows), np.bool_)
            met &= values[column.rank[rows]]
        if box.connmark is not ANY_MARK:
            met &= among(self.mark[rows], box.connmark)
        return met

    def _numbers(self, names: Names) -> Ranges:
        known = {number for name, number in self.interfaces.items() if name in names}
        return Ranges.numbers(known | {UNKNOWN} if names.others else known)

    def _column(self, view: View, name: str) -> Column:
        if (view, name) not in self._columns:
            self._columns[view, name] = self._made(view, name)
        return self._columns[view, name]

    def _made(self, view: View, name: str) -> Column:
        if name in {"protocol", "inside", "outside"}:
            return _column(getattr(self, name))
        first = name in {"source", "sport"}
        translated = view is View.AFTER or (view is View.BETWEEN and not first)
        values = getattr(self.leaves if translated else self.arrives, name)
        return Column(*values.numbers()) if isinstance(values, Addresses) else _column(values)


def _side(passages: Sequence[Passage], view: View) -> Side:
    seen = [one.seen(view) for one in passages]
    return Side(
        Addresses.of(int(one[0]) for one in seen),
        np.array([one[1] for one in seen], np.uint16),
        Addresses.of(int(one[2]) for one in seen),
        np.array([one[3] for one in seen], np.uint16),
    )
