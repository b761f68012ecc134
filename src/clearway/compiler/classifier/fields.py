# SPDX-License-Identifier: Apache-2.0
"""What an address or a port alone says: all numbers cut into intervals, and for each interval the groups that
have a rule for it and the labels that its members have.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearway.model import Prefixes

from .conditions import FAMILY_IPV4, LABEL_MAX, Classified, Labels, Rows, Sets, ports_of, prefixes_of
from .relax import labels_of, prefix_mask

U64 = NDArray[np.uint64]
Ints = NDArray[np.int64]

WIDE = 128
"""Bits of a value that takes two words."""
FULL_WORD = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
PREFIX = {
    4: np.dtype([("low", ">u4"), ("length", "u1")]),
    6: np.dtype([("high", ">u8"), ("low", ">u8"), ("length", "u1")]),
}
"""Rows of Prefixes, by family."""
ROW_GROUPS = 4
"""Words of bits, a bit a group (struct classifier_class)."""
ROW_LABELS = 12
"""Labels that stand in the class itself."""


@dataclass(frozen=True)
class Field:
    """Classes, by number: `groups` (n, ROW_GROUPS) bits, `labels` of each, ascending. `cuts`: where intervals
    begin, the upper and the lower word of what is looked up, or the only one; `classes`: theirs, one more.
    """

    groups: U64
    labels: list[NDArray[np.uint16]]
    cuts: tuple[U64, ...]
    classes: Ints


@dataclass(frozen=True)
class Spans:
    """What rows and labels ask of a field. `cuts`: where intervals begin, but for the first, as numbers, or
    as bytes in network order where they have 128 bits.

    Then span by span the first interval and the one after its last: of rows that ask under a mask (`asked`),
    and of labels (`tags`), where none covers an interval twice. `labels`: how many there are.
    """

    cuts: NDArray[Any]
    asked: Ints
    begin: Ints
    after: Ints
    tags: Ints
    label_begin: Ints
    label_after: Ints
    labels: int

    @property
    def intervals(self) -> int:
        return len(self.cuts) + 1

    @property
    def depth(self) -> int:
        """The most labels that one value has."""
        return int(_covered(self.label_begin, self.label_after, self.intervals).max(initial=0))


def spans_of(field: Classified, rows: Rows, sets: Sets, family: int) -> Spans:
    """KeyError for the name of a set that is not there."""
    width = _width(field, family)
    tags, high, low, last_high, last_low = _labelled(rows.labels[field], field, sets, family)
    if width == WIDE and not low.any() and (last_low == FULL_WORD).all():
        # The trees only tell what to try, and what is tried is compared: for rows that ask under a mask the
        # upper words will do, and those are found in half as many lines.
        width, low, last_low = 64, high, last_high
    asked, begin, after = _masked(rows, field, width)
    label_begin, label_after = _numbers(high, low, width), _after(last_high, last_low, width)
    bounds = np.sort(np.concatenate([begin, after, label_begin, label_after]))
    new = np.ones(len(bounds), np.bool_)
    new[1:] = bounds[1:] != bounds[:-1]
    cuts = bounds[new & (bounds != bounds.dtype.type())]  # the first interval begins at 0
    places = (_places(cuts, begin), _places(cuts, after, end=True))
    of_labels = _disjoint(tags, _places(cuts, label_begin), _places(cuts, label_after, end=True))
    return Spans(cuts, asked, *places, *of_labels, len(rows.labels[field].number))


def field_of(field: Classified, spans: Spans, rows: Rows, of_row: Ints, groups: int) -> Field | None:
    """None when no rule asks for this field. of_row: each row's group; groups: how many there are."""
    if not len(spans.asked) and not spans.labels:
        return None
    bits = _group_bits(spans, rows, of_row, groups, field)
    _add_label_bits(bits, spans, rows, of_row, field)
    first, of_interval = _alike(bits, _label_hashes(spans))
    changes = np.flatnonzero(of_interval[1:] != of_interval[:-1])
    return Field(
        bits[first],
        _label_lists(spans, first),
        _words_of(spans.cuts[changes]),
        of_interval[np.concatenate([[0], changes + 1])],
    )


# ---- intervals ----


def _width(field: Classified, family: int) -> int:
    """Bits of a value."""
    return 16 if field >= Classified.SPORT else 32 if family == FAMILY_IPV4 else WIDE


def _masked(rows: Rows, field: Classified, width: int) -> tuple[Ints, NDArray[Any], NDArray[Any]]:
    """Rows that ask for this field by a mask; the first values of what they ask for, and those after it."""
    high, low, mask_high, mask_low = _words(rows, field)
    asked = np.flatnonzero(mask_high | mask_low)
    high, low, mask_high, mask_low = (word[asked] for word in (high, low, mask_high, mask_low))
    if width == WIDE:
        return asked, _numbers(high, low, width), _after(high | ~mask_high, low | ~mask_low, width)
    full = np.uint64((1 << width) - 1)
    return asked, _numbers(low, high, width), _after(low, high | (~mask_high & full), width)


def _words(rows: Rows, field: Classified) -> tuple[U64, U64, U64, U64]:
    """Values and masks of a field: the word that is looked up first, and the second one."""
    if field < Classified.SPORT:
        at = 2 * field
        return rows.keys[:, at], rows.keys[:, at + 1], rows.masks[:, at], rows.masks[:, at + 1]
    shift = np.uint64(48 if field is Classified.SPORT else 32)
    value, mask = (column[:, 4] >> shift & np.uint64(0xFFFF) for column in (rows.keys, rows.masks))
    return value, value * 0, mask, mask * 0


def _numbers(high: U64, low: U64, width: int) -> NDArray[Any]:
    """Numbers, of two words; those of 128 bits as bytes that compare as the numbers do."""
    if width < WIDE:
        return low
    return np.frombuffer(np.column_stack([high, low]).astype(">u8").tobytes(), "S16")


def _after(high: U64, low: U64, width: int) -> NDArray[Any]:
    """The numbers after these; 0 after the last one that there is."""
    low = low + np.uint64(1)
    if width == WIDE:
        return _numbers(high + (low == 0), low, width)
    return low & np.uint64((1 << width) - 1)


def _places(cuts: NDArray[Any], bounds: NDArray[Any], end: bool = False) -> Ints:
    """The intervals that begin there. end: where nothing is after it, the one after the last."""
    places = np.searchsorted(cuts, bounds, side="right")
    if end:
        places[bounds == bounds.dtype.type()] = len(cuts) + 1
    return places


def _disjoint(tags: Ints, begin: Ints, after: Ints) -> tuple[Ints, Ints, Ints]:
    """The same intervals by tag, none twice."""
    order = np.lexsort((begin, tags))
    tags, begin, after = tags[order], begin[order], after[order]
    apart = int(after.max(initial=0)) + 1
    reached = np.maximum.accumulate(after + tags * apart)[:-1] - tags[1:] * apart if len(tags) else after
    begin[1:] = np.maximum(begin[1:], reached)  # negative where another tag's ended
    new = begin < after
    return tags[new], begin[new], after[new]


def _labelled(labels: Labels, field: Classified, sets: Sets, family: int) -> tuple[Ints, U64, U64, U64, U64]:
    """Of all members of all labels whose they are, their first and their last values, in two words each."""
    parts: list[tuple[U64, U64, U64, U64]] = []
    for members in labels.number:
        if field >= Classified.SPORT:
            ports = ports_of(members, sets)
            low, last_low = (
                np.array([getattr(one, name) for one in ports], np.uint64) for name in ("first", "last")
            )
            parts.append((low * np.uint64(0), low, low * np.uint64(0), last_low))
        else:
            parts.append(_ends_of(prefixes_of(members, sets), family))
    counts = np.array([len(part[0]) for part in parts], np.int64)
    none = np.zeros(0, np.uint64)
    high, low, last_high, last_low = (
        np.concatenate([none, *(part[number] for part in parts)]) for number in range(4)
    )
    return np.repeat(np.arange(1, len(counts) + 1), counts), high, low, last_high, last_low


def _ends_of(prefixes: Prefixes, family: int) -> tuple[U64, U64, U64, U64]:
    """The first and the last address of prefixes of one family, in two words each."""
    rows = np.frombuffer(prefixes.of_family(family), PREFIX[family])
    low, length = rows["low"].astype(np.uint64), rows["length"].astype(np.int64)
    if family == FAMILY_IPV4:
        last = low | ~prefix_mask(length, 32) & np.uint64(0xFFFFFFFF)
        return low * np.uint64(0), low, low * np.uint64(0), last
    high = rows["high"].astype(np.uint64)
    return high, low, high | ~prefix_mask(length, 64), low | ~prefix_mask(length - 64, 64)


# ---- what holds in an interval ----


def _group_bits(spans: Spans, rows: Rows, of_row: Ints, groups: int, field: Classified) -> U64:
    """Bits of the groups with rows that ask for nothing here, or for a mask that covers the interval."""
    bits = np.zeros((spans.intervals, ROW_GROUPS), np.uint64)
    indifferent = ~labels_of(rows.masks, field)
    indifferent[spans.asked] = False
    open_to_all = np.zeros(groups, np.bool_)
    open_to_all[of_row[indifferent]] = True
    group = of_row[spans.asked]
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(groups + 1))
    for number in range(groups):
        mine = order[bounds[number] : bounds[number + 1]]
        bit = np.uint64(1 << number % 64)
        if open_to_all[number]:
            bits[:, number // 64] |= bit
        elif len(mine):
            covered = _covered(spans.begin[mine], spans.after[mine], spans.intervals) > 0
            bits[covered, number // 64] |= bit
    return bits


def _covered(begin: Ints, after: Ints, intervals: int) -> Ints:
    """How many of these spans cover each interval."""
    steps = np.bincount(begin, minlength=intervals + 1) - np.bincount(after, minlength=intervals + 1)
    return np.cumsum(steps[:intervals])


def _add_label_bits(bits: U64, spans: Spans, rows: Rows, of_row: Ints, field: Classified) -> None:
    """Bits of the groups with rows that ask for a label which the interval has."""
    label = (rows.keys[:, 6] >> np.uint64(48 - 16 * field) & np.uint64(LABEL_MAX)).astype(np.int64)
    for number in np.unique(of_row[label != 0]).tolist():
        mine = np.isin(spans.tags, label[of_row == number])
        covered = _covered(spans.label_begin[mine], spans.label_after[mine], spans.intervals) > 0
        bits[covered, number // 64] |= np.uint64(1 << number % 64)


def _label_hashes(spans: Spans) -> U64:
    """A number that is the same for intervals with the same labels; differing ones share it by a chance of
    2^-64.
    """
    secret = np.random.default_rng().integers(1, 1 << 63, spans.labels + 1, np.uint64)
    steps = np.zeros(spans.intervals + 1, np.uint64)
    np.add.at(steps, spans.label_begin, secret[spans.tags])
    np.subtract.at(steps, spans.label_after, secret[spans.tags])
    return np.cumsum(steps[: spans.intervals], dtype=np.uint64)


def _alike(bits: U64, labels: U64) -> tuple[Ints, Ints]:
    """Intervals that say the same are one class: the first interval of each, and each interval's class."""
    factors = np.random.default_rng().integers(1, 1 << 63, ROW_GROUPS, np.uint64) | np.uint64(1)
    _, first, of_interval = np.unique(
        (bits * factors).sum(axis=1, dtype=np.uint64) + labels, return_index=True, return_inverse=True
    )
    if (bits != bits[first[of_interval]]).any():  # by a chance of 2^-64: other factors will do
        return _alike(bits, labels)
    return first, of_interval


def _label_lists(spans: Spans, first: Ints) -> list[NDArray[np.uint16]]:
    """The labels of each class, ascending, given an interval of each."""
    if not len(spans.tags):
        return [np.zeros(0, np.uint16)] * len(first)
    order = np.argsort(first)
    low, high = (np.searchsorted(first[order], bound) for bound in (spans.label_begin, spans.label_after))
    counts = high - low
    of_class = np.repeat(low - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    label = np.repeat(spans.tags, counts)
    sort = np.lexsort((label, of_class))
    ends = np.searchsorted(of_class[sort], np.arange(len(first) + 1))
    labels = label[sort].astype(np.uint16)
    lists = [labels[begin:end] for begin, end in pairwise(ends.tolist())]
    out: list[NDArray[np.uint16]] = [np.zeros(0, np.uint16)] * len(first)
    for place, number in enumerate(order.tolist()):
        out[number] = lists[place]
    return out


def _words_of(cuts: NDArray[Any]) -> tuple[U64, ...]:
    if cuts.dtype == np.uint64:
        return (cuts,)
    words = np.frombuffer(cuts.tobytes(), ">u8").reshape(-1, 2).astype(np.uint64)
    return words[:, 0], words[:, 1]
