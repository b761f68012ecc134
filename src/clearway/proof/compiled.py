# SPDX-License-Identifier: Apache-2.0
"""What is kept in Linux as classifiers, one for each view and family, for a data path to ask.

What cannot be said to a classifier is said larger where it is kept, and left out where it passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, summarize_address_range
from itertools import chain

from clearway.compiler.classifier import Classifier, Condition, Sets, TooBigError, compile_classifier
from clearway.importer.box import BITS, PORTS, Box, Boxes, all_addresses, whole
from clearway.importer.marks import ANY_MARK, UNMARKED, Mark
from clearway.importer.ranges import Names, Ranges
from clearway.importer.words import prefixes_of
from clearway.model import IPNetwork, PortRange
from clearway.model.protocols import TCP, UDP

from .classes import Classes
from .marking import Marking
from .proving import Ruling, Rulings, Views
from .result import Back, Keep, Mangle, View

PREFIXES_MAX = 65_536
LISTED_MAX = 16
"""Prefixes that are given with a condition; more of them are a set."""
ROWS_MAX = 100_000
"""Interfaces that are written out where a rule speaks of all but some, in all conditions together."""
CARRIED = (TCP, UDP)
MARKS_MAX = 64
"""That packets of a family may have in one place (MARKS_MADE of bpf/types.h)."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """`classifiers`: by view and family, absent where nothing is kept. They tell, for what is kept, the place
    in `keeps` plus 1; 0, or no rule at all, is what passes. `keeps`: those of the proof, and why a family is
    kept whose classifier would be too big. `backs`: by family, absent where no route back is required of
    anybody; they tell a Back. `mangles`: by view and family, absent where nothing is changed; they tell a
    place in `rows`, of which the first one changes nothing. `classes`: of conntrack's mark, which classifiers
    ask for. `routed`, `left`: by family, which mark packets have where they are routed, and where they leave.
    """

    classifiers: Mapping[Views, Classifier]
    keeps: tuple[Keep, ...]
    backs: Mapping[int, Classifier]
    mangles: Mapping[Views, Classifier]
    rows: tuple[Mangle, ...]
    classes: Classes
    routed: Mapping[int, Telling]
    left: Mapping[int, Telling]

    @property
    def speaks_of_marks(self) -> bool:
        """Whether they have to be looked at."""
        plain = all(its.plain for its in (*self.routed.values(), *self.left.values()))
        return len(self.classes.parts) > 1 or self.classes.parts[0] is not ANY_MARK or not plain


@dataclass(frozen=True, slots=True)
class Telling:
    """Marks that packets may have. `classifier`: which, by what it tells, asked in this view; what it does
    not know is Linux'. None: all have the only one.
    """

    view: View
    marks: tuple[Mark, ...]
    classifier: Classifier | None = None

    @property
    def plain(self) -> bool:
        return self.classifier is None and self.marks == (UNMARKED,)


def classifiers(proof: Rulings, interfaces: Mapping[str, int]) -> Compiled:
    """`interfaces`: their numbers by name, all that there are.

    The answer is for packets that come in and leave by these. Others are Linux' until the proof was compiled
    with them: rules may name interfaces that are not there yet, or speak of all but some.
    """
    found: dict[Views, Classifier] = {}
    keeps = list(proof.keeps)
    classes = classes_of(proof)
    mangles: dict[Views, Classifier] = {}
    rows = mangle_rows(proof)
    for key in proof.mangles:
        try:
            asked = mangle_question(proof, key, interfaces, classes)
            mangles[key] = compile_classifier(asked.conditions, asked.sets, key[1], asked.told)
        except TooBigError as error:
            keeps.append(Keep(key[0], (whole(key[1]),), str(error)))
            found[key] = compile_classifier([Condition()], Sets(), key[1], [len(keeps)])
    for key in proof.rulings:
        if key in found:
            continue
        view, family = key
        asked = question(proof, key, interfaces, classes)
        try:
            found[key] = compile_classifier(asked.conditions, asked.sets, family, asked.told)
        except TooBigError as error:
            keeps.append(Keep(view, (whole(family),), str(error)))
            found[key] = compile_classifier([Condition()], Sets(), family, [len(keeps)])
    backs = {family: _back_classifier(proof, family, interfaces, classes) for family in proof.backs}
    routed, left = (
        {family: _telling(marking, family, interfaces, classes) for family, marking in its.items()}
        for its in (proof.routed, proof.left)
    )
    return Compiled(found, tuple(keeps), backs, mangles, rows, classes, routed, left)


def classes_of(proof: Rulings) -> Classes:
    """The classes of connections' marks that the proof tells apart."""
    ruled = (ruling.boxes for rulings in proof.rulings.values() for ruling in rulings)
    backs = (boxes for asked in proof.backs.values() for boxes, _back in asked)
    mangled = (boxes for lines in proof.mangles.values() for boxes, _mangle in lines)
    having = (marking.regions for marking in (*proof.routed.values(), *proof.left.values()))
    all_boxes = chain.from_iterable((*ruled, *backs, *mangled, *having))
    return Classes.telling(box.connmark for box in all_boxes)


def mangle_rows(proof: Rulings) -> tuple[Mangle, ...]:
    """All changes that there are, each once; the first one is none."""
    changes = (mangle for lines in proof.mangles.values() for _boxes, mangle in lines)
    return tuple(dict.fromkeys((Mangle(), *changes)))


def _back_classifier(
    proof: Rulings, family: int, interfaces: Mapping[str, int], classes: Classes
) -> Classifier:
    asked = back_question(proof, family, interfaces, classes)
    try:
        return compile_classifier(asked.conditions, asked.sets, family, asked.told)
    except TooBigError:
        return compile_classifier([Condition()], Sets(), family, [max(Back)])


@dataclass(frozen=True, slots=True)
class Question:
    """What a classifier is made of: conditions, first match first, with what it tells for each."""

    conditions: Sequence[Condition]
    told: Sequence[int]
    sets: Sets


def question(
    proof: Rulings, key: Views, interfaces: Mapping[str, int], classes: Classes | None = None
) -> Question:
    """Of one view and family, which has rulings. classes: those of the proof, if they are there already."""
    writer = _Writer(key[1], interfaces, classes or classes_of(proof))
    for ruling in proof.rulings[key]:
        writer.write(ruling)
    return writer.question()


def marks_question(
    marking: Marking, family: int, interfaces: Mapping[str, int], classes: Classes
) -> tuple[Question, tuple[Mark, ...]]:
    """Which mark packets have: what is told is its place."""
    marks = tuple(dict.fromkeys(box.has for box in marking.regions if box.has is not None))
    writer = _Writer(family, interfaces, classes)
    for box in marking.regions:
        if box.has is not None:
            writer.write_all((box,), marks.index(box.has), larger=False)
    return writer.question(), marks


def _telling(marking: Marking, family: int, interfaces: Mapping[str, int], classes: Classes) -> Telling:
    if marking.everywhere and (has := marking.regions[0].has) is not None:
        return Telling(marking.view, (has,))
    asked, marks = marks_question(marking, family, interfaces, classes)
    if len(marks) > MARKS_MAX:
        asked, marks = Question((), (), Sets()), ()
    try:
        classifier = compile_classifier(asked.conditions, asked.sets, family, asked.told)
    except TooBigError:
        classifier = compile_classifier((), Sets(), family)
    return Telling(marking.view, marks, classifier)


def back_question(proof: Rulings, family: int, interfaces: Mapping[str, int], classes: Classes) -> Question:
    """Of a family of which a route back is required."""
    writer = _Writer(family, interfaces, classes)
    for boxes, back in proof.backs[family]:
        writer.write_all(boxes, back, larger=True)
    return writer.question()


def mangle_question(proof: Rulings, key: Views, interfaces: Mapping[str, int], classes: Classes) -> Question:
    """Of one view and family in which packets are changed. TooBigError: it cannot be said exactly."""
    rows = mangle_rows(proof)
    writer = _Writer(key[1], interfaces, classes, exact=True)
    for boxes, mangle in proof.mangles[key]:
        writer.write_all(boxes, rows.index(mangle), larger=False)
    return writer.question()


class _UnsayableError(Exception):
    """No condition can say this."""


@dataclass(slots=True)
class _Writer:
    """`exact`: nothing may be said larger, or left out."""

    family: int
    interfaces: Mapping[str, int]
    classes: Classes
    exact: bool = False
    conditions: list[Condition] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    addresses: dict[str, Sequence[IPNetwork]] = field(default_factory=dict)
    _names: dict[Ranges, str] = field(default_factory=dict)
    _rows: int = 0

    def write(self, ruling: Ruling) -> None:
        told = 0 if ruling.keep is None else ruling.keep + 1
        self.write_all(ruling.boxes, told, larger=bool(told))

    def write_all(self, boxes: Boxes, told: int, *, larger: bool) -> None:
        """`larger`: rather than not at all."""
        for box in boxes:
            try:
                condition = self._condition(box, larger=larger)
            except _UnsayableError:
                continue
            self.conditions.append(condition)
            self.told.append(told)

    def question(self) -> Question:
        return Question(self.conditions, self.told, Sets(addresses=self.addresses))

    def _condition(self, box: Box, *, larger: bool) -> Condition:
        """_UnsayableError also for what no packet meets."""
        marks = self.classes.among(box.connmark)
        if marks == ():
            raise _UnsayableError
        return Condition(
            source=self._addresses(box.source, larger=larger),
            destination=self._addresses(box.destination, larger=larger),
            sport=_ports(box.sport),
            dport=_ports(box.dport),
            protocols=_protocols(box.protocol),
            interfaces_in=self._interfaces(box.inside, larger=larger),
            interfaces_out=self._interfaces(box.outside, larger=larger),
            marks=marks,
        )

    def _addresses(self, addresses: Ranges, *, larger: bool) -> tuple[IPNetwork, ...] | str | None:
        if addresses == all_addresses(self.family):
            return None
        if addresses in self._names:
            return self._names[addresses]
        if prefixes_of(addresses, self.family) > PREFIXES_MAX:
            self._too_much(larger=larger)
            return None
        networks = tuple(_networks(addresses, self.family))
        if len(networks) <= LISTED_MAX:
            return networks
        name = self._names[addresses] = str(len(self._names))
        self.addresses[name] = networks
        return name

    def _interfaces(self, names: Names, *, larger: bool) -> tuple[int, ...] | None:
        if names.others and not names.names:
            return None
        found = tuple(number for name, number in self.interfaces.items() if name in names)
        if not found:
            raise _UnsayableError
        if not names.others:
            return found
        self._rows += len(found)
        if self._rows <= ROWS_MAX:
            return found
        self._too_much(larger=larger)
        return None

    def _too_much(self, *, larger: bool) -> None:
        if self.exact:
            raise TooBigError("it cannot be said exactly which packets rules change")
        if not larger:
            raise _UnsayableError


def _networks(addresses: Ranges, family: int) -> Iterator[IPNetwork]:
    for first, last in addresses.spans:
        length = BITS[family] - (last - first).bit_length()
        size = last - first + 1
        if size & (size - 1) == 0 and first % size == 0:  # nearly always, and much faster
            yield IPv4Network((first, length)) if family == 4 else IPv6Network((first, length))
        elif family == 4:
            yield from summarize_address_range(IPv4Address(first), IPv4Address(last))
        else:
            yield from summarize_address_range(IPv6Address(first), IPv6Address(last))


def _ports(ports: Ranges) -> tuple[PortRange, ...] | None:
    return None if ports == PORTS else tuple(PortRange(first, last) for first, last in ports.spans)


def _protocols(protocols: Ranges) -> tuple[int, ...] | None:
    found = tuple(number for number in CARRIED if number in protocols)
    if not found:
        raise _UnsayableError
    return None if found == CARRIED else found
