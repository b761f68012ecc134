# SPDX-License-Identifier: Apache-2.0
"""Sets of marks: numbers of 32 bits that rules compare under masks. Exact, as ranges.py is for others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MARK_MAX = 0xFFFF_FFFF

Cube = tuple[int, int]
"""Mask and value: all marks that have this value under the mask."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks in one of the cubes, of which no two overlap."""

    cubes: tuple[Cube, ...]

    @classmethod
    def under(cls, mask: int, value: int) -> Marks:
        """Those of which MARK & mask == value."""
        return cls(() if value & ~mask else ((mask, value),))

    @classmethod
    def of(cls, cubes: Iterable[Cube]) -> Marks:
        """In any of these, which may overlap."""
        found = NO_MARK
        for mask, value in cubes:
            found |= cls.under(mask, value)
        return found

    @classmethod
    def between(cls, first: int, last: int) -> Marks:
        found = []
        while first <= last:
            size = first & -first or MARK_MAX + 1
            while size > last - first + 1:
                size >>= 1
            found.append((MARK_MAX & ~(size - 1), first))
            first += size
        return cls(tuple(found))

    def __bool__(self) -> bool:
        return bool(self.cubes)

    def __contains__(self, mark: int) -> bool:
        return any(mark & mask == value for mask, value in self.cubes)

    def __and__(self, other: Marks) -> Marks:
        if other is ANY_MARK or self.cubes == other.cubes:
            return self
        if self is ANY_MARK:
            return other
        both = (
            (mask | its, value | wanted)
            for mask, value in self.cubes
            for its, wanted in other.cubes
            if not (value ^ wanted) & mask & its
        )
        found = Marks(tuple(both))
        return self if found.cubes == self.cubes else found

    def __sub__(self, other: Marks) -> Marks:
        left = list(self.cubes)
        for cube in other.cubes:
            left = [piece for one in left for piece in _minus(one, cube)]
        return Marks(tuple(left))

    def __or__(self, other: Marks) -> Marks:
        return Marks((*self.cubes, *(other - self).cubes))

    def within(self, other: Marks) -> bool:
        return other is ANY_MARK or self.cubes == other.cubes or not self - other

    def known(self) -> Cube:
        """Mask and value of the bits in which all of them are the same. Not of none."""
        mask, value = self.cubes[0]
        for its, wanted in self.cubes:
            mask &= its & ~(value ^ wanted)
        return mask, value & mask


def _minus(cube: Cube, other: Cube) -> Iterator[Cube]:
    (mask, value), (its, wanted) = cube, other
    if (value ^ wanted) & mask & its:
        yield cube
        return
    more = its & ~mask
    while more:
        bit = more & -more
        yield mask | bit, value | (bit & ~wanted)
        mask, value = mask | bit, value | (bit & wanted)
        more ^= bit


NO_MARK = Marks(())
ANY_MARK = Marks(((0, 0),))
ZERO = Marks(((MARK_MAX, 0),))
"""The mark of what has none."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A packet's mark, as far as it is known from that of its connection: CT MARK & connection ^ toggle.
    A rule may set it to any bits of either, so each bit is 0, 1, the connection's, or that turned round.
    """

    connection: int = 0
    toggle: int = 0

    def of(self, connmark: int) -> int:
        return connmark & self.connection ^ self.toggle

    def settled(self, connmarks: Marks) -> Mark:
        """The same, said of connections with such marks in as few words as possible."""
        mask, value = connmarks.known()
        known = mask & self.connection
        return Mark(self.connection & ~known, self.toggle ^ value & known)

    def where(self, marks: Marks) -> Marks:
        """The marks of connections whose packets have one of these."""
        return Marks.of(
            (mask & self.connection, (value ^ self.toggle) & mask & self.connection)
            for mask, value in marks.cubes
            if not (value ^ self.toggle) & mask & ~self.connection
        )


UNMARKED = Mark()
