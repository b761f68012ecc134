# SPDX-License-Identifier: Apache-2.0
"""A base chain as lines: what certainly passes it, and what is kept in Linux because of it, first match
first.

Every packet on its way through the chain is in a box. What a rule decides leaves the way, as far as that can
be said in few boxes; otherwise it stays, and an earlier line speaks for it. So boxes may be too large, never
too small, and a line is only believed where none before it is met.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clearway.importer.box import FIELDS, PORTS, Box, Boxes, all_addresses, common, without
from clearway.importer.errors import InexactError
from clearway.importer.index import Index, outside_of
from clearway.importer.marks import ANY_MARK, Marks
from clearway.importer.ranges import Names

from .mangle import Effect, effect, one_after_the_other
from .marks import PACKET, UNKNOWN, bearing, changed, disturbed, marked, meeting
from .region import CONNTRACK, DSTNAT, SRCNAT, Region, invariant, start, varying, views_of, widened
from .result import Back, RuleName, View
from .steps import Act, Chains, Step, StepChain, StepRule

DEPTH_MAX = 64
"""nftables allows 16 (NFT_JUMP_STACK_SIZE); of iptables only loops are refused."""
STEPS_MAX = 500_000
"""Taken for one chain: jumps may multiply."""
DOUBTS_MAX = 64
SPANS_MAX = 4
"""Of a field of what is left on the way."""
CUBES_MAX = 64
"""The same of marks."""
EFFECTS_MAX = 64
CHANGED_TWICE = "changes what a rule before it has changed"
UNCERTAIN = "a rule before it in its chain may return"


class LongError(Exception):
    """The chain is too long to be walked. str() says why."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why packets are kept."""

    why: str
    rule: RuleName | None


@dataclass(frozen=True, slots=True)
class Line:
    """Packets in the boxes are kept or, when there is no cause, pass."""

    boxes: Boxes
    cause: Cause | None = None


@dataclass(slots=True)
class _Way:
    """What is on its way through a chain, what has come out of it, and what may have (`doubts`). `reasons`:
    why packets may not have been sent here. `behind`: what is done with the present rule, otherwise marked.
    """

    chain: StepChain
    boxes: Boxes
    reasons: tuple[str, ...]
    depth: int
    out: Boxes = ()
    doubts: Boxes = ()
    behind: Boxes = ()

    def less(self, decided: Sequence[Box]) -> None:
        """What was decided leaves the way, if that leaves it as simple as it was."""
        for one in decided:
            self.boxes = tuple(rest for box in self.boxes if (rest := _rest(box, one)) is not None)

    def leave(self, boxes: Boxes, *, certain: bool) -> None:
        """These, or some of them, skip the rest of the chain."""
        if certain:
            try:
                self.boxes = without(self.boxes, boxes)
                return
            except InexactError:
                pass
        self.doubts = self.boxes if len(self.doubts) > DOUBTS_MAX else (*self.doubts, *boxes)

    def replace(self, boxes: Boxes, others: Boxes) -> None:
        """These go on behind the rule as others. InexactError."""
        self.boxes = without(self.boxes, boxes)
        self.behind += others


@dataclass(slots=True)
class Walk:
    """One base chain, for one family. Its lines hold for packets, as they arrive, to whose sender a route
    leads as it `asks_back`. `effects`: what changes in packets, first match first. `reclassed`: before
    routing a chain before this one has changed the type of service of some.

    `arriving`: what comes here, with its marks. `marking`: the chains that may change them. `leaving`: what
    leaves, with its marks, first match first; may be too large as `lines`.
    """

    base: StepChain
    chains: Chains
    family: int
    region: Region = Region.CARRIED
    arriving: Boxes = ()
    marking: Container[tuple[str, str]] = frozenset()
    lines: list[Line] = field(default_factory=list)
    leaving: list[Box] = field(default_factory=list)
    asks_back: list[tuple[Boxes, Back]] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    reclassed: bool = False
    _accepted: Index = field(default_factory=Index)
    _indexed: int = 0  # lines whose boxes are there
    _steps: int = 0

    @property
    def start(self) -> Box:
        priority = self.base.priority
        if self.base.kind == "nat":  # NAT is done at these, whatever priority its chain has
            priority = DSTNAT if self.base.hook == "prerouting" else SRCNAT
        return start(self.base.hook, priority, self.family, self.region)

    @property
    def views(self) -> tuple[View, ...]:
        return views_of(self.base.hook, self.base.priority, self.base.kind)

    def walk(self) -> None:
        """Fill `lines`. Whatever is wrong with the chains is a reason to keep everything."""
        try:
            left = self._through(_Way(self.base, common(self.arriving, (self.start,)), (), 0))
        except LongError as error:
            self._keep((self.start,), str(error), None)
            return
        if self.base.drops:
            self._keep(left, "drops it", self.base.policy)
        else:
            self.leaving += left

    def _through(self, way: _Way) -> Boxes:
        """What comes out of a chain, at its end or by a return."""
        if way.depth > DEPTH_MAX:
            raise LongError(f"more than {DEPTH_MAX} chains call each other")
        for rule in way.chain.rules:
            for step in rule.steps:
                if self._minds(step) and (those := meeting(way.boxes, step.boxes)):
                    self._take(way, step, rule.name, those)
            if rule.marks or way.behind:
                self._mark(way, rule)
            if not way.boxes:
                break
        return (*way.out, *way.boxes)

    def _minds(self, step: Step) -> bool:
        """Nobody makes up for what counters of Linux' rules miss of clearway's own."""
        return step.act is not Act.COUNT or self.region is Region.CARRIED

    def _take(self, way: _Way, step: Step, rule: RuleName, met: Boxes) -> None:
        """What happens to marks in the rule itself counts for what leaves it; the rest, when it is over."""
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise LongError(f"it unfolds to more than {STEPS_MAX:,} steps")
        doubts = self._doubts(way, step, met)
        match step.act:
            case Act.CONNMARK | Act.MARK | Act.SAVE | Act.BACK:
                self._require(way, step, rule, met, doubts)
            case Act.OPAQUE | Act.CLAMP:
                self._decide(way, met, step.text, rule)
            case Act.DROP:
                self._decide(way, met, doubts[0] if doubts else f"{step.text}s it", rule)
            case Act.COUNT | Act.ACCEPT | Act.MANGLE if doubts:
                self._decide(way, met, doubts[0], rule)
            case Act.MANGLE:
                self._mangle(way, step, rule, met)
            case Act.ACCEPT:
                self._pass(way, met, step)
            case Act.RETURN:
                way.out += marked(met, step.mark)
                way.leave(met, certain=not doubts)
            case Act.JUMP | Act.GOTO:
                self._call(way, step, rule, met, doubts)

    def _require(self, way: _Way, step: Step, rule: RuleName, met: Boxes, doubts: tuple[str, ...]) -> None:
        """What is said of these packets holds under a condition, if it can be told here."""
        if step.act is Act.BACK:
            self._ask_back(way, step, rule, met)
        else:
            self._ask_marks(way, step, rule, met, doubts)

    def _ask_marks(self, way: _Way, step: Step, rule: RuleName, met: Boxes, doubts: tuple[str, ...]) -> None:
        """Keeps those whose marks would not be known any more; of what is claimed, who would get one."""
        if step.act is Act.SAVE and (other := disturbed(met, step.mark)):
            self._decide(way, other, step.text, rule)
        elif step.act is Act.MARK and (other := changed(met, step.mark)):
            if self.region is not Region.CARRIED:
                self._decide(way, other, "marks packets", rule)
            elif doubts:
                self._decide(way, other, f"marks packets, and {doubts[0]}", rule)
        elif step.act is Act.CONNMARK and self.base.hook == "prerouting" and self.base.priority <= CONNTRACK:
            self._decide(way, met, "asks for a connection before conntrack has looked", rule)

    def _ask_back(self, way: _Way, step: Step, rule: RuleName, met: Boxes) -> None:
        assert step.back is not None
        early = self.base.hook == "prerouting"
        if self.region is not Region.CARRIED:
            self._decide(way, met, "asks for a route to the sender", rule)
            return
        if not early or self._reclasses():
            why = "by a DSCP that is not the packet's" if early else "behind routing"
            self._decide(way, met, f"asks for a route to the sender {why}", rule)
            return
        self.asks_back.append((self._arriving(met), step.back))
        if step.by_mark and (other := bearing(met, step.mark)):
            self._decide(way, other, "asks for a route to the sender by a mark", rule)

    def _reclasses(self) -> bool:
        return self.reclassed or any(one.mangle.changes_tos for one in self.effects)

    def _mangle(self, way: _Way, step: Step, rule: RuleName, met: Boxes) -> None:
        """What has been accepted may still be on the way, but does not come here."""
        assert step.change is not None
        boxes = self._not_accepted(widened(met, self.start))
        if self.region is not Region.CARRIED:
            self._decide(way, met, "changes packets", rule)
            return
        if boxes is None or len(self.effects) > EFFECTS_MAX:
            self._decide(way, met, "changes packets, and it cannot be said in a few words which", rule)
            return
        mine = effect(boxes, step.change.mangle(early=self.base.hook == "prerouting"), rule)
        self.effects, unsaid = one_after_the_other(self.effects, [mine])
        for one in unsaid:
            self._keep(one.boxes, CHANGED_TWICE, rule)

    def _not_accepted(self, boxes: Boxes) -> Boxes | None:
        for line in self.lines[self._indexed :]:
            if line.cause is None:
                self._accepted.add(line.boxes)
        self._indexed = len(self.lines)
        return outside_of(boxes, self._accepted)

    def _arriving(self, boxes: Boxes) -> Boxes:
        """As packets arrive: behind NAT, from any destination that was translated to these."""
        boxes = widened(boxes, self.start)
        if self.base.priority < DSTNAT:
            return boxes
        anywhere = all_addresses(self.family)
        return tuple(replace(box, destination=anywhere, dport=PORTS) for box in boxes)

    def _call(self, way: _Way, step: Step, rule: RuleName, met: Boxes, doubts: tuple[str, ...]) -> None:
        target = self.chains.get((way.chain.label, step.text))
        if target is None:
            self._decide(way, met, f"there is no chain {step.text}", rule)
            return
        left = self._through(_Way(target, marked(met, step.mark), doubts, way.depth + 1))
        if not left:
            way.less(met)
        elif step.act is Act.GOTO:
            way.out += left
            way.leave(met, certain=not doubts)
        elif not doubts and ((target.label, target.name) in self.marking or step.mark is not PACKET):
            self._replace(way, met, left, rule)

    def _mark(self, way: _Way, rule: StepRule) -> None:
        """What the rule has not sent elsewhere goes on with the last mark that it has set."""
        steps = [step for step in reversed(rule.steps) if step.act is Act.MARK]
        for step in steps:
            those = meeting(way.boxes, step.boxes)
            if changed(those, step.mark) or (those and step is not steps[-1]):
                self._replace(way, those, marked(those, step.mark), rule.name)
        way.boxes += way.behind
        way.behind = ()

    def _replace(self, way: _Way, boxes: Boxes, others: Boxes, rule: RuleName) -> None:
        try:
            way.replace(boxes, others)
        except InexactError:
            self._decide(way, boxes, "marks what cannot be said in few boxes", rule)

    def _doubts(self, way: _Way, step: Step, met: Boxes) -> tuple[str, ...]:
        """Why it may not happen to each packet in these boxes."""
        found = [*way.reasons, *step.reasons]
        if way.doubts and common(met, way.doubts):
            found.append(UNCERTAIN)
        if step.act in {Act.COUNT, Act.MANGLE} and len(self.views) > 1:
            found.append(f"{step.act}s at the priority of NAT, where it may see either addresses")
        if any(one.has is None for one in met) and any(one.mark is not ANY_MARK for one in step.boxes):
            found.append(f"asks for marks, and {UNKNOWN}")
        if what := varying(met, self.start):
            found.append(f"asks for {what}")
        return tuple(found)

    def _decide(self, way: _Way, met: Boxes, why: str, rule: RuleName) -> None:
        """The flows of these packets are Linux', so there is nothing more to find out about them."""
        whole = invariant(met, self.start)
        self._keep(whole, why, rule)
        way.less(whole)

    def _pass(self, way: _Way, met: Boxes, step: Step) -> None:
        self.lines.append(Line(widened(met, self.start)))
        self.leaving += marked(met, step.mark)
        way.less(met)

    def _keep(self, boxes: Boxes, why: str, rule: RuleName | None) -> None:
        if boxes:
            self.lines.append(Line(widened(boxes, self.start), Cause(why, rule)))


def _rest(box: Box, decided: Box) -> Box | None:
    """The box without what was decided, where that is one simple box; otherwise the box."""
    left: dict[str, Any] = {}
    for name in FIELDS:
        mine, theirs = getattr(box, name), getattr(decided, name)
        if mine is not theirs and not mine.within(theirs):
            left[name] = mine - theirs
            if len(left) > 1:
                return box
    if not left:
        return None
    [rest] = left.values()
    match rest:
        case Marks():
            simple = len(rest.cubes) <= CUBES_MAX
        case Names():
            simple = True
        case _:
            simple = len(rest.spans) <= SPANS_MAX
    return replace(box, **left) if simple else box
