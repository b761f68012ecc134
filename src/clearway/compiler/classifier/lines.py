# SPDX-License-Identifier: Apache-2.0
"""Lines of 64 bytes, one after the other, and the trees that are laid out in them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fields import ROW_GROUPS, ROW_LABELS, Field

U64 = NDArray[np.uint64]
KEYS = 8
"""Boundaries of a node."""
LEAF_KEYS = 5
"""Of a leaf, where numbers are one word: their values are in the same line."""
WIDE = 0x8000_0000
"""Beside the line of a tree over numbers in two words."""
LEVELS = 8
FULL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
UPPER = np.uint64(1 << 63)
"""The bit of a word by which it belongs to the second of two trees."""


class Lines:
    """An array of lines that grows; what is added is told its first line."""

    def __init__(self) -> None:
        self._parts: list[U64] = []
        self._end = 0

    def add(self, lines: U64) -> int:
        begin, self._end = self._end, self._end + len(lines)
        self._parts.append(lines)
        return begin

    def put(self, line: int, words: U64) -> None:
        """In the first part."""
        self._parts[0][line] = words

    def joined(self) -> U64:
        return np.concatenate(self._parts)

    def add_field(self, field: Field | None) -> int:
        """The line of the field's first tree; 0 where no rule asks for it."""
        if field is None:
            return 0
        classes = (self._add_classes(field) + field.classes).astype(np.uint32)
        if len(field.cuts) > 1:
            return self.add(self._add_tree(field.cuts, classes, KEYS, FULL)) | WIDE
        (cuts,) = field.cuts
        lower = int(np.searchsorted(cuts, UPPER))
        above = int(np.searchsorted(cuts, UPPER, side="right"))  # the class that begins there, or before
        trees = [
            self._add_tree((part,), values, LEAF_KEYS, UPPER - np.uint64(1))
            for part, values in (
                (cuts[:lower], classes[: lower + 1]),
                (cuts[above:] - UPPER, classes[above:]),
            )
        ]
        return self.add(np.concatenate(trees))

    def _add_classes(self, field: Field) -> int:
        count = len(field.groups)
        out = np.zeros((count, 8), np.uint64)
        out[:, :ROW_GROUPS] = field.groups
        numbers, short = out.view(np.uint32), out.view(np.uint16)
        for number, labels in enumerate(field.labels):
            numbers[number, 8] = len(labels)
            if len(labels) <= ROW_LABELS:
                short[number, 20 : 20 + len(labels)] = labels
                continue
            room = np.zeros(-(-len(labels) // 32) * 32, np.uint16)
            room[: len(labels)] = labels
            numbers[number, 9] = self.add(room.view(np.uint64).reshape(-1, 8))
        return self.add(out)

    def _add_tree(self, cuts: tuple[U64, ...], values: NDArray[np.uint32], keys: int, most: np.uint64) -> U64:
        """The tree's own line, not added yet. cuts: where each interval but the first begins, ascending, in
        one word or two; values: one more. keys: boundaries of a leaf. most: the greatest number of a word.
        """
        below = [keys + 1]  # intervals below each node, by level
        while below[0] < len(values):
            below.insert(0, below[0] * (KEYS + 1))
        assert len(below) <= LEVELS
        ends = _before(cuts)
        bases = [self.add(_nodes(ends, KEYS, child, most).reshape(-1, KEYS)) for child in below[1:]]
        leaves = _nodes(ends, keys, 1, most)
        room = np.zeros(len(leaves) * (keys + 1), np.uint32)
        room[: len(values)] = values
        numbers = np.zeros((len(leaves), 2 * (KEYS - keys or KEYS)), np.uint32)
        numbers[:, : keys + 1] = room.reshape(-1, keys + 1)
        whole = np.concatenate([leaves.reshape(len(leaves), -1), numbers.view(np.uint64)], axis=1)
        bases.append(self.add(whole.reshape(-1, KEYS)))
        head = np.zeros((1, 8), np.uint64)
        numbers = head.view(np.uint32)[0]
        numbers[0] = len(bases)
        numbers[1 : 1 + len(bases)] = bases
        return head


def _before(cuts: tuple[U64, ...]) -> tuple[U64, ...]:
    """The numbers before these."""
    one = np.uint64(1)
    if len(cuts) == 1:
        return (cuts[0] - one,)
    high, low = cuts
    return high - (low == 0), low - one


def _nodes(ends: tuple[U64, ...], keys: int, below: int, most: np.uint64) -> U64:
    """The nodes of one level, (nodes, words of a number, keys). below: intervals of a child. What is behind a
    node's last boundary is `most`: nothing is greater.
    """
    number = len(ends[0])
    count = -(-(number + 1) // (below * (keys + 1)))
    node, key = np.divmod(np.arange(count * keys), keys)
    index = np.minimum((node * (keys + 1) + key + 1) * below - 1, number)
    words = [np.append(one, most)[index].reshape(-1, keys) for one in ends]
    return np.stack(words, axis=1)
