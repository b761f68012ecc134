# SPDX-License-Identifier: Apache-2.0
"""From texts to a proof: the chains on a forwarded packet's way, what they keep, and every rule's kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from clearway.importer.box import ANY_INTERFACE, FAMILIES, Box, Boxes, whole
from clearway.importer.errors import UnreadableError
from clearway.importer.ranges import Names, Ranges

from .counted import Counting
from .iptables import read_save
from .kinds import kind_of
from .lines import joined
from .mangle import Effect, one_after_the_other
from .marking import Marked, Marking
from .nft import NftRuleset, read_nft
from .passages import Passages, Rows
from .region import HOOKS, Region, is_all_carried
from .result import Back, Classified, Counted, Keep, Mangle, Obstacle, Passage, RuleName, Sources, View
from .steps import Chains, StepChain
from .walk import CHANGED_TWICE, Cause, Line, Walk

INGRESS_FAMILIES = frozenset({"netdev", "inet"})
Views = tuple[View, int]
MANGLES_MAX = 31
"""MANGLES of bpf/types.h, without that which changes nothing."""
EFFECTS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Ruling:
    """A line of a view: packets in the boxes are kept for `keeps[keep]` of the proof or, None, pass."""

    boxes: Boxes
    keep: int | None


@dataclass(frozen=True)
class Rulings:
    """What is kept in Linux. `rulings`: by view and family, first match first; none where nothing is kept.
    `path`: the base chains that packets meet, in order. `backs`: by family, of which packets as they arrive a
    route to the sender is required, first match first; `mangles`: by view and family, what is changed in
    packets, likewise, at most MANGLES_MAX different changes. `routed`, `left`: by family, the marks that
    packets have where they are routed, and where they leave.
    """

    keeps: tuple[Keep, ...]
    rulings: Mapping[Views, tuple[Ruling, ...]]
    path: tuple[StepChain, ...]
    backs: Mapping[int, tuple[tuple[Boxes, Back], ...]]
    mangles: Mapping[Views, tuple[tuple[Boxes, Mangle], ...]]
    routed: Mapping[int, Marking]
    left: Mapping[int, Marking]

    @property
    def asked(self) -> frozenset[int]:
        """Families of which packets meet rules, or may meet some that could not be read."""
        with_rules = {
            family for chain in self.path for family in chain.families if chain.rules or chain.drops
        }
        return frozenset(with_rules | {family for _view, family in self.rulings})

    def why_kept(self, passage: Passage) -> Keep | None:
        """What keeps this direction of a connection in Linux, if anything; the first that is found."""
        for view in View:
            for ruling in self.rulings.get((view, passage.family), ()):
                if _within(passage, view, ruling.boxes):
                    if ruling.keep is not None:
                        return self.keeps[ruling.keep]
                    break
        return None

    def back(self, passage: Passage) -> Back | None:
        """What is required of the route to who sends the packets of this direction."""
        for boxes, back in self.backs.get(passage.family, ()):
            if _within(passage, View.BEFORE, boxes):
                return back
        return None

    def routed_with(self, passage: Passage) -> int:
        """The mark that its packets are routed with; 0 where that is not known. Only for what is not kept."""
        marking = self.routed[passage.family]
        for box in marking.regions:
            if box.has is not None and _within(passage, marking.view, (box,)):
                return box.has.of(passage.mark)
        return 0

    def mangle(self, passage: Passage) -> Mangle:
        """What is changed in the packets of this direction. Only for what is not kept."""
        for view in View:
            for boxes, mangle in self.mangles.get((view, passage.family), ()):
                if _within(passage, view, boxes):
                    return mangle
        return Mangle()


@dataclass(frozen=True)
class Proof(Rulings):
    """For which established, forwarded connections a path around netfilter gives what Linux gives.

    `chains`: all that there are. `always`: what is kept of whatever meets rules, because they could not be
    read or see frames at a device. `filtering`: as of Sources.
    """

    rules: tuple[Classified, ...]
    chains: Chains
    always: tuple[tuple[View, int, Line], ...]
    filtering: Mapping[int, frozenset[str]]

    @property
    def tracks(self) -> frozenset[int]:
        """Families whose connections are tracked: only for the sake of rules that ask for it. Without, those
        that are known from before say nothing of how packets are treated now (nf_ct_netns_put).
        """
        rules = (rule for chain in self.chains.values() for rule in chain.rules)
        return frozenset(family for rule in rules for family in rule.tracks)

    @property
    def translates(self) -> frozenset[int]:
        """Families in which connections are translated: the kernel does so only where there is a chain of
        type nat, also with those that it has begun to translate (net/netfilter/nf_nat_core.c,
        nf_nat_register_fn).
        """
        return _translates(self.chains)

    def traversed(self, passage: Passage) -> tuple[Counted, ...]:
        """The counters that a packet of this direction meets, in order. Only for what is not kept."""
        return tuple(counted for counted, _rows in self.counted(Passages.of([passage])))

    def counted(self, passages: Passages) -> list[tuple[Counted, Rows]]:
        """Counters with the numbers of the passages whose packets meet them, in order; a passage meets a
        counter once for each time that it is named with it. Only for what is not kept. What a bridge has
        counted already, before the fast path sees the packet, is not among them.
        """
        met: list[tuple[Counted, Rows]] = []
        marks = np.zeros(len(passages), np.uint32)
        for chain in self.path:
            if passages.family in chain.families:
                counted = self.filtering.get(passages.family) if chain.hook == "prerouting" else None
                mine = Counting(chain, self.chains, passages, marks).met()
                met += _not_from(counted, passages, mine) if counted else mine
        return met


def prove(sources: Sources) -> Proof:
    """Never raises for what the kernel has accepted: what cannot be read keeps its families in Linux."""
    chains, always = _read(sources)
    always += _at_all_devices(sources, chains)
    always_here = (*always, *_beside(sources.obstacles))
    mine = _walked(chains, Region.CARRIED, always_here, sources.translated)
    rules = tuple(_classified(chains, mine))
    return Proof(
        keeps=mine.keeps,
        rulings=mine.rulings,
        path=mine.path,
        backs=mine.backs,
        mangles=mine.mangles,
        routed=mine.routed,
        left=mine.left,
        rules=rules,
        chains=chains,
        always=tuple(always),
        filtering=sources.filtering,
    )


def prove_claimed(proof: Proof, region: Region) -> Rulings:
    """The same rules, for packets that clearway's own services and NAT claim."""
    return _walked(proof.chains, region, proof.always)


def _walked(
    chains: Chains,
    region: Region,
    always: Iterable[tuple[View, int, Line]],
    translated: frozenset[int] = frozenset(),
) -> Rulings:
    path = _path(chains, region)
    found: dict[Views, list[list[Line]]] = {}
    for view, family, line in always:
        found.setdefault((view, family), []).append([line])
    translated = translated | _translates(chains)
    marked = {family: Marked(chains, family, region, translated=family in translated) for family in FAMILIES}
    backs: dict[int, list[tuple[Boxes, Back]]] = {}
    effects = _Effects()
    for chain in path:
        for family in chain.families:
            walk = marked[family].walk(chain, chains, reclassed=effects.reclass(family))
            effects.add(chain, walk)
            if walk.asks_back:
                backs.setdefault(family, []).extend(walk.asks_back)
            for view in walk.views:
                found.setdefault((view, family), []).append(walk.lines)
    for key, line in effects.kept:
        found.setdefault(key, []).append([line])
    for view, family, line in (one for its in marked.values() for one in its.unknown()):
        found.setdefault((view, family), []).append([line])
    keeps: list[Keep] = []
    rulings = {key: ruled for key, lists in found.items() if (ruled := _ruled(key[0], lists, keeps))}
    required = {family: _strictest_first(asked) for family, asked in backs.items()}
    mangles = {key: tuple((one.boxes, one.mangle) for one in ones) for key, ones in effects.said.items()}
    routed = {family: its.routed for family, its in marked.items()}
    left = {family: its.left for family, its in marked.items()}
    return Rulings(tuple(keeps), rulings, path, required, mangles, routed, left)


def _translates(chains: Chains) -> frozenset[int]:
    nat = (chain for chain in chains.values() if chain.kind == "nat" and chain.hook)
    return frozenset(family for chain in nat for family in chain.families)


@dataclass(slots=True)
class _Effects:
    """What all chains change, by view and family; and what is kept because it cannot be said."""

    said: dict[Views, list[Effect]] = field(default_factory=dict)
    kept: list[tuple[Views, Line]] = field(default_factory=list)

    def reclass(self, family: int) -> bool:
        """Whether routing sees another type of service than packets have come with."""
        return any(
            one.mangle.early for (_view, of), ones in self.said.items() if of == family for one in ones
        )

    def add(self, chain: StepChain, walk: Walk) -> None:
        """Of a chain behind those that were added. All that changes in packets of a family is told by one
        view.
        """
        if not walk.effects:
            return
        key = walk.views[0], walk.family
        others = {view for view, family in self.said if family == walk.family}
        if others - {key[0]}:
            self._keep(key, walk.effects, "changes packets, as a rule does that sees other addresses of them")
            return
        said, unsaid = one_after_the_other(self.said.get(key, []), walk.effects)
        self._keep(key, unsaid, CHANGED_TWICE)
        if len(said) > EFFECTS_MAX or self._different(said, key) > MANGLES_MAX:
            self._keep(key, walk.effects, "changes packets, as too many rules do")
            return
        self.said[key] = said

    def _different(self, said: Iterable[Effect], key: Views) -> int:
        others = (one for other, ones in self.said.items() if other != key for one in ones)
        return len({one.mangle for one in (*said, *others)})

    def _keep(self, key: Views, effects: Iterable[Effect], why: str) -> None:
        self.kept += [(key, Line(one.boxes, Cause(why, one.rule))) for one in effects]


def _strictest_first(asked: Iterable[tuple[Boxes, Back]]) -> tuple[tuple[Boxes, Back], ...]:
    """So that the first match is enough: what leads back strictly leads back."""
    return tuple(sorted(dict.fromkeys(asked), key=lambda one: -one[1]))


def _ruled(view: View, lists: list[list[Line]], keeps: list[Keep]) -> tuple[Ruling, ...]:
    found = []
    for line in joined(lists):
        if line.cause is None:
            found.append(Ruling(line.boxes, None))
        else:
            found.append(Ruling(line.boxes, len(keeps)))
            keeps.append(Keep(view, line.boxes, line.cause.why, line.cause.rule))
    return tuple(found)


# ---- what there is ----


def _read(sources: Sources) -> tuple[Chains, list[tuple[View, int, Line]]]:
    """All chains, and what is kept because they could not be read."""
    trouble: list[tuple[View, int, Line]] = []
    try:
        nft = read_nft(sources.nft)
    except UnreadableError as error:
        nft = NftRuleset()
        trouble += [_all(family, str(error)) for family in FAMILIES]
    chains = dict(nft.chains)
    for name, text in sources.saves.items():
        family = 6 if name.startswith("ip6") else 4
        try:
            saved = read_save(text, family)
        except UnreadableError as error:
            trouble.append(_all(family, f"{name}: {error}"))
        else:
            _put_saved(chains, nft, saved)
    for family in sorted(sources.legacy):
        trouble.append(_all(family, "iptables-legacy has tables, and nothing tells of their changes"))
    return chains, trouble


def _put_saved(chains: Chains, nft: NftRuleset, saved: Chains) -> None:
    """Tables of iptables. Where JSON tells all, it stays, but has the words and the counters of the other."""
    listed = {label for label, _name in chains}
    for key, chain in saved.items():
        if key[0] not in listed:
            chains[key] = chain
        elif key not in chains:
            continue  # iptables prints base chains of a table that are not there
        elif key[0] in nft.extended:
            chains[key] = chain
        else:
            _name_alike(chains[key], chain)


def _name_alike(mine: StepChain, saved: StepChain) -> None:
    mine.counts = saved.counts
    if len(mine.rules) == len(saved.rules):
        mine.rules = [
            replace(rule, name=replace(rule.name, text=other.name.text))
            for rule, other in zip(mine.rules, saved.rules, strict=True)
        ]


def _path(chains: Chains, region: Region) -> tuple[StepChain, ...]:
    """The base chains that these forwarded packets meet, in their order: those of type nat only the first of
    a connection.
    """
    kinds = {"filter", "nat"} if region is Region.FIRST else {"filter"}
    on_it = [chain for chain in chains.values() if chain.hook in HOOKS and chain.kind in kinds]
    own = [chain for chain in on_it if chain.families]
    return tuple(sorted(own, key=lambda chain: (HOOKS.index(chain.hook), chain.priority)))


def _beside(obstacles: Iterable[Obstacle]) -> Iterator[tuple[View, int, Line]]:
    """What is kept for reasons that are no rules of netfilter."""
    for one in obstacles:
        for family in FAMILIES if one.family is None else (one.family,):
            line = Line((_met_by(one, family),), Cause(one.why, None))
            for view in (View.BETWEEN, View.AFTER):
                yield view, family, line


def _at_all_devices(sources: Sources, chains: Chains) -> Iterator[tuple[View, int, Line]]:
    for chain in chains.values():
        if chain.family in INGRESS_FAMILIES and chain.hook in {"ingress", "egress"}:
            yield from _at_devices(chain, sources.above)


def _met_by(obstacle: Obstacle, family: int) -> Box:
    said: dict[str, Any] = {"inside": _names(obstacle.inside), "outside": _names(obstacle.outside)}
    for name in ("source", "destination"):
        if network := getattr(obstacle, name):
            said[name] = Ranges(((int(network.network_address), int(network.broadcast_address)),))
    for name in ("protocol", "sport", "dport"):
        if (number := getattr(obstacle, name)) is not None:
            said[name] = Ranges.numbers([number])
    return replace(whole(family), **said)


def _names(name: str | None) -> Names:
    return ANY_INTERFACE if name is None else Names.of(name)


def _at_devices(chain: StepChain, above: Mapping[str, frozenset[str]]) -> Iterator[tuple[View, int, Line]]:
    """Chains at a device see frames, before or after all that rules of other hooks see."""
    if not chain.rules and not chain.drops:
        return
    names = {name for device in chain.devices for name in (device, *above.get(device, ()))}
    there = Names(frozenset(names)) if names else ANY_INTERFACE
    rule = chain.rules[0].name if chain.rules else chain.policy
    line = Cause(f"sees every packet at {chain.hook}", rule)
    for family in FAMILIES:
        if chain.hook == "ingress":
            yield View.BEFORE, family, Line((replace(whole(family), inside=there),), line)
        else:
            yield View.AFTER, family, Line((replace(whole(family), outside=there),), line)


def _all(family: int, why: str) -> tuple[View, int, Line]:
    return View.BEFORE, family, Line((whole(family),), Cause(why, None))


# ---- rules ----


def _classified(chains: Chains, mine: Rulings) -> Iterator[Classified]:
    met = _reached(chains, mine.path)
    guilty, in_all = _guilty(mine)
    at_nat = _reached(chains, (one for one in chains.values() if one.kind == "nat" and one.hook in HOOKS))
    for key, chain in chains.items():
        for rule in chain.rules:
            kind, why = kind_of(rule, chain, on_path=key in met, at_nat=key in at_nat)
            yield Classified(rule.name, kind, why, rule.name in guilty, rule.name in in_all)


def _guilty(mine: Rulings) -> tuple[set[RuleName | None], set[RuleName | None]]:
    """Rules that keep something, and those that keep all of each family that they keep something of."""
    some: set[tuple[RuleName | None, int]] = set()
    every: set[tuple[RuleName | None, int]] = set()
    for (_view, family), rulings in mine.rulings.items():
        passed = False
        for ruling in rulings:
            if ruling.keep is None:
                passed = True
                continue
            one = mine.keeps[ruling.keep].rule, family
            some.add(one)
            if not passed and any(is_all_carried(box) for box in ruling.boxes):
                every.add(one)
    guilty = {rule for rule, _family in some}
    return guilty, guilty - {rule for rule, _family in some - every}


def _reached(chains: Chains, bases: Iterable[StepChain]) -> set[tuple[str, str]]:
    """The chains that these lead to, with them."""
    found: set[tuple[str, str]] = set()
    ahead = [(chain.label, chain.name) for chain in bases]
    while ahead:
        key = ahead.pop()
        if key in found or key not in chains:
            continue
        found.add(key)
        ahead += [(key[0], step.text) for rule in chains[key].rules for step in rule.steps if step.calls]
    return found


# ---- passages ----


def _not_from(
    names: frozenset[str], passages: Passages, met: Iterable[tuple[Counted, Rows]]
) -> Iterator[tuple[Counted, Rows]]:
    """What passages meet that come in by other devices."""
    wanted = passages.not_from(names)
    for counted, rows in met:
        if len(left := rows[np.isin(rows, wanted)]):
            yield counted, left


def _within(passage: Passage, view: View, boxes: Boxes) -> bool:
    source, sport, destination, dport = passage.seen(view)
    return any(
        passage.protocol in box.protocol
        and int(source) in box.source
        and int(destination) in box.destination
        and sport in box.sport
        and dport in box.dport
        and passage.inside in box.inside
        and passage.outside in box.outside
        and passage.mark in box.connmark
        for box in boxes
    )
