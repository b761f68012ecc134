# SPDX-License-Identifier: Apache-2.0
"""Conditions of which it is known how they turn out for every packet that a fast path carries.

Packets are no fragments. They came to this machine's link address, others are not forwarded.
"""

from __future__ import annotations

from clearway.importer.conditions import Condition
from clearway.importer.errors import InexactError
from clearway.importer.words import number_of

FRAGMENT_BITS = 0x3FFF
"""More fragments, and the offset. The bit for `do not fragment` differs from packet to packet."""
TO_US = frozenset({"host", "unicast", "0"})
OFFSET_MAX = 0xFFFF


def settled(condition: Condition) -> bool | None:
    """Whether all packets meet it, or none does; None: it depends on the packet."""
    if len(condition.keys) != 1:
        return None
    key = condition.keys[0]
    try:
        if key == "ip frag-off" and condition.mask and not _number(condition.mask) & ~FRAGMENT_BITS:
            return _of_nothing(condition)
        if key == "meta pkttype" and condition.operator in {"==", "!="}:
            return _named(condition)
    except InexactError:
        return None
    return None


def _named(condition: Condition) -> bool | None:
    values = {element[0] for element in condition.elements}
    if any(value.startswith("@") for value in values):
        return None
    return bool(values & TO_US) == (condition.operator == "==")


def _of_nothing(condition: Condition) -> bool | None:
    """How a condition turns out for 0, which is 0 under any mask."""
    spans = [_span(element[0]) for element in condition.elements]
    first, last = spans[0]
    among = any(first == 0 for first, _last in spans)
    match condition.operator:
        case "==":
            return among
        case "!=":
            return not among
        case "in":  # any of these bits
            return False
        case "!":
            return True
        case "<" if first == last:
            return first > 0
        case "<=" if first == last:
            return True
        case ">" if first == last:
            return False
        case ">=" if first == last:
            return first == 0
    return None


def _span(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    return _number(first), _number(last if dash else first)


def _number(text: str) -> int:
    return number_of(text, {}, OFFSET_MAX, "number")
