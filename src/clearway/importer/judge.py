# SPDX-License-Identifier: Apache-2.0
"""The list of a hook as clearway rules: entry by entry, what is taken over and what is not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from clearway.model import Action, FirewallRule
from clearway.model.protocols import TCP, UDP

from .account import Account, verb_words
from .box import (
    ANY_STATE,
    INVALID,
    NEW,
    UNTRACKED,
    Box,
    Boxes,
    common,
    covered,
    limited,
    never_judged,
    unlimited,
)
from .errors import InexactError
from .express import LOOPBACK, Fields, Sets, expressed, note_sets
from .flatten import Entry, ends_before
from .index import Index
from .names import UniqueNames, plain
from .ranges import Names, Ranges
from .ruleset import ENDS, Verb

ACTIONS: Mapping[Verb, Action] = {Verb.ACCEPT: "accept", Verb.DROP: "drop", Verb.REJECT: "reject"}
LIMIT = re.compile(r"\blimit\b")
RESET, PORT, PROHIBITED = "reset", "port unreachable", "administratively prohibited"
ANSWERS: Mapping[str, str] = {
    "tcp reset": RESET,
    "tcp-reset": RESET,
    "default": PORT,
    "icmp port-unreachable": PORT,
    "icmpv6 port-unreachable": PORT,
    "icmpx port-unreachable": PORT,
    "icmp-port-unreachable": PORT,
    "icmp6-port-unreachable": PORT,
    "port-unreach": PORT,
    "icmp admin-prohibited": PROHIBITED,
    "icmpv6 admin-prohibited": PROHIBITED,
    "icmpx admin-prohibited": PROHIBITED,
    "icmp-admin-prohibited": PROHIBITED,
    "icmp6-adm-prohibited": PROHIBITED,
    "adm-prohibited": PROHIBITED,
}


DECIDED_BEFORE = "nothing to do: rules before it decide"
NO_FIRST = "no first packet of a connection meets it, so the other rules mean the same without it"
OF_INVALID = (
    "clearway does not know what conntrack calls invalid: it drops malformed packets by itself, and"
    " conntrack.midstream says what becomes of TCP that does not begin with SYN"
)
DISCOVERY = "clearway asks no rule about neighbour discovery and multicast group management of IPv6"


@dataclass(slots=True)
class _Step:
    """An entry as first packets of connections meet it; the fields of its rules, or why there are none."""

    entry: Entry
    boxes: Boxes
    name: str
    log: bool
    fields: list[Fields] = field(default_factory=list)
    why: str = ""
    is_default: bool = False
    """Whether clearway does the same without it."""


class _Taken:
    """Steps that become rules, from the last one on: for the next, these are the rules behind it."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self._index = Index()

    def add(self, step: _Step) -> None:
        self.steps.append(step)
        self._index.add(step.boxes)

    def meeting(self, box: Box) -> Iterator[_Step]:
        """Those that some packets of a box meet, the first rule first."""
        steps = (self.steps[number] for number in self._index.near((box,), last_first=True))
        return (step for step in steps if common((box,), step.boxes))


class Judge:
    """Makes rules of one hook after the other."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.rules: list[FirewallRule] = []
        self.sets: Sets = {}
        self.names = UniqueNames()

    def judge(self, entries: Sequence[Entry], hook: str) -> None:
        steps = self._with_logs(self._steps(entries, hook))
        taken = _Taken()
        for step in reversed(steps):  # what may be left out depends on what comes after
            self._express(step, taken, hook)
            if step.why:
                self._left_out(step, taken)
            else:
                last = step.entry.position <= 0 and step.entry.verb is Verb.ACCEPT and not step.log
                step.is_default = last and self._otherwise(step.boxes, step, taken) is None
                taken.add(step)
        for step in reversed(taken.steps):
            self._write(step)
        blamed = {
            reason for step in steps if self.account.was_refused(step.entry) for reason in step.entry.reasons
        }
        for entry in entries:
            self._leads(entry, blamed)

    # ---- what first packets meet ----

    def _steps(self, entries: Iterable[Entry], hook: str) -> list[_Step]:
        decided = Index()  # of first packets
        gone = Index()  # of all
        steps = []
        for entry in entries:
            if entry.verb not in ENDS | {Verb.LOG}:
                continue
            boxes = self._first_packets(entry, gone)
            if entry.decides:
                gone.add(entry.boxes)
            if not boxes:
                continue
            if decided.cover(boxes):
                self.account.takes(entry, DECIDED_BEFORE)
                continue
            steps.append(_Step(entry, boxes, self._name(entry, hook), entry.log and entry.verb in ENDS))
            if entry.decides:
                decided.add(boxes)
        return steps

    def _first_packets(self, entry: Entry, gone: Index) -> Boxes:
        """What an entry says about packets that clearway asks rules about; accounts for the others."""
        first = limited(entry.boxes, state=NEW)
        if not first and gone.cover(entry.boxes):
            self.account.takes(entry, DECIDED_BEFORE)
        elif not first:
            self._other_states(entry)
        judged = tuple(box for box in first if not never_judged(box))
        others = tuple(box for box in first if never_judged(box))
        if others and gone.cover(others):
            self.account.takes(entry, DECIDED_BEFORE)
        elif others:
            self._discovery(entry)
        return unlimited(judged, state=ANY_STATE)

    def _discovery(self, entry: Entry) -> None:
        if entry.verb is Verb.ACCEPT:
            self.account.takes(entry, f"built in: {DISCOVERY}")
        else:
            self.account.refuses(entry, DISCOVERY)

    def _other_states(self, entry: Entry) -> None:
        """Of rules that ask for a state which no first packet has."""
        states = Ranges.of(span for box in entry.boxes for span in box.state.spans)
        if all(never_judged(box) for box in entry.boxes):
            self._discovery(entry)
        elif states & INVALID:
            self.account.refuses(entry, OF_INVALID, NO_FIRST)
        elif entry.verb is Verb.ACCEPT and not entry.reasons:
            self.account.takes(entry, f"built in: {_built_in(states)}")
        else:
            why = entry.reasons or (
                "packets of accepted connections, and ICMP errors about them, always pass",
            )
            self.account.refuses(entry, "; ".join(why), NO_FIRST)

    def _with_logs(self, steps: Sequence[_Step]) -> list[_Step]:
        """Rules that only log go into the rule behind them, when that is for the same packets."""
        found = []
        for number, step in enumerate(steps):
            if step.entry.verb is not Verb.LOG:
                found.append(step)
                continue
            following = steps[number + 1] if number + 1 < len(steps) else None
            if following is not None and _logs_for(step, following):
                following.log = True
                self.account.takes(step.entry, f"log of {following.name}")
                if step.entry.reasons:
                    self.account.differs(
                        step.entry, "clearway logs all that the rule decides, without this limit"
                    )
            else:
                why = "; ".join(
                    [*step.entry.reasons, "clearway logs what a rule decides, not what passes by"]
                )
                self.account.refuses(step.entry, why, "only the log is missing")
        return found

    # ---- rules ----

    def _express(self, step: _Step, later: _Taken, hook: str) -> None:
        entry = step.entry
        if entry.reasons or entry.verb is Verb.UNKNOWN:
            step.why = "; ".join(entry.reasons) or f"{entry.target}: clearway has nothing like it"
            return
        try:
            step.fields = self._rules_for(step.boxes, hook)
        except InexactError as error:
            step.why = str(error)
            self._express_more(step, later, hook)

    def _rules_for(self, boxes: Boxes, hook: str) -> list[Fields]:
        fields = expressed(boxes, hook)
        for one in fields:
            try:
                FirewallRule(name="x", action="accept", **one)
            except ValidationError as error:
                what = "; ".join(str(problem["msg"]) for problem in error.errors())
                raise InexactError(f"clearway refuses it: {what}") from None
        note_sets(boxes, self.sets)
        return fields

    def _express_more(self, step: _Step, later: _Taken, hook: str) -> None:
        """`All interfaces but eth0` is `all` when what comes by eth0 gets the same from the rules behind."""
        boxes, more = _any_interface(step.boxes)
        if not more or self._otherwise(more, step, later) is not None:
            return
        try:
            step.fields = self._rules_for(boxes, hook)
        except InexactError:
            return
        step.boxes, step.why = boxes, ""

    def _otherwise(
        self, boxes: Boxes, step: _Step, later: _Taken, *, logs: bool = True
    ) -> tuple[str, Verb] | None:
        """Which rule does something else to these packets than the step would; None: they get the same."""
        for box in boxes:
            for other in later.meeting(box):
                if other.entry.verb != step.entry.verb or (logs and other.log != step.log):
                    return f"rule {other.name}", other.entry.verb
                if covered((box,), other.boxes):
                    break
            else:
                if step.entry.verb is not Verb.ACCEPT or (logs and step.log):
                    return "the default", Verb.ACCEPT
        return None

    def _left_out(self, step: _Step, later: _Taken) -> None:
        verb = step.entry.verb
        other = self._otherwise(step.boxes, step, later)
        if other is None:
            self.account.takes(
                step.entry, f"nothing to do: what it {verb_words(verb)} gets the same without it"
            )
            return
        name, does = other
        if does == verb and self._otherwise(step.boxes, step, later, logs=False) is None:
            self.account.takes(step.entry, f"nothing to do: {name} {verb_words(verb)} it as well")
            self.account.differs(step.entry, f"what {name} decides is {'' if not step.log else 'not '}logged")
            return
        effect = f"the rules behind it decide instead: {name} {verb_words(does)} what it {verb_words(verb)}"
        self.account.refuses(step.entry, step.why, effect)

    def _write(self, step: _Step) -> None:
        entry = step.entry
        if step.is_default:
            self.account.takes(entry, "the default")
            return
        for number, one in enumerate(step.fields):
            name = step.name if number == 0 else self.names.unique(step.name)
            self.rules.append(FirewallRule(name=name, action=ACTIONS[entry.verb], log=step.log, **one))
            self.account.takes(entry, f"rule {name}")
        if entry.verb is Verb.REJECT and (what := _answers(entry)):
            self.account.differs(entry, what)
        if entry.rule.remark:
            self.account.differs(entry, entry.rule.remark)

    # ---- what only leads somewhere ----

    def _leads(self, entry: Entry, blamed: set[str]) -> None:
        match entry.verb:
            case Verb.JUMP | Verb.GOTO if blamed & set(entry.reasons):
                what = f"the rules of chain {entry.target} are not taken over for it"
                self.account.refuses(entry, "; ".join(entry.reasons), what)
            case Verb.JUMP | Verb.GOTO:
                self.account.takes(entry, f"leads to chain {entry.target}")
            case Verb.RETURN if entry.reasons and ends_before(entry) in blamed:
                what = f"the rest of chain {entry.chain.name} is not taken over where it may apply"
                self.account.refuses(entry, "; ".join(entry.reasons), what)
            case Verb.RETURN:
                self.account.takes(entry, "ends the chain for what it matches")
            case Verb.NOTHING if entry.rule.side_effect and not entry.chain.table.endswith("mangle"):
                what = f"{entry.rule.side_effect}: not part of a firewall"
                self.account.refuses(entry, what, "it decides about no packet")
            case Verb.NOTHING:
                self.account.takes(entry, "nothing to do: it decides about no packet")

    # ---- names ----

    def _name(self, entry: Entry, hook: str) -> str:
        if entry.position <= 0:
            return self.names.unique(f"{hook}-policy")
        chain = plain(entry.chain.name.lower(), 40) or "chain"
        comment = plain(entry.rule.comment.lower(), 62 - len(chain))
        return self.names.unique(f"{chain}-{comment or entry.position}")


def _built_in(states: Ranges) -> str:
    if states == UNTRACKED:
        return "nothing is untracked but neighbour discovery, about which no rule is asked"
    return "packets of accepted connections, and ICMP errors about them, pass"


def _logs_for(step: _Step, following: _Step) -> bool:
    return (
        following.entry.decides
        and set(step.boxes) == set(following.boxes)
        and all(LIMIT.search(reason) for reason in step.entry.reasons)
    )


def _any_interface(boxes: Boxes) -> tuple[Boxes, Boxes]:
    """The boxes with `all interfaces but some` widened to all, and what that adds."""
    wide: list[Box] = []
    more: list[Box] = []
    for one in boxes:
        box = one
        for name in ("inside", "outside"):
            names: Names = getattr(box, name)
            if names.others and (excepted := names.names - {LOOPBACK}):
                more += unlimited((box,), **{name: Names(excepted)})
                [box] = unlimited((box,), **{name: Names.but(LOOPBACK)})
        wide.append(box)
    return tuple(wide), tuple(more)


def _answers(entry: Entry) -> str:
    """How clearway's answer to a rejected packet differs, if it does."""
    asked = ANSWERS.get(entry.target, entry.target)
    protocols = {number for box in entry.boxes for number in box.protocol}
    given = {TCP: RESET, UDP: PORT}
    others = [
        f"{name} with {given[number]}"
        for number, name in ((TCP, "TCP"), (UDP, "UDP"))
        if number in protocols and given[number] != asked
    ]
    if protocols - set(given) and asked != PROHIBITED:
        others.append(f"other protocols with {PROHIBITED}")
    return f"answers {asked}; clearway answers {', '.join(others)}" if others else ""
