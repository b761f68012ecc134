# SPDX-License-Identifier: Apache-2.0
"""Sets of numbers and of names, with exact intersection and difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ranges:
    """Numbers, as sorted spans first..last that neither overlap nor touch.

    `label` is the named set that they came from. It stays while the numbers stay the same.
    """

    spans: tuple[Span, ...]
    label: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, spans: Iterable[Span], label: str | None = None) -> Ranges:
        merged: list[Span] = []
        for first, last in sorted(spans):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return cls(tuple(merged), label)

    @classmethod
    def numbers(cls, numbers: Iterable[int]) -> Ranges:
        return cls.of((number, number) for number in numbers)

    def __bool__(self) -> bool:
        return bool(self.spans)

    def __iter__(self) -> Iterator[int]:
        return (number for first, last in self.spans for number in range(first, last + 1))

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.spans)

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.spans)

    def __and__(self, other: Ranges) -> Ranges:
        if self._in_one_span_of(other):
            found = self.spans
        elif other._in_one_span_of(self):
            found = other.spans
        else:
            found = tuple(self._common(other))
        for one in (self, other):
            if one.label and one.spans == found:
                return one
        for one in (self, other):
            if one.spans == found:
                return one
        return Ranges(found)

    def _in_one_span_of(self, other: Ranges) -> bool:
        """By far the most frequent, and then there is nothing to go through."""
        if not self.spans or len(other.spans) != 1:
            return False
        [(first, last)] = other.spans
        return first <= self.spans[0][0] and self.spans[-1][1] <= last

    def _common(self, other: Ranges) -> Iterator[Span]:
        mine, theirs = list(reversed(self.spans)), list(reversed(other.spans))
        while mine and theirs:
            first, last = max(mine[-1][0], theirs[-1][0]), min(mine[-1][1], theirs[-1][1])
            if first <= last:
                yield first, last
            (mine if mine[-1][1] < theirs[-1][1] else theirs).pop()

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges.of((*self.spans, *other.spans))

    def __sub__(self, other: Ranges) -> Ranges:
        if not other.spans:
            return self
        edges = [-1, *(edge for span in other.spans for edge in span)]
        gaps = [(edges[i] + 1, edges[i + 1] - 1) for i in range(0, len(edges) - 1, 2)]
        top = max(edges[-1] + 1, self.spans[-1][1]) if self.spans else edges[-1] + 1
        gaps.append((edges[-1] + 1, top))
        return self & Ranges(tuple((first, last) for first, last in gaps if first <= last))

    def within(self, other: Ranges) -> bool:
        mine, theirs = self.spans, other.spans
        if mine is theirs or not mine:
            return True
        if not theirs or mine[0][0] < theirs[0][0] or mine[-1][1] > theirs[-1][1]:
            return False
        return len(theirs) == 1 or not self - other


@dataclass(frozen=True, slots=True)
class Names:
    """These names or, `others`, all but these."""

    names: frozenset[str]
    others: bool = False

    @classmethod
    def of(cls, *names: str) -> Names:
        return cls(frozenset(names))

    @classmethod
    def but(cls, *names: str) -> Names:
        return cls(frozenset(names), others=True)

    def __bool__(self) -> bool:
        return self.others or bool(self.names)

    def __contains__(self, name: str) -> bool:
        return (name in self.names) != self.others

    def __and__(self, other: Names) -> Names:
        if self.others and other.others:
            return Names(self.names | other.names, others=True)
        if self.others:
            return Names(other.names - self.names)
        return Names(self.names - other.names if other.others else self.names & other.names)

    def __sub__(self, other: Names) -> Names:
        return self & Names(other.names, not other.others)

    def within(self, other: Names) -> bool:
        return not self - other
