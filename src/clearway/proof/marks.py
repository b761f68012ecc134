# SPDX-License-Identifier: Apache-2.0
"""Marks of packets, followed through rules: what rules make of them, and ask of them.

Nothing but rules marks a packet, and conntrack's mark stays as it is: who might change it keeps in Linux
what it might change. So a packet's mark is known everywhere from its connection's (importer/marks.py, Mark).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clearway.importer.box import Box, Boxes, common, limited
from clearway.importer.conditions import Condition, NamedSet
from clearway.importer.errors import InexactError
from clearway.importer.marks import ANY_MARK, MARK_MAX, NO_MARK, ZERO, Mark, Marks
from clearway.importer.words import number_of

Column = NDArray[np.uint32]
KEYS = frozenset({"meta mark", "ct mark"})
UNKNOWN = "its mark depends on an address that may be translated"


@dataclass(frozen=True, slots=True)
class Change:
    """What a rule makes of two marks, m of the packet when it comes to the rule and c of its connection:
    toggle ^ m & packet ^ c & connection ^ m & c & both. Every operation on bits is such a sum (the algebraic
    normal form of each bit).
    """

    toggle: int = 0
    packet: int = 0
    connection: int = 0
    both: int = 0

    def __xor__(self, other: Change) -> Change:
        return Change(
            self.toggle ^ other.toggle,
            self.packet ^ other.packet,
            self.connection ^ other.connection,
            self.both ^ other.both,
        )

    def __and__(self, other: Change) -> Change:
        a, b = self, other
        both = a.both & (b.toggle ^ b.packet ^ b.connection ^ b.both)
        both ^= b.both & (a.toggle ^ a.packet ^ a.connection)
        return Change(
            a.toggle & b.toggle,
            a.toggle & b.packet ^ a.packet & (b.toggle ^ b.packet),
            a.toggle & b.connection ^ a.connection & (b.toggle ^ b.connection),
            both ^ a.packet & b.connection ^ a.connection & b.packet,
        )

    def __or__(self, other: Change) -> Change:
        return self ^ other ^ self & other

    def __invert__(self) -> Change:
        return self ^ Change(MARK_MAX)

    def shifted(self, bits: int) -> Change:
        """To the left; InexactError for what is no number."""
        if self.packet | self.connection | self.both:
            raise InexactError("bits of a mark are moved to others")
        return Change((self.toggle << bits if bits >= 0 else self.toggle >> -bits) & MARK_MAX)

    def of(self, marks: Column, connmarks: Column) -> Column:
        """What each of many packets has afterwards."""
        toggle, packet, connection, both = (
            np.uint32(bits) for bits in (self.toggle, self.packet, self.connection, self.both)
        )
        found: Column = marks & packet ^ connmarks & connection ^ marks & connmarks & both ^ toggle
        return found

    def made_of(self, mark: Mark | None) -> Mark | None:
        """What a packet has afterwards that had this mark before."""
        if mark is None:
            return None if self.packet | self.both else Mark(self.connection, self.toggle)
        connection = self.packet & mark.connection ^ self.connection
        connection ^= self.both & (mark.connection ^ mark.toggle)
        return Mark(connection, self.packet & mark.toggle ^ self.toggle)

    def where(self, marks: Marks, boxes: Boxes) -> Boxes:
        """Of these boxes what has one of the marks by then. InexactError."""
        asked = [cube for cube in marks.cubes if not (cube[1] ^ self.toggle) & cube[0] & ~self._asks]
        if any(mask & (self.both | self.packet & self.connection) for mask, _value in asked):
            raise InexactError("it asks for bits that depend on both marks")
        asked = [(mask, (value ^ self.toggle) & mask) for mask, value in asked]
        packets = [(mask & self.packet, value & self.packet) for mask, value in asked]
        connections = [(mask & self.connection, value & self.connection) for mask, value in asked]
        if not any(mask for mask, _value in connections):
            return limited(boxes, mark=Marks.of(packets))
        if not any(mask for mask, _value in packets):
            return limited(boxes, connmark=Marks.of(connections))
        found: Boxes = ()
        for packet, connection in zip(packets, connections, strict=True):
            found += limited(boxes, mark=Marks.under(*packet), connmark=Marks.under(*connection))
        return found

    @property
    def _asks(self) -> int:
        return self.packet | self.connection | self.both


PACKET, CONNECTION = Change(packet=MARK_MAX), Change(connection=MARK_MAX)
"""The packet's mark as it comes to the rule, and the connection's."""
OF_KEY = {"meta mark": PACKET, "ct mark": CONNECTION}


def number(value: int) -> Change:
    return Change(value & MARK_MAX)


# ---- what is asked ----


def marks_of(condition: Condition, sets: Mapping[str, NamedSet]) -> Marks:
    """The marks that meet a condition of one of KEYS. InexactError when that is not known."""
    elements = [element[0] for element in condition.elements]
    if any(text.startswith("@") for text in elements):
        named = sets.get(elements[0][1:])
        if named is None or len(elements) > 1:
            raise InexactError(f"{elements[0]} is not a set of this table")
        if named.unusable:
            raise InexactError(f"set {elements[0][1:]}: {named.unusable}")
        elements = [element[0] for element in named.elements]
    spans = [_span(text) for text in elements]
    mask = _number(condition.mask) if condition.mask else MARK_MAX
    match condition.operator:
        case "==":
            return _among(spans, mask)
        case "!=":
            return ANY_MARK - _among(spans, mask)
        case "in" | "!":  # any of these bits, or none
            bits = 0
            for first, last in spans:
                if first != last or condition.mask:
                    raise InexactError(f"{condition} {condition.operator} is not known")
                bits |= first
            none = Marks.under(bits, 0)
            return none if condition.operator == "!" else ANY_MARK - none
        case _:
            return _compared(condition.operator, spans, mask)


def _among(spans: Iterable[tuple[int, int]], mask: int) -> Marks:
    found = NO_MARK
    for first, last in spans:
        found |= Marks.under(mask, first) if first == last else _unmasked(Marks.between(first, last), mask)
    return found


def _unmasked(marks: Marks, mask: int) -> Marks:
    if mask != MARK_MAX:
        raise InexactError("a range of marks under a mask is not known")
    return marks


def _compared(operator: str, spans: list[tuple[int, int]], mask: int) -> Marks:
    [(edge, last)] = spans if len(spans) == 1 else [(0, 1)]
    if edge != last or operator not in {"<", "<=", ">", ">="}:
        raise InexactError(f"{operator} is not known for these marks")
    below = edge - (operator in {"<", ">="})
    low = Marks.between(0, below) if below >= 0 else NO_MARK
    return _unmasked(low if operator in {"<", "<="} else ANY_MARK - low, mask)


def _span(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    return _number(first), _number(last if dash else first)


def _number(text: str) -> int:
    return number_of(text, {}, MARK_MAX, "number")


# ---- packets on their way ----


def meeting(boxes: Boxes, asked: Sequence[Box]) -> Boxes:
    """What of the packets in boxes, on their way, is in some that a rule asks for; of those whose mark is not
    known all that may be.
    """
    found = common(boxes, asked)
    if all(one.mark is ANY_MARK for one in found):
        return found
    return tuple(_told(found))


def _told(boxes: Boxes) -> Iterator[Box]:
    """Boxes of connections, where they ask for a packet's mark."""
    for box in boxes:
        connmark = box.connmark
        if box.mark is not ANY_MARK and box.has is not None:
            connmark &= box.has.where(box.mark)
        if connmark:
            yield replace(box, connmark=connmark, mark=ANY_MARK)


def marked(boxes: Boxes, change: Change) -> Boxes:
    """The boxes with what their packets have afterwards."""
    return boxes if change is PACKET else tuple(_marked(box, change) for box in boxes)


def _marked(box: Box, change: Change) -> Box:
    has = change.made_of(box.has)
    return replace(box, has=has and has.settled(box.connmark))


def changed(boxes: Boxes, change: Change) -> Boxes:
    """Those of the boxes whose packets get another mark."""
    return tuple(
        box for box in boxes if box.has is None or _marked(box, change).has != _marked(box, PACKET).has
    )


def disturbed(boxes: Boxes, change: Change) -> Boxes:
    """What of the boxes has connections that would get another mark, if they got what the change makes."""
    return _but(boxes, change, lambda mark: Marks.under(~mark.connection & MARK_MAX, mark.toggle))


def bearing(boxes: Boxes, change: Change) -> Boxes:
    """What of the boxes has packets that have a mark other than 0 afterwards, or one that is not known."""
    return _but(boxes, change, lambda mark: mark.where(ZERO))


def _but(boxes: Boxes, change: Change, spared: Callable[[Mark], Marks]) -> Boxes:
    """The boxes without connections of the marks that are spared, by what their packets have afterwards."""
    found = []
    for box in boxes:
        mark = change.made_of(box.has)
        if rest := box.connmark - (NO_MARK if mark is None else spared(mark)):
            found.append(replace(box, connmark=rest))
    return tuple(found)
