# SPDX-License-Identifier: Apache-2.0
"""Lines of 64 bytes, one after the other, and the trees that are laid out in them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fields import ROW_GROUPS, ROW_LABELS, Field

U64 = NDArray[np.uint64]
KEYS = 8
"""Boundaries of a node."""
DEEPER = 0x8000_0000
"""A value is a line, of a leaf over the next word,"""
IS_TREE = 0x4000_0000
"""or with this one too of a tree."""
LEVELS = 8
FULL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


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
        """The line of the field's tree; 0 where no rule asks for it."""
        if field is None:
            return 0
        classes = (self._add_classes(field) + field.classes).astype(np.uint32)
        if len(field.cuts) == 1:
            return self.add_tree(field.cuts[0] - np.uint64(1), classes)
        high, low = field.cuts
        begins, values = self._add_lower(high, low, classes)
        return self.add_tree(begins - np.uint64(1), values)

    def _add_lower(self, high: U64, low: U64, classes: NDArray[np.uint32]) -> tuple[U64, NDArray[np.uint32]]:
        """Leaves and trees over the lower word, where cuts differ in it alone. Where intervals of the upper
        word begin, and their values: a class, or such a leaf or tree.
        """
        words, first, counts = np.unique(high, return_index=True, return_counts=True)
        whole = (counts == 1) & (low[first] == 0)
        values = classes[first + 1].copy()  # of the class that begins there
        for number in np.flatnonzero(~whole & (counts > KEYS)).tolist():
            cuts = slice(first[number], first[number] + counts[number])
            values[number] = DEEPER | IS_TREE | self._add_few(low[cuts], classes[cuts.start : cuts.stop + 1])
        few = np.flatnonzero(~whole & (counts <= KEYS))
        values[few] = self._add_leaves(low, classes, first[few], counts[few]) + DEEPER
        # Behind a word with a leaf goes on what its last cut began.
        behind = words[~whole] + np.uint64(1)
        behind_values = classes[(first + counts)[~whole]]
        new = (behind != 0) & ~np.isin(behind, words)
        begins = np.concatenate([words, behind[new]])
        values = np.concatenate([values, behind_values[new]])
        order = np.argsort(begins)
        begins, values = begins[order], values[order]
        if len(begins) and begins[0] == 0:
            return begins[1:], values
        return begins, np.concatenate([classes[:1], values])

    def _add_few(self, low: U64, classes: NDArray[np.uint32]) -> int:
        """A tree over the lower word. The first cut may lie at 0: what was before it does not count then."""
        if low[0] == 0:
            return self.add_tree(low[1:] - np.uint64(1), classes[1:])
        return self.add_tree(low - np.uint64(1), classes)

    def _add_leaves(
        self, low: U64, classes: NDArray[np.uint32], first: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        """A leaf for each run of cuts; their lines."""
        leaves = np.zeros((len(first), 2, KEYS), np.uint64)
        leaves[:, 0] = FULL
        values = leaves[:, 1].view(np.uint32)
        values[:, 0] = classes[first]
        for place in range(KEYS):
            there = np.flatnonzero(counts > place)
            cut = first[there] + place
            at_zero = low[cut] == 0  # only a first one may: its end is that of nothing
            leaves[there, 0, place] = low[cut] - np.uint64(1)
            values[there, place + 1] = classes[cut + 1]
            zero = there[at_zero]
            leaves[zero, 0, place], values[zero, 0] = 0, classes[cut[at_zero] + 1]
        begin = self.add(leaves.reshape(-1, 8))
        return (begin + 2 * np.arange(len(first))).astype(np.uint32)

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

    def add_tree(self, ends: U64, values: NDArray[np.uint32]) -> int:
        """ends: the last word of each interval but the last one, ascending; values: one more."""
        levels = 1
        while (KEYS + 1) ** levels < len(values):
            levels += 1
        assert levels <= LEVELS
        bases = [self.add(_nodes(ends, level, levels)) for level in range(levels - 1)]
        nodes = _nodes(ends, levels - 1, levels)
        leaves = np.zeros((len(nodes), 2, KEYS), np.uint64)
        leaves[:, 0] = nodes
        room = np.zeros(len(nodes) * (KEYS + 1), np.uint32)
        room[: len(values)] = values
        leaves[:, 1].view(np.uint32)[:, : KEYS + 1] = room.reshape(-1, KEYS + 1)
        bases.append(self.add(leaves.reshape(-1, 8)))
        head = np.zeros((1, 8), np.uint64)
        numbers = head.view(np.uint32)[0]
        numbers[0] = levels
        numbers[1 : 1 + levels] = bases
        return self.add(head)


def _nodes(ends: U64, level: int, levels: int) -> U64:
    """The nodes of one level. What is behind a node's last boundary is all ones: nothing is greater."""
    below = (KEYS + 1) ** (levels - 1 - level)  # intervals below each child
    count = -(-(len(ends) + 1) // (below * (KEYS + 1)))
    node, key = np.divmod(np.arange(count * KEYS), KEYS)
    index = (node * (KEYS + 1) + key + 1) * below - 1
    padded = np.append(ends, FULL)
    nodes: U64 = padded[np.minimum(index, len(ends))].reshape(-1, KEYS)
    return nodes
