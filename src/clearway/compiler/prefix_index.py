# SPDX-License-Identifier: Apache-2.0
"""Lists of prefixes as the data path looks them up: an array of cache lines (bpf/scrub.h, bpf/types.h).

Addresses are numbers of 128 bits in two words, those of IPv4 in the upper 32 bits. What lists say is laid out
as ranges that do not overlap; where entries do, the one that lives longest counts, then the list that comes
first. Ranges are cut where granules end, the first bits of an address; how many, is chosen so that few
granules are cut and not many are covered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.model.hashing import mix64, mix64_again
from clearway.model.prefix_list import PrefixRows
from clearway.model.scrub import LISTS_MAX

from .facts import Clock

Array = npt.NDArray[Any]
U64 = npt.NDArray[np.uint64]

WORDS = 8  # of a line
PREFIX_WHOLE = 1 << 31
PREFIX_PROBES = 8
PREFIX_TIME_SHIFT = 10
GRANULES_OF_BUCKET = 4
RANGES_OF_LINE = {4: 4, 6: 1}
GRANULE_BITS = {4: range(32, 4, -4), 6: range(64, 4, -4)}
"""What is tried, by family."""
GRANULES_FREE = 256
"""So many more than ranges do no harm."""
FILTER_BITS = 16
"""For each granule: one address in a hundred that is in none passes; with half of it one in twenty-five."""
FILTER_LINES = 16384
LOAD = 0.6
"""Of the buckets."""
FOREVER = 1 << 32
PORTION = 1 << 22
ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
U0, U1, U6, U12, U32, U63, U64BITS = (np.uint64(number) for number in (0, 1, 6, 12, 32, 63, 64))


@dataclass(frozen=True)
class Ranges:
    """Ranges of addresses in their order, none overlapping: first and last in two words each; `expires` as
    the data path counts, 0: never; `lists`: numbers, or places in the order of lists.
    """

    first: tuple[U64, U64]
    last: tuple[U64, U64]
    expires: Array
    lists: Array

    def __len__(self) -> int:
        return len(self.lists)

    def take(self, rows: Array) -> Ranges:
        return Ranges(
            (self.first[0][rows], self.first[1][rows]),
            (self.last[0][rows], self.last[1][rows]),
            self.expires[rows],
            self.lists[rows],
        )


_NOBODY = np.zeros(0, np.uint64)
_NONE = Ranges((_NOBODY, _NOBODY), (_NOBODY, _NOBODY), np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class PrefixImage:
    """Lists of a kind and family: the fields of struct prefix_index, and lines (n, 8) of words."""

    index: Mapping[str, int]
    lines: U64

    @property
    def bytes(self) -> int:
        return self.lines.nbytes


def prefix_image(
    lists: Sequence[tuple[int, PrefixRows]], family: int, clock: Clock, seed: int = 0
) -> PrefixImage | None:
    """Of lists in their order, each with its number; None when nothing is listed.

    What has expired by `clock` is left out.
    """
    ranges = _ranges(lists, family, clock)
    if not len(ranges):
        return None
    shift = np.uint64(64 - _granule_bits(ranges, family))
    pieces, granules = _cut(ranges, shift)
    whole = _covers(pieces, granules, shift)
    begins = np.flatnonzero(np.r_[True, granules[1:] != granules[:-1]])
    counts = np.diff(np.r_[begins, len(granules)])
    in_ranges = np.cumsum(~whole) - ~whole  # of each piece: ranges before it
    entry_whole = whole[begins]
    at = np.where(entry_whole, pieces.expires[begins], in_ranges[begins]).astype(np.uint64)
    count = np.where(entry_whole, PREFIX_WHOLE | pieces.lists[begins], counts).astype(np.uint64)
    keys = granules[begins]
    hashed = mix64_again(mix64(keys ^ np.uint64(seed)))
    filter_lines = _filter(hashed)
    buckets, homes, probes = _buckets(keys, at | count << U32, hashed)
    index = {
        "seed": seed,
        "words": filter_lines.size,
        "shift": int(shift),
        "bucket_line": len(filter_lines),
        "buckets": homes,
        "probes": probes,
        "range_line": len(filter_lines) + len(buckets),
    }
    range_lines = _range_lines(pieces.take(np.flatnonzero(~whole)), family)
    return PrefixImage(index, np.concatenate([filter_lines, buckets, range_lines]))


# ---- from entries to ranges ----


def _ranges(lists: Sequence[tuple[int, PrefixRows]], family: int, clock: Clock) -> Ranges:
    if not lists:
        return _NONE
    rows = np.concatenate([found.rows for _number, found in lists])
    places = np.repeat(np.arange(len(lists)), [len(found) for _number, found in lists])
    ends = np.concatenate([found.expires for _number, found in lists])
    expires, live = _moments(ends, clock)
    rows, places, expires = rows[live], places[live], expires[live]
    lengths = rows[:, -1].astype(np.uint64)
    first = _words(rows[:, :-1], family)
    last = tuple(word | mask for word, mask in zip(first, _host_bits(lengths), strict=True))
    ranges = Ranges(first, (last[0], last[1]), expires, places)
    order = np.lexsort((first[1], first[0]))
    ranges = ranges.take(order)
    found = ranges if _are_apart(ranges) else _untangled(ranges)
    numbers = np.array([number for number, _found in lists])
    return replace(found, lists=numbers[found.lists])


def _are_apart(ranges: Ranges) -> bool:
    (high, low), (last_high, last_low) = ranges.first, ranges.last
    above = high[1:] > last_high[:-1]
    return bool((above | (high[1:] == last_high[:-1]) & (low[1:] > last_low[:-1])).all())


def _untangled(ranges: Ranges) -> Ranges:
    """The same where some overlap. Of entries of the same prefix the best alone is laid out."""
    score = np.where(ranges.expires == 0, FOREVER, ranges.expires) * LISTS_MAX + (
        LISTS_MAX - 1 - ranges.lists
    )
    edges = (*ranges.first, *ranges.last)
    order = np.lexsort((-score, *edges))
    same = np.logical_and.reduce([edge[order][1:] == edge[order][:-1] for edge in edges])
    best = order[np.r_[True, ~same]]
    ranges, score = ranges.take(best), score[best]
    painted, points = _painted(ranges.first, ranges.last, score)
    begins = np.flatnonzero(np.r_[True, painted[1:] != painted[:-1]])
    ends = np.r_[begins[1:], len(painted)]
    kept = painted[begins] > 0
    begins, ends = begins[kept], ends[kept]
    found = painted[begins]
    moments = found // LISTS_MAX
    low = points[1][ends] - U1  # the last address of all has no successor: there 0 - 1 is what is wanted
    high = points[0][ends] - (points[1][ends] == 0)
    return Ranges(
        (points[0][begins], points[1][begins]),
        (high, low),
        np.where(moments == FOREVER, 0, moments),
        LISTS_MAX - 1 - found % LISTS_MAX,
    )


def _moments(ends: Array, clock: Clock) -> tuple[Array, Array]:
    """Moments as the data path counts them, 0: never; and which entries live."""
    left = np.clip(ends - clock.seconds, 0, (1 << 30))
    moments = ((clock.jiffies + (left * clock.hz).astype(np.int64)) >> PREFIX_TIME_SHIFT) + 1
    return np.where(ends == 0, 0, np.maximum(1, moments & 0xFFFF_FFFF)), (ends == 0) | (ends > clock.seconds)


def _words(addresses: Array, family: int) -> tuple[U64, U64]:
    octets = np.ascontiguousarray(addresses)
    if family == 4:
        upper = octets.reshape(-1).view(">u4").astype(np.uint64) << U32
        return upper, np.zeros_like(upper)
    words = octets.reshape(-1).view(">u8").astype(np.uint64).reshape(-1, 2)
    return words[:, 0].copy(), words[:, 1].copy()


def _host_bits(lengths: U64) -> tuple[U64, U64]:
    """What a prefix leaves open, in two words."""
    upper = np.where(lengths >= U64BITS, U0, ONES >> np.minimum(lengths, U63))
    beyond = np.maximum(lengths, U64BITS) - U64BITS
    lower = np.where(beyond >= U64BITS, U0, ONES >> np.minimum(beyond, U63))
    return upper, lower


def _painted(first: tuple[U64, U64], last: tuple[U64, U64], score: Array) -> tuple[Array, tuple[U64, U64]]:
    """The best score of all that lies between two points where anything begins or ends, and these points in
    their order, one more than scores.
    """
    count = len(score)
    after_low = last[1] + U1
    after_high = last[0] + (after_low == 0)
    at_end = (after_low == 0) & (after_high == 0)
    high, low = np.r_[first[0], after_high], np.r_[first[1], after_low]
    order = np.lexsort((low, high))
    order = order[~np.r_[np.zeros(count, bool), at_end][order]]  # behind the last address there is nothing
    sorted_high, sorted_low = high[order], low[order]
    new = np.ones(len(order), bool)
    new[1:] = (sorted_high[1:] != sorted_high[:-1]) | (sorted_low[1:] != sorted_low[:-1])
    ranks = np.zeros(2 * count, np.int64)
    ranks[order] = np.cumsum(new) - 1
    points = sorted_high[new], sorted_low[new]
    begins, ends = ranks[:count], np.where(at_end, len(points[0]), ranks[count:])
    painted = np.zeros(len(points[0]), np.int64)
    for rows in _portions(ends - begins):
        sizes = ends[rows] - begins[rows]
        before = np.cumsum(sizes) - sizes
        places = np.repeat(begins[rows] - before, sizes) + np.arange(sizes.sum())
        np.maximum.at(painted, places, np.repeat(score[rows], sizes))
    return painted, (np.r_[points[0], U0], np.r_[points[1], U0])


def _portions(sizes: Array) -> Iterator[slice]:
    """Rows that are done at a time: what they cover together bounds the memory that it takes."""
    portion = np.cumsum(sizes) // PORTION
    edges = np.flatnonzero(np.diff(portion)) + 1
    yield from (slice(*pair) for pair in pairwise([0, *edges.tolist(), len(sizes)]))


# ---- granules ----


def _granule_bits(ranges: Ranges, family: int) -> int:
    """The most bits with which granules are not many more than ranges."""
    for bits in GRANULE_BITS[family]:
        shift = np.uint64(64 - bits)
        first, last = ranges.first[0] >> shift, ranges.last[0] >> shift
        shared = np.count_nonzero(first[1:] == last[:-1])
        granules = (last - first).astype(np.float64).sum() + len(ranges) - shared
        if granules <= 1.25 * len(ranges) + GRANULES_FREE:
            break
    return bits


def _cut(ranges: Ranges, shift: np.uint64) -> tuple[Ranges, U64]:
    """The ranges in pieces, each within the granule that is told with it."""
    begin, end = ranges.first[0] >> shift, ranges.last[0] >> shift
    counts = (end - begin).astype(np.int64) + 1
    rows = np.repeat(np.arange(len(ranges)), counts)
    step = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    granules = begin[rows] + step.astype(np.uint64)
    pieces = ranges.take(rows)
    opens, closes = step == 0, granules == end[rows]
    floor = granules << shift
    first = np.where(opens, pieces.first[0], floor), np.where(opens, pieces.first[1], U0)
    ceiling = floor | _below(shift)
    last = np.where(closes, pieces.last[0], ceiling), np.where(closes, pieces.last[1], ONES)
    return Ranges(first, last, pieces.expires, pieces.lists), granules


def _below(shift: np.uint64) -> np.uint64:
    return np.uint64((1 << int(shift)) - 1)


def _covers(pieces: Ranges, granules: U64, shift: np.uint64) -> Array:
    """Which pieces are granules."""
    floor = granules << shift
    begins: Array = (pieces.first[0] == floor) & (pieces.first[1] == 0)
    covers: Array = begins & (pieces.last[0] == floor | _below(shift)) & (pieces.last[1] == ONES)
    return covers


# ---- lines ----


def _filter(hashed: U64) -> U64:
    """(n, 8) words."""
    lines = min(FILTER_LINES, -(-len(hashed) * FILTER_BITS // (64 * WORDS)))
    words = lines * WORDS
    found = np.zeros(words, np.uint64)
    place = (hashed >> U32) * np.uint64(words) >> U32
    bits = U1 << (hashed & U63) | U1 << (hashed >> U6 & U63) | U1 << (hashed >> U12 & U63)
    np.bitwise_or.at(found, place, bits)
    return found.reshape(-1, WORDS)


def _buckets(keys: U64, values: U64, hashed: U64) -> tuple[U64, int, int]:
    """(n, 8) words; how many of these lines are homes, and how many have to be looked at from a home on."""
    homes = max(1, int(len(keys) / (GRANULES_OF_BUCKET * LOAD)))
    while True:
        home = ((hashed >> U32) * np.uint64(homes) >> U32).astype(np.int64)
        order = np.argsort(home)
        home = home[order]
        number = np.arange(len(keys))
        place = number + np.maximum.accumulate(GRANULES_OF_BUCKET * home - number)
        probes = int((place // GRANULES_OF_BUCKET - home).max()) + 1
        if probes <= PREFIX_PROBES:
            break
        homes += homes // 4 + 1
    slots = np.zeros(((homes + probes) * GRANULES_OF_BUCKET, 2), np.uint64)
    slots[place] = np.stack([keys, values], axis=1)[order]
    return slots.reshape(-1, WORDS), homes, probes


def _range_lines(ranges: Ranges, family: int) -> U64:
    """(n, 8) words."""
    each = RANGES_OF_LINE[family]
    told = ranges.expires.astype(np.uint64) | ranges.lists.astype(np.uint64) << U32
    if family == 4:
        columns = [ranges.first[0] >> U32 | ranges.last[0] >> U32 << U32, told]
    else:
        columns = [*ranges.first, *ranges.last, told, *[np.zeros_like(told)] * 3]
    found = np.stack(columns, axis=1)
    missing = -len(found) % each
    return np.concatenate([found, np.zeros((missing, found.shape[1]), np.uint64)]).reshape(-1, WORDS)
