# SPDX-License-Identifier: Apache-2.0
"""Marks of packets from chain to chain, whose addresses NAT may change in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from clearway.importer.box import Box, Boxes, whole, without
from clearway.importer.errors import InexactError
from clearway.importer.marks import ANY_MARK

from .marks import UNKNOWN
from .region import VARYING, Region, views_of, widened
from .result import View
from .steps import Act, Chains, Step, StepChain
from .walk import Cause, Line, Walk

REGIONS_MAX = 64
ChainKey = tuple[str, str]
TRANSLATED = {View.BEFORE: (), View.BETWEEN: ("destination", "dport"), View.AFTER: ("source", "sport")}
"""Fields that NAT may have changed since the view before."""
ORDER = tuple(View)


@dataclass(frozen=True, slots=True)
class Marking:
    """What marks packets have somewhere on their way, by where they are in a view: the first region tells
    (Box.has). What is in none is kept in Linux.
    """

    view: View
    regions: Boxes

    @classmethod
    def none(cls, family: int) -> Marking:
        return cls(View.BEFORE, (whole(family),))

    @property
    def everywhere(self) -> bool:
        """Whether all have the same."""
        return len(self.regions) == 1 and replace(self.regions[0], has=None) == _unknown(
            self.regions[0].family
        )

    @property
    def unknown(self) -> Boxes:
        return tuple(box for box in self.regions if box.has is None)

    def seen(self, views: Sequence[View], *, translated: bool) -> Marking:
        """The same, as a chain sees it that counts in these views."""
        view = views[-1]
        if not translated or not self.regions or (view is self.view and len(views) == 1):
            return Marking(view, self.regions)
        between = [*ORDER[ORDER.index(self.view) + 1 : ORDER.index(view) + 1], *views[1:]]
        return Marking(view, _forgotten(self.regions, {name for one in between for name in TRANSLATED[one]}))


def _forgotten(regions: Boxes, fields: Iterable[str]) -> Boxes:
    """The regions, when nobody knows these fields of packets any more."""
    everything = whole(regions[0].family)
    if len(regions) == 1 and regions[0].has is not None and all(_open(regions[0], name) for name in fields):
        return regions
    blank: dict[str, Any] = {name: getattr(everything, name) for name in fields}
    boxes = list(dict.fromkeys(replace(box, **blank) for box in regions))
    if len(boxes) > REGIONS_MAX:
        return (_unknown(everything.family),)
    unsure = [
        replace(both, has=None)
        for one, other in combinations(boxes, 2)
        if (both := one & other) is not None and _differ(one, other, both)
    ]
    try:
        return apart([*unsure, *boxes])
    except InexactError:
        return (_unknown(everything.family),)


def _differ(one: Box, other: Box, both: Box) -> bool:
    if one.has is None or other.has is None:
        return True
    return one.has.settled(both.connmark) != other.has.settled(both.connmark)


def _open(box: Box, name: str) -> bool:
    return bool(getattr(box, name) == getattr(whole(box.family), name))


def _unknown(family: int) -> Box:
    return replace(whole(family), has=None)


def apart(boxes: Sequence[Box]) -> Boxes:
    """The same, first match first, in boxes that do not overlap. InexactError."""
    found: list[Box] = []
    for box in boxes:
        found += without((box,), found)
    if len(found) > REGIONS_MAX:
        raise InexactError("packets are marked in too many ways")
    return tuple(found)


# ---- chains ----


def marking_chains(chains: Chains) -> set[ChainKey]:
    """Those that may set a packet's mark, themselves or by chains that they call."""
    return _leading_to(chains, lambda step: step.act is Act.MARK)


def speaking_chains(chains: Chains) -> set[ChainKey]:
    """Those that ask for it, or set it or the connection's."""
    return _leading_to(
        chains,
        lambda step: (
            step.act in {Act.MARK, Act.SAVE}
            or step.by_mark
            or any(box.mark is not ANY_MARK for box in step.boxes)
        ),
    )


def _leading_to(chains: Chains, wanted: Callable[[Step], bool]) -> set[ChainKey]:
    """The chains that have such a step, or call one that has."""
    callers: dict[ChainKey, list[ChainKey]] = {}
    found: list[ChainKey] = []
    for key, chain in chains.items():
        steps = [step for rule in chain.rules for step in rule.steps]
        for step in steps:
            if step.calls:
                callers.setdefault((chain.label, step.text), []).append(key)
        if any(map(wanted, steps)):
            found.append(key)
    all_found: set[ChainKey] = set()
    while found:
        key = found.pop()
        if key not in all_found:
            all_found.add(key)
            found += callers.get(key, ())
    return all_found


# ---- from chain to chain ----


class Marked:
    """Marks of one family's packets, as they go from chain to chain: `routed` tells them where routing asks,
    `left` where they leave. Of what is claimed none gets a mark: who would give it one keeps it.
    """

    def __init__(self, chains: Chains, family: int, region: Region, *, translated: bool) -> None:
        self.left = self.routed = Marking.none(family)
        self._marking: set[ChainKey] = set()
        self._speaking: set[ChainKey] = set()
        if region is Region.CARRIED:
            self._marking, self._speaking = marking_chains(chains), speaking_chains(chains)
        self._family, self._region, self._translated = family, region, translated

    def walk(self, chain: StepChain, chains: Chains, *, reclassed: bool) -> Walk:
        """The next base chain's, walked (Walk.reclassed)."""
        key = (chain.label, chain.name)
        views = views_of(chain.hook, chain.priority, chain.kind)
        arriving = self.left.seen(views, translated=self._translated)
        speaks = key in self._speaking
        walk = Walk(
            chain,
            chains,
            self._family,
            self._region,
            arriving.regions if speaks else (whole(self._family),),
            self._marking,
            reclassed=reclassed,
        )
        walk.walk()
        if key in self._marking:
            self.left = self._leaving(walk, views)
        if chain.hook == "prerouting":
            self.routed = self.left
        return walk

    def _leaving(self, walk: Walk, views: Sequence[View]) -> Marking:
        try:
            regions = apart(self._of_flows(widened(tuple(walk.leaving), walk.start)))
        except InexactError:
            regions = (_unknown(self._family),)
        return Marking(views[0], regions).seen(views, translated=self._translated)

    def _of_flows(self, boxes: Boxes) -> Boxes:
        """Without what is the same in all of them, but looks different at other hooks."""
        blank: dict[str, Any] = {name: getattr(whole(self._family), name) for name in VARYING}
        return tuple(replace(box, **blank) for box in boxes)

    def unknown(self) -> Iterator[tuple[View, int, Line]]:
        """What is kept because its mark is not known where somebody asks for it."""
        for marking in dict.fromkeys((self.routed, self.left)):
            if boxes := marking.unknown:
                yield marking.view, self._family, Line(boxes, Cause(UNKNOWN, None))
