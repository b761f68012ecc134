# SPDX-License-Identifier: Apache-2.0
"""What nft's text and its JSON have in common: rules of statements, sets, and hooks with what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clearway.model.protocols import TCP

from .box import FAMILIES, Boxes, common, everything, limited
from .conditions import WRITTEN_OUT, Condition, Element, Limits, NamedSet, boxes_of
from .errors import InexactError
from .ranges import Ranges
from .ruleset import Branch, Rule, Verb

FAMILIES_OF: Mapping[str, tuple[int, ...]] = {"ip": (4,), "ip6": (6,), "inet": FAMILIES}
PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
"""man nft; the words mean the same at every hook of ip, ip6 and inet tables."""
CHANGES = "its content changes by itself"
LOGS_MORE = "logs before it asks for all that it asks for; clearway logs what the whole rule decides"


@dataclass(frozen=True, slots=True)
class Verdict:
    verb: Verb
    target: str = ""


@dataclass(frozen=True, slots=True)
class VerdictMap:
    """`name`, or else the elements, each with its verdict."""

    keys: tuple[str, ...]
    elements: tuple[tuple[Element, Verdict], ...] = ()
    name: str = ""


@dataclass(slots=True)
class Statements:
    """What a rule says, in its own words."""

    conditions: list[Condition] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    verdict: Verdict = Verdict(Verb.NOTHING)
    mapped: VerdictMap | None = None
    log: bool = False
    comment: str = ""
    side_effect: str = ""
    remark: str = ""

    def ask(self, condition: Condition) -> None:
        """Statements of a rule take effect in their order."""
        self.conditions.append(condition)
        if self.log:
            self.remark = LOGS_MORE


@dataclass(slots=True)
class Table:
    """The sets and verdict maps of a table, by name."""

    sets: dict[str, NamedSet] = field(default_factory=dict)
    maps: dict[str, tuple[tuple[Element, Verdict], ...] | str] = field(default_factory=dict)
    """Elements, or why they are not known."""
    limits: Limits = WRITTEN_OUT
    _met: dict[Condition, Boxes] = field(default_factory=dict)

    def boxes_of(self, condition: Condition) -> Boxes:
        """conditions.boxes_of(), once for each condition: sets may be large, and many rules name the same."""
        if condition not in self._met:
            self._met[condition] = boxes_of(condition, self.sets, self.limits)
        return self._met[condition]


def rule_of(said: Statements, line: int, text: str, table: Table) -> Rule:
    """A rule in boxes. Conditions that cannot be are named, and leave the boxes too large."""
    boxes, reasons = everything(), list(said.reasons)
    for condition in said.conditions:
        try:
            boxes = common(boxes, table.boxes_of(condition))
        except InexactError as error:
            reasons.append(str(error))
    branches = _branches(said, boxes, tuple(reasons), table)
    return Rule(line, text, branches, said.comment, said.side_effect, said.remark)


def _branches(said: Statements, boxes: Boxes, reasons: tuple[str, ...], table: Table) -> tuple[Branch, ...]:
    if said.mapped is None:
        verdict = said.verdict
        verb = Verb.LOG if verdict.verb is Verb.NOTHING and said.log else verdict.verb
        boxes = rejected(boxes, verdict)
        return (Branch(boxes, verb, verdict.target, said.log, reasons),)
    try:
        elements = map_elements(said.mapped, table)
        parts = [
            (common(boxes, boxes_of(Condition(said.mapped.keys, "==", (key,)), {})), verdict)
            for key, verdict in elements
        ]
    except InexactError as error:
        return (Branch(boxes, Verb.UNKNOWN, "", said.log, (*reasons, str(error))),)
    return tuple(
        Branch(rejected(part, verdict), verdict.verb, verdict.target, said.log, reasons)
        for part, verdict in parts
    )


def map_elements(mapped: VerdictMap, table: Table) -> tuple[tuple[Element, Verdict], ...]:
    """InexactError when they are not known."""
    if not mapped.name:
        return mapped.elements
    elements = table.maps.get(mapped.name, "is not a map of this table")
    if isinstance(elements, str):
        raise InexactError(f"map {mapped.name}: {elements}")
    return elements


def rejected(boxes: Boxes, verdict: Verdict) -> Boxes:
    """What nft adds to a rule by itself for the answer to fit."""
    if verdict.verb is not Verb.REJECT:
        return boxes
    if verdict.target == "tcp reset":
        return limited(boxes, protocol=Ranges.numbers([TCP]))
    family = {"icmp": 4, "icmpv6": 6}.get(verdict.target.split(" ")[0])
    return boxes if family is None else tuple(box for box in boxes if box.family == family)
