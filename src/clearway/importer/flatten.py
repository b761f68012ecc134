# SPDX-License-Identifier: Apache-2.0
"""Chains that call each other, as one list of entries a hook: the first that a packet is in decides.

A jump cuts the rules of the chain that it goes to down to what it matches; a return takes what it matches out
of the rest of its chain. Where several chains are at a hook, what one accepts goes through the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .box import Boxes, common, covered, without
from .errors import InexactError, UnreadableError
from .index import Index
from .ruleset import ENDS, Branch, Chain, Rule, Verb

DEPTH_MAX = 16
"""NFT_JUMP_STACK_SIZE, include/net/netfilter/nf_tables.h; for iptables it is as many as there are chains."""
ENTRIES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Entry:
    """Packets in the boxes get the verb; those of them that also meet the reasons, if there are any."""

    boxes: Boxes
    verb: Verb
    target: str
    log: bool
    reasons: tuple[str, ...]
    rule: Rule
    chain: Chain
    position: int
    """Of the rule in its chain, from 1; 0: the policy; less: no line says it."""

    @property
    def decides(self) -> bool:
        """Whether it certainly ends the way of every packet in the boxes."""
        return self.verb in ENDS - {Verb.UNKNOWN} and not self.reasons


@dataclass(slots=True)
class _Walk:
    """What is still on its way through a chain, and what may have left it."""

    boxes: Boxes
    reasons: tuple[str, ...]
    doubts: list[tuple[Boxes, str]]

    def reasons_for(self, boxes: Boxes) -> tuple[str, ...]:
        found = [why for region, why in self.doubts if common(boxes, region)]
        return tuple(dict.fromkeys([*self.reasons, *found]))

    def leave(self, boxes: Boxes, why: str) -> None:
        """These packets skip the rest: exactly, or, when `why` says so, some of them."""
        if not why:
            try:
                self.boxes = without(self.boxes, boxes)
            except InexactError as error:
                why = str(error)
        if why:
            self.doubts.append((boxes, why))


def flatten(chain: Chain, chains: Mapping[tuple[str, str], Chain], start: Boxes) -> list[Entry]:
    """A base chain and all that it leads to, with its policy at the end. Raises UnreadableError for loops."""
    own = tuple(box for box in start if box.family in chain.families)
    others = tuple(box for box in start if box.family not in chain.families)
    found = _Unfolding(chain, chains).entries(chain, own, (), 0)
    found.append(policy_of(chain, own))
    # What is of the other family does not go through the chain.
    passing = replace(policy_of(chain, others), verb=Verb.ACCEPT, position=-1)
    return [*found, passing] if others else found


def policy_of(chain: Chain, boxes: Boxes) -> Entry:
    rule = Rule(chain.line, chain.text, (Branch(boxes, chain.policy),))
    return Entry(boxes, chain.policy, "", False, (), rule, chain, 0)


class _Unfolding:
    """A base chain while it is unfolded."""

    def __init__(self, base: Chain, chains: Mapping[tuple[str, str], Chain]) -> None:
        self.base = base
        self.chains = chains
        self.count = 0

    def entries(self, chain: Chain, start: Boxes, reasons: tuple[str, ...], depth: int) -> list[Entry]:
        if depth > max(DEPTH_MAX, len(self.chains)):
            raise UnreadableError(f"line {chain.line}: chain {chain.name} leads to itself")
        walk = _Walk(start, reasons, [])
        found: list[Entry] = []
        for position, rule in enumerate(chain.rules, 1):
            for branch in rule.branches:
                if here := common(walk.boxes, branch.boxes):
                    why = tuple(dict.fromkeys([*walk.reasons_for(here), *branch.reasons]))
                    entry = Entry(here, branch.verb, branch.target, branch.log, why, rule, chain, position)
                    found += self._followed(entry, walk, depth)
        return found

    def _followed(self, entry: Entry, walk: _Walk, depth: int) -> list[Entry]:
        """An entry, and what it leads to."""
        self.count += 1
        if self.count > ENTRIES_MAX:
            raise UnreadableError(f"chain {self.base.name} unfolds to more than {ENTRIES_MAX} rules")
        if entry.verb is Verb.RETURN:
            return [entry, *self._leave(entry, walk, depth)]
        if entry.verb not in {Verb.JUMP, Verb.GOTO}:
            return [entry]
        target = self.chains.get((entry.chain.table, entry.target))
        if target is None:
            return [replace(entry, verb=Verb.UNKNOWN, reasons=(*entry.reasons, f"no chain {entry.target}"))]
        below = self.entries(target, entry.boxes, entry.reasons, depth + 1)
        ended = [box for one in below if one.decides for box in one.boxes]
        if entry.verb is Verb.JUMP or covered(entry.boxes, ended):
            return [entry, *below]
        return [entry, *below, *self._leave(entry, walk, depth)]

    def _leave(self, entry: Entry, walk: _Walk, depth: int) -> list[Entry]:
        """These packets skip the rest of their chain. Of a base chain they meet the policy."""
        if depth == 0:
            return [replace(entry, verb=self.base.policy, target="", log=False)]
        walk.leave(entry.boxes, ends_before(entry) if entry.reasons else "")
        return []


def ends_before(entry: Entry) -> str:
    """What the rest of a chain depends on when a return in it is not certain."""
    return f"line {entry.rule.line} may end the chain before it"


def combined(first: Sequence[Entry], then: Sequence[Entry]) -> list[Entry]:
    """Two chains at a hook, one behind the other: what the first accepts goes through the second."""
    if not any(entry.verb in ENDS and entry.verb is not Verb.ACCEPT for entry in then):
        return [*first, *(replace(entry, verb=_harmless(entry.verb)) for entry in then if entry.position > 0)]
    index = Index()
    for entry in then:
        index.add(entry.boxes)
    found: list[Entry] = []
    for entry in first:
        if entry.verb is not Verb.ACCEPT:
            found.append(entry)
        elif entry.reasons:
            why = "another chain at this hook has to accept it too"
            found.append(replace(entry, verb=Verb.UNKNOWN, reasons=(*entry.reasons, why)))
        else:
            found += _through(entry, [then[number] for number in index.near(entry.boxes)])
        if len(found) > ENTRIES_MAX:
            hook = entry.chain.hook
            raise UnreadableError(f"the chains at hook {hook} unfold to more than {ENTRIES_MAX} rules")
    return found


def _harmless(verb: Verb) -> Verb:
    return Verb.NOTHING if verb is Verb.ACCEPT else verb


def _through(entry: Entry, then: Sequence[Entry]) -> Iterator[Entry]:
    """What a first chain accepts, as the second goes on with it."""
    own = False
    for other in then:
        both = common(entry.boxes, other.boxes)
        if both and other.position <= 0 and other.verb is Verb.ACCEPT:
            own = True  # the second has nothing to say about it
            yield replace(entry, boxes=both)
        elif both:
            log = other.log or (entry.log and other.verb in ENDS)
            yield replace(other, boxes=both, log=log)
    if not own:
        yield replace(entry, verb=Verb.NOTHING)
