# SPDX-License-Identifier: Apache-2.0
"""Rows that no packet meets first, because a single earlier one asks for the same, or for less."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .conditions import Rows
from .entries import FACTORS

U64 = NDArray[np.uint64]
Ints = NDArray[np.int64]
GENERAL = 16
"""Masks that are compared with those that ask for more: the most general ones, because it is a rule for all,
or for a network, that comes too early. With these 100,000 rules take half a second.
"""


def covered(rows: Rows) -> Ints:
    """Of each row the first earlier one that is known to include it, by its place; -1: there is none."""
    found = np.full(len(rows.rules), len(rows.rules), np.int64)
    masks, of_row = np.unique(rows.masks, axis=0, return_inverse=True)
    of_row = of_row.reshape(-1)
    order = np.argsort(of_row, kind="stable")
    bounds = np.searchsorted(of_row[order], np.arange(len(masks) + 1))
    asked = np.unpackbits(np.ascontiguousarray(masks).view(np.uint8), axis=1).sum(axis=1)
    for place, number in enumerate(np.argsort(asked, kind="stable").tolist()):
        own = order[bounds[number] : bounds[number + 1]]
        behind = own
        if place < GENERAL:
            includes = (masks & masks[number] == masks[number]).all(axis=1)
            behind = np.flatnonzero(includes[of_row])
        _note(found, rows.keys, own, behind, masks[number])
    return np.where(found < len(found), found, -1)


def _note(found: Ints, keys: U64, own: Ints, behind: Ints, mask: U64) -> None:
    """Rows `behind` that ask for what one of `own`, the rows under this mask, asks for; places ascend."""
    masked = keys[behind] & mask
    hashed = _hashed(masked)
    known, first = np.unique(_hashed(keys[own]), return_index=True)
    at = np.minimum(np.searchsorted(known, hashed), len(known) - 1)
    earlier = own[first[at]]
    same = (earlier < behind) & (known[at] == hashed)
    same &= (masked == keys[earlier]).all(axis=1)
    found[behind[same]] = np.minimum(found[behind[same]], earlier[same])


def _hashed(keys: U64) -> U64:
    hashed: U64 = (keys * FACTORS).sum(axis=1, dtype=np.uint64)
    return hashed
