# SPDX-License-Identifier: Apache-2.0
"""From rows to the lines that bpf/classify.h reads: groups, trees that tell which of them to try, entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .conditions import (
    FIELD_WORDS,
    Classified,
    Condition,
    Members,
    Rows,
    Sets,
    TooBigError,
    ports_of,
    prefixes_of,
    rows_of,
)
from .covered import covered
from .entries import place_entries
from .fields import field_of, spans_of
from .lines import Lines
from .relax import labels_of, loosened

U64 = NDArray[np.uint64]
NONE = 0xFF_FFFF
"""The number of no rule (CLASSIFY_NONE)."""
STEPS_MAX = 1 << 23
"""Look-ups for one packet (CLASSIFY_STEPS)."""
SEED = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Classifier:
    """Rules of one family, ready to be looked up: `lines` (n, 8) words of 64 bits.

    `digest`: of what it was made of.
    `shadowed`: rules that no packet can meet first, and the earlier ones that ask for the same or for less,
    as far as single rows do; none for a rule that no packet meets whatever comes before. `steps`: the
    most look-ups that one packet may take.
    """

    lines: U64
    groups: int
    rows: int
    shadowed: Mapping[int, tuple[int, ...]]
    steps: int
    digest: bytes

    @property
    def bytes(self) -> int:
        return int(self.lines.nbytes)


def compile_classifier(
    conditions: Sequence[Condition], sets: Sets, family: int, told: Sequence[int] = ()
) -> Classifier:
    """The classifier of `conditions`, first match first, for packets of IPv4 (4) or IPv6 (6). told: 32 bits
    for each, which the data path finds with it.

    KeyError for the name of a set that is not there; TooBigError.
    """
    if len(conditions) >= NONE:
        raise TooBigError(
            f"{len(conditions):,} rules are more than the {NONE - 1:,} that a classifier can tell"
        )
    rows = rows_of(conditions, family, told or [0] * len(conditions))
    rows, shadowed = _reached(rows, len(conditions))
    digest = _digest(rows, sets, family)
    spans = {field: spans_of(field, rows, sets, family) for field in Classified}
    depths = [spans[field].depth for field in Classified]
    groups = _groups(rows, loosened(rows, depths, family))
    lines = Lines()
    lines.add(np.zeros((1, 8), np.uint64))
    trees = [
        lines.add_field(field_of(field, spans[field], rows, groups.of_row, len(groups.masks)))
        for field in Classified
    ]
    entries, longest = _entries(rows, groups, lines)
    steps = _most_steps(groups, depths, longest)
    if steps > STEPS_MAX:
        raise TooBigError(
            f"these rules could take {steps:,} look-ups for one packet, because they ask for too many"
            f" different things, and {STEPS_MAX:,} are the most; use fewer prefix lengths, or sets that"
            " overlap less"
        )
    placed = place_entries(entries.keys, entries.groups, SEED)
    head = np.zeros(8, np.uint64)
    numbers = head.view(np.uint32)
    numbers[:4] = trees
    numbers[4] = lines.add(groups.lines())
    numbers[5] = lines.add(placed.moves)
    numbers[6] = lines.add(entries.lines(placed.places, placed.count))
    numbers[7] = placed.move_count
    head[4] = placed.seed
    numbers[10] = len(groups.masks)
    numbers[11] = placed.count
    lines.put(0, head)
    return Classifier(lines.joined(), len(groups.masks), len(rows.rules), shadowed, steps, digest)


def _digest(rows: Rows, sets: Sets, family: int) -> bytes:
    """Of all that is asked for; the same for the same, in any process."""
    digest = blake2b(digest_size=16)
    for part in (rows.keys, rows.masks, rows.rules, rows.told):
        digest.update(np.ascontiguousarray(part).tobytes())
    for labels in rows.labels:
        for members in labels.number:
            content = _member_bytes(members, labels.field, sets, family)
            digest.update(b"%d:%b" % (len(content), content))
    return digest.digest()


def _member_bytes(members: Members, field: Classified, sets: Sets, family: int) -> bytes:
    if field >= Classified.SPORT:
        return b",".join(b"%d-%d" % (one.first, one.last) for one in ports_of(members, sets))
    return prefixes_of(members, sets).of_family(family)


def _reached(rows: Rows, conditions: int) -> tuple[Rows, dict[int, tuple[int, ...]]]:
    """The rows that a packet may meet first, and `shadowed`."""
    by = covered(rows)
    kept = np.flatnonzero(by < 0)
    shadowed = set(range(conditions)) - set(rows.rules[kept].tolist())
    left = Rows(rows.keys[kept], rows.masks[kept], rows.rules[kept], rows.told[kept], rows.labels)
    if not shadowed:
        return left, {}
    earlier: dict[int, set[int]] = {rule: set() for rule in sorted(shadowed)}
    for place in np.flatnonzero(np.isin(rows.rules, list(shadowed))).tolist():
        earlier[int(rows.rules[place])].add(int(rows.rules[by[place]]))
    return left, {rule: tuple(sorted(those - {rule})) for rule, those in earlier.items()}


@dataclass(frozen=True)
class Groups:
    """Rows that stand in the table under one mask, those with the best rule first."""

    masks: U64
    best: NDArray[np.uint32]
    asks: NDArray[np.uint32]
    """Bit n: for a label of Classified(n)."""
    chained: NDArray[np.bool_]
    """There are rows that ask for more than the mask says."""
    of_row: NDArray[np.int64]

    def lines(self) -> U64:
        out = np.zeros((len(self.masks), 8), np.uint64)
        out[:, :FIELD_WORDS] = self.masks
        asks = self.asks | self.chained.astype(np.uint32) << np.uint32(31)
        out[:, 7] = self.best.astype(np.uint64) | asks.astype(np.uint64) << np.uint64(32)
        return out


def _groups(rows: Rows, home: U64) -> Groups:
    chained = (home != rows.masks).any(axis=1)
    masks, first, of_row = np.unique(home, axis=0, return_index=True, return_inverse=True)
    # rows come in the order of their rules
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    of_row = rank[of_row.reshape(-1)]
    masks = masks[order]
    asks = np.zeros(len(masks), np.uint32)
    for field in Classified:
        asks |= labels_of(masks, field).astype(np.uint32) << np.uint32(field)
    in_chain = np.zeros(len(masks), np.bool_)
    in_chain[of_row[chained]] = True
    return Groups(masks, rows.rules[first[order]], asks, in_chain, of_row)


@dataclass(frozen=True)
class Entries:
    """Keys by group, and what is found there: a rule and `told`, or the line of the first row of a chain."""

    keys: U64
    groups: NDArray[np.int64]
    rules: NDArray[np.uint32]
    told: NDArray[np.uint32]

    def lines(self, places: NDArray[np.int64], count: int) -> U64:
        out = np.zeros((count, 8), np.uint64)
        out[:, FIELD_WORDS] = NONE << 8
        out[places, :FIELD_WORDS] = self.keys
        out[places, FIELD_WORDS] = _found(self.rules, self.groups, self.told)
        return out


def _found(rules: NDArray[Any], beside: NDArray[Any], told: NDArray[Any]) -> U64:
    """The last word of entries and links: a rule with eight bits beside it, and what is told."""
    first = rules.astype(np.uint64) << np.uint64(8) | beside.astype(np.uint64)
    return first | told.astype(np.uint64) << np.uint64(32)


def _entries(rows: Rows, groups: Groups, lines: Lines) -> tuple[Entries, NDArray[np.int64]]:
    """An entry for each key; and by group the length of its longest chain."""
    keys = rows.keys & groups.masks[groups.of_row]
    chained = groups.chained[groups.of_row]
    plain, linked = np.flatnonzero(~chained), np.flatnonzero(chained)
    whole = np.column_stack([keys[linked], groups.of_row[linked].astype(np.uint64)])
    _, first, of_row, counts = np.unique(
        whole, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((rows.rules[linked], of_row.reshape(-1)))
    begin = lines.add(_chains(rows, linked[order], counts))
    starts = begin + 2 * (np.cumsum(counts) - counts)
    chosen = np.concatenate([plain, linked[first]])
    told = np.concatenate([rows.told[plain], starts.astype(np.uint32)])
    longest = np.zeros(len(groups.masks), np.int64)
    np.maximum.at(longest, groups.of_row[linked[first]], counts)
    return Entries(keys[chosen], groups.of_row[chosen], rows.rules[chosen], told), longest


def _chains(rows: Rows, order: NDArray[np.int64], counts: NDArray[np.int64]) -> U64:
    """Two lines a row: its key with what is found, its mask with the labels that it asks for."""
    out = np.zeros((len(order), 2, 8), np.uint64)
    out[:, 0, :FIELD_WORDS], out[:, 1, :FIELD_WORDS] = rows.keys[order], rows.masks[order]
    last = np.zeros(len(order), np.uint64)
    last[np.cumsum(counts) - 1] = 1
    out[:, 0, FIELD_WORDS] = _found(rows.rules[order], last, rows.told[order])
    return out.reshape(-1, 8)


def _most_steps(groups: Groups, depths: Sequence[int], longest: NDArray[np.int64]) -> int:
    """Look-ups for one packet, if it has the most labels of each field at once. longest: chains by group."""
    asked = zip(groups.asks.tolist(), longest.tolist(), strict=True)
    return sum(
        prod(depths[field] for field in Classified if asks >> field & 1) * (1 + chain)
        for asks, chain in asked
    )
