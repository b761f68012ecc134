# SPDX-License-Identifier: Apache-2.0
"""Ids and places in tables: what exists keeps its own, what is new gets another one that is free."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from .tables import Area

Key = TypeVar("Key", bound=Hashable)


class NoRoomError(Exception):
    """There is no place left."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"needed {needed}, available {available}")
        self.needed = needed
        self.available = available


@dataclass(frozen=True, slots=True)
class Request:
    """Slots wanted in one piece. Small wheels go to the far end, where they do not split large rooms."""

    size: int
    far_end: bool


def assign_ids(
    wanted: Sequence[Key], held: Mapping[Key, int], size: int, begin: int = 0
) -> tuple[dict[Key, int], int]:
    """An id below `size` for each key: the one it holds, or else the next that nobody holds, from `begin` on
    and round. And where the next ones begin, so that what became free is the last to be given out again.

    What is held by keys that are no longer wanted is not given out: until the switch, their rows are live.
    Raises NoRoomError with the number of ids that are needed at once.
    """
    taken = set(held.values())
    free = (number for number in chain(range(begin, size), range(min(begin, size))) if number not in taken)
    ids = {}
    for key in wanted:
        if key in held:
            ids[key] = held[key]
        elif (number := next(free, None)) is not None:
            ids[key], begin = number, number + 1
        else:
            raise NoRoomError(len({*wanted, *held}), size)
    return ids, begin


def place_areas(requests: Sequence[Request], occupied: Iterable[Area], slots: int) -> list[int]:
    """The base of an area for each request, overlapping nothing: first fit, largest first.

    Raises NoRoomError with the size of the first request that does not fit, and that of the largest free
    piece.
    """
    free = _gaps(occupied, slots)
    bases = [0] * len(requests)
    for number in sorted(range(len(requests)), key=lambda number: -requests[number].size):
        request = requests[number]
        fitting = [index for index, gap in enumerate(free) if gap.size >= request.size]
        if not fitting:
            raise NoRoomError(request.size, max((gap.size for gap in free), default=0))
        index = fitting[-1 if request.far_end else 0]
        gap, rest = free[index], free[index].size - request.size
        bases[number] = gap.base + rest if request.far_end else gap.base
        free[index] = Area(gap.base if request.far_end else gap.base + request.size, rest)
    return bases


def _gaps(occupied: Iterable[Area], slots: int) -> list[Area]:
    """The areas that nothing occupies, from the first slot on."""
    gaps = []
    base = 0
    for area in sorted(occupied, key=lambda area: area.base):
        if area.base > base:
            gaps.append(Area(base, area.base - base))
        base = max(base, area.end)
    if base < slots:
        gaps.append(Area(base, slots - base))
    return gaps
