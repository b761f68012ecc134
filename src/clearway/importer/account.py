# SPDX-License-Identifier: Apache-2.0
"""What became of every line of a ruleset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from clearway.model import Firewall

from .express import LOOPBACK
from .flatten import Entry
from .ranges import Names
from .result import Imported, Item
from .ruleset import Chain, Rule, Ruleset, Verb

Place = tuple[str, str, int]
"""Table, chain, position of the rule from 1; 0: the policy."""


@dataclass(slots=True)
class _Fate:
    """What was said of one rule, each once. A rule that several chains lead to has one fate."""

    chain: Chain
    rule: Rule
    taken: dict[str, None] = field(default_factory=dict)
    refused: dict[str, None] = field(default_factory=dict)
    differs: dict[str, None] = field(default_factory=dict)


class Account:
    """Collects fates, and says them in the order of the lines."""

    def __init__(self, ruleset: Ruleset) -> None:
        self.ruleset = ruleset
        self.fates: dict[Place, _Fate] = {}
        self.notes: list[Item] = []

    def takes(self, entry: Entry, how: str) -> None:
        if entry.position >= 0:
            self._fate(entry).taken[how] = None

    def refuses(self, entry: Entry, why: str, effect: str = "") -> None:
        self._fate(entry).refused[_with(why, effect)] = None

    def differs(self, entry: Entry, what: str) -> None:
        self._fate(entry).differs[what] = None

    def takes_rule(self, chain: Chain, position: int, rule: Rule, how: str) -> None:
        self._at(chain, position, rule).taken[how] = None

    def refuses_rule(self, chain: Chain, position: int, rule: Rule, why: str, effect: str = "") -> None:
        self._at(chain, position, rule).refused[_with(why, effect)] = None

    def differs_rule(self, chain: Chain, position: int, rule: Rule, what: str) -> None:
        self._at(chain, position, rule).differs[what] = None

    def note(self, what: str, line: int = 0, text: str = "") -> None:
        self.notes.append(Item(line, text, what))

    def was_refused(self, entry: Entry) -> bool:
        return bool(self._fate(entry).refused)

    def imported(self, firewall: Firewall) -> Imported:
        self._rest()
        fates = self.fates.values()
        return Imported(
            firewall,
            taken=_items((one, one.taken) for one in fates if not one.refused),
            not_taken=_items((one, one.refused) for one in fates),
            differences=_items((one, one.differs) for one in fates if not one.refused),
            notes=tuple(sorted(set(self.notes))),
        )

    def _fate(self, entry: Entry) -> _Fate:
        return self._at(entry.chain, entry.position, entry.rule)

    def _at(self, chain: Chain, position: int, rule: Rule) -> _Fate:
        return self.fates.setdefault((chain.table, chain.name, position), _Fate(chain, rule))

    def _rest(self) -> None:
        """Rules that no entry came of: no packet that clearway judges can be in them."""
        for chain in self.ruleset.chains.values():
            for position, rule in enumerate(chain.rules, 1):
                if (chain.table, chain.name, position) not in self.fates:
                    self.takes_rule(chain, position, rule, _why_nothing(rule))


def _why_nothing(rule: Rule) -> str:
    boxes = [box for branch in rule.branches for box in branch.boxes]
    if not boxes:
        return "nothing to do: no packet can be all that it asks for"
    if all(Names.of(LOOPBACK) in (box.inside, box.outside) for box in boxes):
        return "built in: clearway leaves the loopback interface alone"
    return "nothing to do: no packet that clearway judges comes to it"


def _with(why: str, effect: str) -> str:
    return f"{why}; {effect}" if effect else why


def _items(fates: Iterator[tuple[_Fate, dict[str, None]]]) -> tuple[Item, ...]:
    found = [Item(one.rule.line, one.rule.text, "; ".join(said)) for one, said in fates if said]
    return tuple(sorted(found))


def verb_words(verb: Verb) -> str:
    return {Verb.ACCEPT: "accepts", Verb.DROP: "drops", Verb.REJECT: "rejects"}.get(verb, "decides about")
