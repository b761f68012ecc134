# SPDX-License-Identifier: Apache-2.0
"""Under which masks rows stand in the hash table: their own, where that is possible; otherwise looser ones,
where rows that share a key are compared one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from .conditions import FAMILY_IPV4, LABEL_MAX, Classified, Rows

U64 = NDArray[np.uint64]

GROUPS = 256
"""Of a classifier (CLASSIFIER_GROUPS)."""
KEPT = 192
"""Masks that stay as they are when there are too many: those that most rows have."""
COMBINATIONS = 64
"""Of labels that one group may be tried with."""
ROUNDINGS = {4: (8, 16, 32), 6: (16, 32, 64, 128)}
"""Bits that lengths of prefixes are cut to a multiple of."""


def loosened(rows: Rows, depths: Sequence[int], family: int) -> U64:
    """A mask for each row, at most GROUPS different ones. depths: the most labels that one address or port
    has, by Classified.
    """
    masks = rows.masks.copy()
    for asks in range(1, 1 << len(Classified)):
        fields = [field for field in Classified if asks >> field & 1]
        if prod(depths[field] for field in fields) > COMBINATIONS:
            _drop_labels(masks, fields, depths)
    different, of_row, counts = np.unique(masks, axis=0, return_inverse=True, return_counts=True)
    if len(different) <= GROUPS:
        return masks
    rank = np.empty(len(different), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(different))
    rare = rank >= KEPT
    for looser in _looser(different[rare], family):
        if KEPT + len(np.unique(looser, axis=0)) <= GROUPS:
            break
    different[rare] = looser
    return different[of_row.reshape(-1)]


def labels_of(masks: U64, field: Classified) -> NDArray[np.bool_]:
    """Which of the masks ask for a label of this field."""
    asked: NDArray[np.bool_] = masks[:, 6] >> np.uint64(48 - 16 * field) & np.uint64(LABEL_MAX) != 0
    return asked


def _drop_labels(masks: U64, fields: Sequence[Classified], depths: Sequence[int]) -> None:
    """Of masks that ask for labels of exactly these fields, those stay that multiply to few combinations."""
    chosen = np.ones(len(masks), np.bool_)
    for field in Classified:
        chosen &= labels_of(masks, field) == (field in fields)
    combinations = 1
    for field in sorted(fields, key=lambda field: depths[field]):
        combinations *= depths[field]
        if combinations > COMBINATIONS:
            masks[chosen, 6] &= ~np.uint64(LABEL_MAX << 48 - 16 * field)


def _looser(masks: U64, family: int) -> Iterator[U64]:
    """The same, looser and looser: in the end they ask for protocols and single ports alone."""
    protocol, single = np.uint64(0xFF << 24), np.uint64(0xFFFF)
    for rounding in ROUNDINGS[family]:
        out = np.zeros_like(masks)
        for high in (0, 2):
            out[:, high], out[:, high + 1] = _cut(masks[:, high], masks[:, high + 1], rounding, family)
        out[:, 4] = masks[:, 4] & protocol
        for shift in (np.uint64(48), np.uint64(32)):
            out[masks[:, 4] >> shift & single == single, 4] |= single << shift
        yield out


def _cut(high: U64, low: U64, rounding: int, family: int) -> tuple[U64, U64]:
    """Masks of addresses, cut to a multiple of so many bits."""
    length = (_bits(high) + _bits(low)) // rounding * rounding
    if family == FAMILY_IPV4:
        return prefix_mask(length, 32), low * np.uint64(0)
    return prefix_mask(length, 64), prefix_mask(length - 64, 64)


def _bits(masks: U64) -> NDArray[np.int64]:
    octets = np.ascontiguousarray(masks).view(np.uint8).reshape(-1, 8)
    count: NDArray[np.int64] = np.unpackbits(octets, axis=1).sum(axis=1, dtype=np.int64)
    return count


def prefix_mask(length: NDArray[np.int64], width: int) -> U64:
    """Masks of `width` bits, of which the first `length` are set: none below 0, all from `width` on."""
    table = np.array([((1 << n) - 1) << (width - n) for n in range(width + 1)], np.uint64)
    return table[np.clip(length, 0, width)]
