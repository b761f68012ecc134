# SPDX-License-Identifier: Apache-2.0
"""A table of flows, mapped into memory: read while packets go through it, whole columns at a time.

The layout is bpf/types.h's: buckets of seven entries behind a line of marks; how a key finds its two buckets
is bpf/table.h's. A mark that is the same before and after an entry was copied tells that the copy is one
entry and no mixture.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.model.hashing import mix64, mix64_again
from clearway.model.sizes import FLOW_LINES as LINES
from clearway.model.sizes import FLOW_SLOTS as SLOTS
from clearway.model.sizes import LINE, bucket_bytes, buckets_for

__all__ = [
    "FAMILY_IPV4",
    "FAMILY_IPV6",
    "SLOTS",
    "TAG_SHIFT",
    "Entries",
    "FlowTable",
    "Keys",
    "as_bytes",
    "bucket_bytes",
    "buckets_for",
    "same_addresses",
]

Array = npt.NDArray[Any]

FAMILY_IPV4 = 4
FAMILY_IPV6 = 6
TAG_SHIFT = np.uint32(16)
TAG_FIRST = 3  # FLOW_TAG_FIRST
ALL = slice(None)
TRIES = 4


@dataclass(frozen=True)
class Entries:
    """Copies of entries. `slot`: rows of struct flow4 or flow6; `place`: bucket * SLOTS + slot; `mark`,
    `rare` and `nat` as struct flow_marks has them.
    """

    slot: Array
    place: Array
    mark: Array
    rare: Array
    nat: Array

    @property
    def flow(self) -> Array:
        """What both families share: rows of struct flow."""
        column: Array = self.slot["flow"]
        return column

    def take(self, rows: Array) -> Entries:
        return Entries(*(column.take(rows) for column in self._columns()))

    @staticmethod
    def joined(parts: Sequence[Entries]) -> Entries:
        columns = zip(*(part._columns() for part in parts), strict=True)
        return Entries(*(np.concatenate(column) for column in columns))

    def _columns(self) -> tuple[Array, ...]:
        return self.slot, self.place, self.mark, self.rare, self.nat

    def __len__(self) -> int:
        return len(self.place)


@dataclass(frozen=True)
class Keys:
    """Tuples as packets show them: addresses as rows of bytes (n, 4 or 16), ports as numbers."""

    src: Array
    dst: Array
    sport: Array
    dport: Array
    proto: Array

    def take(self, rows: Array) -> Keys:
        return Keys(*(column[rows] for column in (self.src, self.dst, self.sport, self.dport, self.proto)))


class FlowTable:
    """One of an instance's tables. Nothing is copied before it is asked for; close() ends the mapping."""

    def __init__(
        self, fd: int, *, family: int, which: int, buckets: int, key: Array, dtype: np.dtype[Any]
    ) -> None:
        """fd: of the inner map, which this object owns. which: place in struct flow_tables. key: of the hash.
        dtype: struct flow4_bucket or flow6_bucket.
        """
        self.family = family
        self.which = which
        self.buckets = buckets
        self.key = key.astype(np.uint64)
        self._dtype = dtype
        self._fd = fd
        size = buckets * bucket_bytes(family)
        try:
            self._mapping = mmap.mmap(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    @cached_property
    def rows(self) -> Array:
        """The buckets themselves, (buckets,): what is written here, packets see."""
        return np.frombuffer(self._mapping, self._dtype, self.buckets)

    @cached_property
    def _marks(self) -> Array:
        marks: Array = self.rows["marks"]
        return marks

    @cached_property
    def _lines(self) -> Array:
        return np.frombuffer(self._mapping, f"V{LINE}", self.buckets * (1 + SLOTS * LINES[self.family]))

    @property
    def _slot_dtype(self) -> np.dtype[Any]:
        field = self._dtype["slot"]
        assert field.subdtype is not None
        return field.subdtype[0]

    def entries(self, buckets: slice = ALL) -> Entries:
        """All entries in force. What changes while it is read is read again, up to TRIES times."""
        begin, _end, _step = buckets.indices(self.buckets)
        marks = np.ascontiguousarray(self._marks["mark"][buckets]).reshape(-1)
        places = begin * SLOTS + np.flatnonzero(marks >> TAG_SHIFT >= TAG_FIRST)
        parts = []
        for _ in range(TRIES):
            entries, same = self.entries_at(places)
            if same.all():
                parts.append(entries)
                break
            parts.append(entries.take(np.flatnonzero(same)))
            places = places[~same]
        return parts[0] if len(parts) == 1 else Entries.joined(parts)

    def count(self) -> int:
        """How many entries are in force."""
        return int(np.count_nonzero(self._marks["mark"] >> TAG_SHIFT >= TAG_FIRST))

    def entries_at(self, places: Array) -> tuple[Entries, Array]:
        """Entries by place, and which of them are in force and did not change while they were read."""
        bucket, slot = places // SLOTS, places % SLOTS
        before = self._marks["mark"][bucket, slot]
        rare, nat = (self._marks[name][bucket, slot] for name in ("rare", "nat"))
        entries = Entries(self._slots(places), places, before, rare, nat)
        after = self._marks["mark"][bucket, slot]
        return entries, (before == after) & (before >> TAG_SHIFT >= TAG_FIRST)

    def _slots(self, places: Array) -> Array:
        """Copies of entries, rows of struct flow4 or flow6."""
        lines = LINES[self.family]
        first = places // SLOTS * (1 + SLOTS * lines) + 1 + places % SLOTS * lines
        if lines == 1:
            single: Array = self._lines[first].view(self._slot_dtype)
            return single
        pairs = self._lines[first[:, np.newaxis] + np.arange(lines)]
        return np.ascontiguousarray(pairs).reshape(-1).view(f"V{LINE}").view(self._slot_dtype)

    # ---- finding ----

    def choose(self, keys: Keys) -> tuple[Array, Array, Array]:
        """The two buckets that keys may stand in, and their tags."""
        hashed, buckets = self._hash(keys), np.uint64(self.buckets)
        first, second = (
            (word >> np.uint64(32)) * buckets >> np.uint64(32) for word in (hashed, mix64_again(hashed))
        )
        second = np.where(second == first, (second + np.uint64(1)) % buckets, second)
        tag = (hashed >> np.uint64(16)).astype(np.uint16)
        tag = np.where(tag < TAG_FIRST, tag + np.uint16(TAG_FIRST), tag)
        return first.astype(np.int64), second.astype(np.int64), tag.astype(np.uint32)

    def _hash(self, keys: Keys) -> Array:
        """table_hash() of bpf/table.h."""
        ports = _in_memory(keys.sport) << np.uint64(16) | _in_memory(keys.dport)
        total: Array = self.key[0] + self.key[1] * ports + self.key[2] * keys.proto.astype(np.uint64)
        words = (np.ascontiguousarray(column).view(np.uint32) for column in (keys.src, keys.dst))
        for number, (source, destination) in enumerate(zip(*(word.T for word in words), strict=True)):
            total += self.key[3 + 2 * number] * source.astype(np.uint64)
            total += self.key[4 + 2 * number] * destination.astype(np.uint64)
        return mix64(total)

    def find(self, keys: Keys) -> Array:
        """For each key the place of its entry, or -1."""
        found = np.full(len(keys.sport), -1, np.int64)
        if not self.buckets:
            return found
        first, second, tag = self.choose(keys)
        for bucket in (first, second):
            left = np.flatnonzero(found < 0)
            match = self._marks["mark"][bucket[left]] >> TAG_SHIFT == tag[left, np.newaxis]
            rows, slots = np.nonzero(match)
            places = bucket[left[rows]] * SLOTS + slots
            equal = self._is(self._slots(places), keys, left[rows])
            found[left[rows[equal]]] = places[equal]
        return found

    @staticmethod
    def _is(slot: Array, keys: Keys, rows: Array) -> Array:
        flow = slot["flow"]
        equal: Array = (
            (flow["key_sport"] == keys.sport[rows])
            & (flow["key_dport"] == keys.dport[rows])
            & (flow["state"] & 0xFF == keys.proto[rows])
            & same_addresses(as_bytes(slot["key_src"]), keys.src[rows])
            & same_addresses(as_bytes(slot["key_dst"]), keys.dst[rows])
        )
        return equal


def as_bytes(addresses: Array) -> Array:
    """Addresses of entries as rows of bytes: 16, or 4 where they stand as numbers."""
    return addresses if addresses.ndim == 2 else addresses.astype(">u4").view(np.uint8).reshape(-1, 4)


def same_addresses(some: Array, others: Array) -> Array:
    """Row by row: are they equal? Both as numbers, or both as rows of 4 or 16 bytes."""
    if some.ndim == 1:
        numbers: Array = some == others
        return numbers
    words, wanted = (np.ascontiguousarray(rows).view(np.uint32) for rows in (some, others))
    equal: Array = words[:, 0] == wanted[:, 0]
    for column in range(1, words.shape[1]):
        equal &= words[:, column] == wanted[:, column]
    return equal


def _in_memory(ports: Array) -> Array:
    """Ports, numbers, as the data path's processor reads the two bytes of the packet."""
    return np.ascontiguousarray(ports.astype(">u2")).view(np.uint16).astype(np.uint64)
