# SPDX-License-Identifier: Apache-2.0
"""Marks of connections in classes: rules treat those of one class alike, so that a data path need not know
more of a mark than its class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from clearway.importer.marks import ANY_MARK, ZERO, Marks

CLASSES_MAX = 64
CUBES_MAX = 256


@dataclass(frozen=True, slots=True)
class Classes:
    """By number. Connections whose mark is in none are Linux'."""

    parts: tuple[Marks, ...]

    @classmethod
    def telling(cls, wanted: Iterable[Marks]) -> Classes:
        """Each class is in one of the wanted sets, or is not. Where that are too many, there is one for
        connections without a mark.
        """
        parts = [ANY_MARK]
        for marks in dict.fromkeys(wanted):
            if marks is ANY_MARK:
                continue
            parts = [piece for one in parts for piece in (one & marks, one - marks) if piece]
            if len(parts) > CLASSES_MAX or sum(len(one.cubes) for one in parts) > CUBES_MAX:
                return cls((ZERO,))
        return cls(tuple(parts))

    def among(self, marks: Marks) -> tuple[int, ...] | None:
        """The classes that are in one of the sets that they were made for; None: all marks are."""
        if marks is ANY_MARK:
            return None
        return tuple(number for number, part in enumerate(self.parts) if part.cubes[0][1] in marks)
