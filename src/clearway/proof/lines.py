# SPDX-License-Identifier: Apache-2.0
"""Lines of several chains as one list for a view, first match first.

A packet is kept when any of the chains keeps it, but what passes one chain may not pass the next. So the
lines of all but one chain have to do without those that let packets pass: these are taken out of the boxes
that are kept. Where that takes too many boxes, the chain may be the last one, and stay as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clearway.importer.index import Index, outside_of

from .walk import Line


def joined(chains: Sequence[Sequence[Line]]) -> list[Line]:
    """One list for all, in which boxes are too large where nothing else will do."""
    alone = [_alone(lines) for lines in chains]
    hard = [number for number, lines in enumerate(alone) if lines is None]
    last = max(hard, key=lambda number: len(chains[number]), default=None)
    found: list[Line] = []
    for number, lines in enumerate(alone):
        if number != last:
            found += _larger(chains[number]) if lines is None else lines
    return found if last is None else [*found, *_trimmed(chains[last])]


def _trimmed(lines: Sequence[Line]) -> Sequence[Line]:
    """Up to the last that keeps something."""
    kept = [number for number, line in enumerate(lines) if line.cause is not None]
    return lines[: kept[-1] + 1] if kept else ()


def _alone(lines: Sequence[Line]) -> list[Line] | None:
    """The lines that keep something, without those that let pass; None where that is not simple."""
    found, index = [], Index()
    for line in lines:
        if line.cause is None:
            index.add(line.boxes)
            continue
        boxes = outside_of(line.boxes, index)
        if boxes is None:
            return None
        if boxes:
            found.append(replace(line, boxes=boxes))
    return found


def _larger(lines: Sequence[Line]) -> list[Line]:
    """The same, where boxes stay as they are if there is no simple way."""
    found, index = [], Index()
    for line in lines:
        if line.cause is None:
            index.add(line.boxes)
            continue
        boxes = outside_of(line.boxes, index)
        if boxes is None or boxes:
            found.append(line if boxes is None else replace(line, boxes=boxes))
    return found
