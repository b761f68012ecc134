# SPDX-License-Identifier: Apache-2.0
"""The hash table of a classifier: buckets of eight slots, each a tag and the number of an entry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearway.model.hashing import mix64, mix64_again

U64 = NDArray[np.uint64]
SLOTS = 8
PROBES = 4
"""Buckets that are looked at, one after the other, as long as they are full (CLASSIFY_PROBES)."""
ENTRIES_A_BUCKET = 2.5
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
    buckets: U64
    bucket_count: int
    seed: int


def place_entries(keys: U64, groups: NDArray[np.int64], seed: np.uint64) -> Placed:
    """Every entry within PROBES buckets, and the only one of its tag among those that are looked at."""
    count = max(1, int(len(keys) / ENTRIES_A_BUCKET))
    while True:
        hashed = classify_hash(keys, groups, seed)
        buckets = _place(hashed, count)
        if buckets is not None:
            break
        seed += np.uint64(2)  # sooner or later one does
        count += count // 64
    return Placed(buckets, count, int(seed))


def classify_hash(keys: U64, groups: NDArray[np.int64], seed: np.uint64) -> U64:
    """classify_hash() of bpf/classify.h."""
    hashed: U64 = mix64(seed + groups.astype(np.uint64)) + (keys * FACTORS).sum(axis=1, dtype=np.uint64)
    return mix64_again(mix64(hashed))


def _place(hashed: U64, count: int) -> U64 | None:
    """The buckets; None when this hash will not do."""
    home = ((hashed >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)
    tag = hashed & np.uint64(0xFFFFFFFF) | np.uint64(1)
    if _tags_meet(home, tag):
        return None
    bucket = home.copy()
    while True:  # those that find their bucket full go on to the next one
        order = np.lexsort([home, bucket])
        _, first, sizes = np.unique(bucket[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(first, sizes)
        late = order[rank >= SLOTS]
        if not len(late):
            break
        bucket[late] += 1
        if (bucket[late] - home[late] >= PROBES).any():
            return None
    slots = np.zeros((count + PROBES, SLOTS), np.uint64)
    slots[bucket[order], rank] = tag[order] << np.uint64(32) | (order + 1).astype(np.uint64)
    return slots


def _tags_meet(home: NDArray[np.int64], tag: U64) -> bool:
    order = np.lexsort([home, tag])
    same = tag[order][1:] == tag[order][:-1]
    near = home[order][1:] - home[order][:-1] < 2 * PROBES
    return bool((same & near).any())
