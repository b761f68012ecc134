# SPDX-License-Identifier: Apache-2.0
"""Boxes by where they are, so that the few that may concern another are found without a look at all.

Tuple space search (Srinivasan, Suri, Varghese, SIGCOMM 1999): what is cut down in the same fields to blocks
of the same sizes is a group, and a group is a hash table. There are few groups, whatever the number of rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby, product

from .box import BITS, Box, Boxes
from .ranges import Names, Ranges

FEW = 4
"""Blocks that a field is noted under; what falls into more is noted under larger ones."""
STEP = 8
"""Bits by which blocks grow."""
PORT_BITS = 16
NAME_BITS = 64
"""A name counts by its hash. Names that share one are only looked at in vain."""

PIECES_MAX = 8
"""Boxes that one may fall into by those that are taken out of it."""
NEAR_MAX = 64
"""Boxes that may have to do with it."""

Key = tuple[int, ...]
"""A block for each field: its numbers without their last bits."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Numbers of a box for each field, one of each block, and how many bits the blocks leave open."""

    family: int
    open_bits: tuple[int, ...]
    numbers: tuple[tuple[int, ...], ...]

    def keys(self, open_bits: tuple[int, ...]) -> Iterable[Key]:
        """The blocks of these sizes that it is in; they are no smaller than its own."""
        return product(
            *(
                {number >> bits for number in numbers}
                for numbers, bits in zip(self.numbers, open_bits, strict=True)
            )
        )


@dataclass(slots=True)
class _Group:
    """Places with blocks of the same sizes, and tables of them by blocks of those and of larger sizes."""

    places: list[tuple[_Place, int]] = field(default_factory=list)
    tables: dict[tuple[int, ...], dict[Key, list[int]]] = field(default_factory=dict)

    def add(self, place: _Place, number: int) -> None:
        self.places.append((place, number))
        for open_bits, table in self.tables.items():
            _note(table, place.keys(open_bits), number)

    def table(self, open_bits: tuple[int, ...]) -> dict[Key, list[int]]:
        """Made when it is first asked for."""
        if open_bits not in self.tables:
            table = self.tables[open_bits] = {}
            for place, number in self.places:
                _note(table, place.keys(open_bits), number)
        return self.tables[open_bits]


class Index:
    """Boxes, numbered from 0 in the order in which they are added; those added at once share a number."""

    def __init__(self) -> None:
        self.boxes: list[Boxes] = []
        self._groups: dict[tuple[int, tuple[int, ...]], _Group] = {}

    def add(self, boxes: Boxes) -> None:
        for box in boxes:
            place = _place_of(box)
            group = self._groups.setdefault((place.family, place.open_bits), _Group())
            group.add(place, len(self.boxes))
        self.boxes.append(boxes)

    def near(self, boxes: Iterable[Box], *, last_first: bool = False) -> Iterator[int]:
        """The numbers, in order, of all that have packets in common with the boxes, and of some more."""
        return self._at((_place_of(box) for box in boxes), last_first=last_first)

    def cover(self, boxes: Iterable[Box]) -> bool:
        """Whether each of these boxes is in a single box of the index."""
        return all(self._holds(box) for box in boxes)

    def _holds(self, box: Box) -> bool:
        # What holds the box holds its first corner.
        numbers = self._at((_corner_of(box),), last_first=False)
        return any(box.within(other) for number in numbers for other in self.boxes[number])

    def _at(self, places: Iterable[_Place], *, last_first: bool) -> Iterator[int]:
        found = [numbers for place in places for numbers in self._lists(place)]
        ordered = [reversed(numbers) for numbers in found] if last_first else found
        return (number for number, _same in groupby(merge(*ordered, reverse=last_first)))

    def _lists(self, place: _Place) -> Iterator[list[int]]:
        for (family, open_bits), group in self._groups.items():
            if family != place.family:
                continue
            larger = tuple(map(max, open_bits, place.open_bits))
            table = group.table(larger)
            yield from (table[key] for key in place.keys(larger) if key in table)


def _note(table: dict[Key, list[int]], keys: Iterable[Key], number: int) -> None:
    for key in keys:
        table.setdefault(key, []).append(number)


def _place_of(box: Box) -> _Place:
    fields = (
        _blocks(box.source, BITS[box.family]),
        _blocks(box.destination, BITS[box.family]),
        _blocks(box.sport, PORT_BITS),
        _blocks(box.dport, PORT_BITS),
        _names(box.inside),
        _names(box.outside),
    )
    open_bits, numbers = zip(*fields, strict=True)
    return _Place(box.family, open_bits, numbers)


def _corner_of(box: Box) -> _Place:
    """The first number of each field. Of names that are all but some, any will do: only such hold them."""
    ranges = (box.source, box.destination, box.sport, box.dport)
    names = (next(iter(one.names), "") for one in (box.inside, box.outside))
    numbers = (*(one.spans[0][0] for one in ranges), *map(_hash, names))
    return _Place(box.family, (0,) * len(numbers), tuple((number,) for number in numbers))


def _blocks(ranges: Ranges, bits: int) -> tuple[int, tuple[int, ...]]:
    """Bits that are left open, and a number of each of the few blocks that hold all."""
    first, last = ranges.spans[0]
    smallest = max(0, (last - first).bit_length() - FEW.bit_length()) // STEP * STEP
    for open_bits in range(smallest, bits, STEP):
        found: set[int] = set()
        for first, last in ranges.spans:
            block = first >> open_bits
            found.update(range(block, min(last >> open_bits, block + FEW) + 1))
            if len(found) > FEW:
                break
        else:
            return open_bits, tuple(block << open_bits for block in found)
    return bits, (0,)


def _names(names: Names) -> tuple[int, tuple[int, ...]]:
    if names.others or len(names.names) > FEW:
        return NAME_BITS, (0,)
    return 0, tuple(map(_hash, names.names))


def _hash(name: str) -> int:
    return hash(name) & ((1 << NAME_BITS) - 1)


def outside_of(boxes: Boxes, index: Index) -> Boxes | None:
    """The boxes without those of the index; None when that takes too many, or too long."""
    left: list[Box] = list(boxes)
    most = max(PIECES_MAX, len(boxes))
    for count, number in enumerate(index.near(boxes)):
        for one in index.boxes[number]:
            left = [piece for box in left for piece in box.minus(one)]
        if not left:
            return ()
        if len(left) > most or count == NEAR_MAX:
            return None
    return tuple(left)
