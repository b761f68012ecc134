# SPDX-License-Identifier: Apache-2.0
"""The hash table of a classifier: a place for each entry, and no two in one, so that one line tells.

Hash and displace: what is near by the upper half of its hash moves together, its lower half multiplied by a
number that is tried until all of them come to free places (Belazzougui, Botelho and Dietzfelbinger, "Hash,
displace, and compress", 2009). Those numbers, a byte for four entries, are all that is read beside the
entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearway.model.hashing import mix64, mix64_again

U64 = NDArray[np.uint64]
Ints = NDArray[np.int64]
MOVES_MAX = 0xFF
A_MOVE = 4
"""Entries that move together, on average."""
ROOM = 1.5
"""Places for an entry."""
LINE = 64
"""Moves in a line."""
HALF = np.uint64(32)
LOWER = np.uint64(0xFFFF_FFFF)
FACTORS = np.array(
    [
        0x9E3779B97F4A7C15,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0xD6E8FEB86659FD93,
        0xA0761D6478BD642F,
        0xE7037ED1A0B428DB,
        0x8EBC6AF09C88C6E3,
    ],
    np.uint64,
)


@dataclass(frozen=True)
class Placed:
    """`places`: of each entry, below `count`. `moves`: lines of numbers."""

    places: Ints
    count: int
    moves: U64
    move_count: int
    seed: int


def place_entries(keys: U64, groups: Ints, seed: np.uint64) -> Placed:
    """keys: (n, words), no two alike within a group."""
    count, move_count = int(len(keys) * ROOM) + 1, len(keys) // A_MOVE + 1
    while True:
        hashed = classify_hash(keys, groups, seed)
        together = ((hashed >> HALF) * np.uint64(move_count) >> HALF).astype(np.int64)
        moves = _moves(hashed & LOWER, together, move_count, count)
        if moves is not None:
            break
        seed += np.uint64(2)  # sooner or later one does
    lines = np.zeros(-(-move_count // LINE) * LINE, np.uint8)
    lines[:move_count] = moves
    places = _moved(hashed & LOWER, moves[together], count)
    return Placed(places, count, lines.view(np.uint64).reshape(-1, 8), move_count, int(seed))


def classify_hash(keys: U64, groups: Ints, seed: np.uint64) -> U64:
    """classify_hash() of bpf/classify.h."""
    hashed: U64 = mix64(seed + groups.astype(np.uint64)) + (keys * FACTORS).sum(axis=1, dtype=np.uint64)
    return mix64_again(mix64(hashed))


def _moved(lower: U64, moves: NDArray[Any], count: int) -> Ints:
    """Where they come to stand."""
    factors = moves.astype(np.uint64) * np.uint64(2) + np.uint64(1)
    return ((lower * factors & LOWER) * np.uint64(count) >> HALF).astype(np.int64)


def _moves(lower: U64, together: Ints, move_count: int, count: int) -> Ints | None:
    """A number for each company, those that move `together`; None when this hash will not do. The largest
    choose first, those of one size all at once: of two that want one place the first one has it.
    """
    order = np.argsort(together, kind="stable")
    lower = lower[order]
    sizes = np.bincount(together, minlength=move_count)
    begins = np.cumsum(sizes) - sizes
    taken = np.zeros(count, np.bool_)
    moves = np.zeros(move_count, np.int64)
    for size in range(int(sizes.max(initial=0)), 0, -1):
        waiting = np.flatnonzero(sizes == size)
        members = lower[begins[waiting][:, None] + np.arange(size)]
        while len(waiting):
            places = _moved(members, moves[waiting][:, None], count)
            settled = _settled(places, taken)
            taken[places[settled]] = True
            waiting, members = waiting[~settled], members[~settled]
            moves[waiting] += 1
            if (moves[waiting] > MOVES_MAX).any():
                return None
    return moves


def _settled(places: Ints, taken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which companies (rows) have found places that nobody has, and nobody wants who comes before them."""
    flat = places.reshape(-1)
    _, first = np.unique(flat, return_index=True)
    alone = np.zeros(len(flat), np.bool_)
    alone[first] = True
    alone &= ~taken[flat]
    return np.asarray(alone.reshape(places.shape).all(axis=1))
