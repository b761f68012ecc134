# SPDX-License-Identifier: Apache-2.0
"""Rules as steps. Statements of a rule take effect in their order, and what stands before a condition happens
to packets that do not meet it: `counter tcp dport 80 accept` counts everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from clearway.importer.box import FAMILIES, Box, Boxes, common, everything, limited
from clearway.importer.conditions import Condition
from clearway.importer.errors import InexactError
from clearway.importer.nft_rule import FAMILIES_OF, Table
from clearway.importer.ranges import Ranges
from clearway.model.protocols import TCP, UDP

from . import marks
from .mangle import FieldChange
from .marks import OF_KEY, PACKET, Change, marks_of
from .region import CONNTRACK, start
from .result import Back, RuleName
from .settled import settled


class Act(StrEnum):
    """What a step does."""

    COUNT = "count"
    OPAQUE = "opaque"
    CLAMP = "clamp"  # only SYNs get so far
    MANGLE = "mangle"  # `change`
    BACK = "back"  # means what is said here only where a route leads to the sender (`back`)
    CONNMARK = "connmark"  # asks for the connection's mark
    MARK = "mark"  # sets the packet's
    SAVE = "save"  # sets the connection's
    ACCEPT = "accept"
    DROP = "drop"
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"


@dataclass(frozen=True, slots=True)
class Step:
    """Packets in the boxes get this far in the rule: all or, when there are `reasons`, some. `text`: the
    chain to go to, the object that counts, or what is done. `mark`: what the rule has made of the packet's
    mark by then, MARK included; SAVE: what it makes of the connection's. Boxes ask for the mark before that.
    `back`, `change`: of these acts. `by_mark`: routes are looked up by the packet's mark.
    """

    act: Act
    boxes: Boxes
    text: str = ""
    reasons: tuple[str, ...] = ()
    mark: Change = PACKET
    back: Back | None = None
    by_mark: bool = False
    change: FieldChange | None = None

    @property
    def calls(self) -> bool:
        return self.act in {Act.JUMP, Act.GOTO}


@dataclass(frozen=True, slots=True)
class StepRule:
    """`restores`: effects that need no step, and why. `tracks`: families, tracked for its sake. `marks`: it
    sets the packet's mark.
    """

    name: RuleName
    steps: tuple[Step, ...]
    restores: tuple[str, ...] = ()
    tracks: frozenset[int] = frozenset()
    marks: bool = False


@dataclass(slots=True)
class StepChain:
    """`hook` is empty for chains that are only jumped to. `devices`: of ingress and egress, none where they
    are not known. `counts`: the policy has counters.
    """

    family: str
    table: str
    name: str
    families: tuple[int, ...]
    kind: str = "filter"
    hook: str = ""
    priority: int = 0
    drops: bool = False
    counts: bool = False
    devices: tuple[str, ...] = ()
    rules: list[StepRule] = field(default_factory=list)

    @property
    def policy(self) -> RuleName:
        text = f"policy {'drop' if self.drops else 'accept'}"
        return RuleName(self.family, self.table, self.name, 0, None, text)

    @property
    def label(self) -> str:
        return f"{self.family} {self.table}"


PORTED = {"tcp": TCP, "udp": UDP}
Chains = dict[tuple[str, str], StepChain]
"""By family and table, and name."""


def carried(boxes: Boxes) -> Boxes:
    """What of these boxes established connections may have at some hook of theirs."""
    return common(boxes, [_anywhere(family) for family in FAMILIES])


def _anywhere(family: int) -> Box:
    early, late = start("prerouting", CONNTRACK, family), start("forward", 0, family)
    return replace(late, state=early.state, to=early.to)


def unproven(asked: str) -> str:
    """What is said of conditions that no box holds."""
    return f"asks for {asked}, which is not known to be the same for every packet"


class Steps:
    """A rule while it is read: what is still in it, and the steps so far."""

    def __init__(self, table: Table, families: tuple[int, ...]) -> None:
        self.table = table
        self.boxes: Boxes = everything(families)
        self.reasons: list[str] = []
        self.done: list[Step] = []
        self.restores: list[str] = []
        self.tracks: frozenset[int] = frozenset()
        self.mark = PACKET

    def ask(self, condition: Condition) -> None:
        """Go on with what meets the condition; where that cannot be said, with all that may meet it."""
        self.narrow(condition.keys)
        if condition.keys == ("ip6 nexthdr",):  # the first header is the last: there are no others
            condition = replace(condition, keys=("meta l4proto",))
        met = settled(condition)
        if met is not None:
            if not met:
                self.never()
            return
        try:
            self.boxes = self._asked(condition)
        except InexactError as error:
            named = str(error).startswith("set ")
            self.doubt(str(error) if named else unproven(str(condition)))

    def ask_back(self, back: Back, *, exists: bool, marked: bool) -> None:
        """Go on with packets to whose sender there is (`exists`) or is no such route: of what is carried it
        is asked. `marked`: routes are looked up by the packet's mark.
        """
        reasons = tuple(self.reasons)
        self.done.append(Step(Act.BACK, self.boxes, "", reasons, self.mark, back=back, by_mark=marked))
        self.restore("asks for a route to the sender, and so does who carries its packets")
        if not exists:
            self.never()

    def mangle(self, change: FieldChange) -> None:
        reasons = tuple(self.reasons)
        self.done.append(Step(Act.MANGLE, self.boxes, "", reasons, self.mark, change=change))
        self.restore("changes the DSCP or the TTL, and so does who carries its packets")

    def _asked(self, condition: Condition) -> Boxes:
        if condition.keys[0] not in marks.KEYS or len(condition.keys) > 1:
            return common(self.boxes, self.table.boxes_of(condition))
        if condition.keys == ("ct mark",):
            self.add(Act.CONNMARK)
        return self.mark_of(condition.keys[0]).where(marks_of(condition, self.table.sets), self.boxes)

    def mark_of(self, key: str) -> Change:
        """What the mark of that key is by now."""
        return self.mark if key == "meta mark" else OF_KEY[key]

    def set_mark(self, value: Change) -> None:
        self.restore("sets a mark, which is followed")
        if value.connection | value.both:
            self.add(Act.CONNMARK)
        self.mark = value
        self.add(Act.MARK, "sets the packet's mark")

    def save_mark(self, value: Change) -> None:
        self.add(Act.CONNMARK)
        self.done.append(
            Step(Act.SAVE, self.boxes, "changes the connection's mark", tuple(self.reasons), value)
        )
        self.restore("saves a mark where it is saved already")

    def never(self) -> None:
        """Nothing that is carried meets what comes now."""
        self.boxes = ()

    def narrow(self, keys: Iterable[str]) -> None:
        """Go on with packets that have the headers of these."""
        for key in keys:
            header = key.split(" ")[0]
            if families := FAMILIES_OF.get(header):
                self.boxes = tuple(box for box in self.boxes if box.family in families)
            if header in PORTED:
                self.boxes = limited(self.boxes, protocol=Ranges.numbers([PORTED[header]]))

    def doubt(self, why: str) -> None:
        self.reasons.append(why)

    def add(self, act: Act, text: str = "", boxes: Boxes | None = None) -> None:
        boxes = self.boxes if boxes is None else boxes
        self.done.append(Step(act, boxes, text, tuple(self.reasons), self.mark))

    def opaque(self, why: str) -> None:
        self.add(Act.OPAQUE, why)

    def restore(self, why: str) -> None:
        self.restores.append(why)

    def clamp(self) -> None:
        """TCP's MSS. It is in SYNs, but other segments may carry it as well, and are changed then."""
        self.narrow(["tcp option"])
        if carried(self.boxes):
            self.opaque("changes the MSS in segments other than SYNs as well")
        else:
            self.add(Act.CLAMP, "clamps the MSS of SYNs")
            self.restore("clamps the MSS of SYNs, which Linux forwards")

    def rule(self, name: RuleName) -> StepRule:
        marks = self.mark is not PACKET
        return StepRule(name, tuple(self.done), tuple(self.restores), self.tracks, marks)
