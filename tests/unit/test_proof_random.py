# SPDX-License-Identifier: Apache-2.0
"""Random rulesets: what clearway.proof does not keep in Linux gets the same for every packet of it when the
rules are followed one by one; and classifiers say what the proof says.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.proof import (
    Mangle,
    Passage,
    Proof,
    Region,
    Rulings,
    View,
    classifiers,
    prove,
    prove_claimed,
    walk,
)
from clearway.proof.classes import Classes
from clearway.proof.compiled import (
    back_question,
    classes_of,
    mangle_question,
    mangle_rows,
    marks_question,
    question,
)
from clearway.proof.marks import UNKNOWN
from clearway.proof.steps import Steps
from tests.classifier.reference import Packet, first_rule
from tests.unit.proof_reference import (
    INTERFACES,
    NO_WAY,
    STRICT,
    TABLES,
    Ruleset,
    accepted,
    as_iptables,
    as_nft,
    followed,
    random_passage,
    random_ruleset,
)

PASSAGES = 12
MANY = (walk.UNCERTAIN, UNKNOWN, "asks for a route to the sender by a mark")
"""Why more is kept than has to be: packets are marked in many ways, or a rule asks that need not be asked."""
BOTH = pytest.mark.parametrize("iptables", [False, True], ids=["nft", "iptables"])


def handles(ruleset: Ruleset, proof: Proof, passage: Passage, *, iptables: bool) -> list[tuple[str, int]]:
    """What the proof counts, in the words of the reference."""
    names = [counted.rule for counted in proof.traversed(passage)]
    if not iptables:
        return [("", name.handle or 0) for name in names]
    bases = {TABLES[one.hook, one.priority]: one for one in ruleset.values() if one.hook is not None}
    found = []
    for name in names:
        base = bases[name.table]
        chain = ruleset.get(name.chain, base)
        found.append((base.name, chain.rules[name.position - 1].handle if name.position else 0))
    return found


def check(random: Random, *, exact: bool, iptables: bool) -> None:
    """Where NAT makes it unclear which rule has marked a packet, more is kept than has to be."""
    nat = random.random() < 0.5
    ruleset = random_ruleset(random, exact=exact, iptables=iptables, marks=not (exact and nat))
    proof = prove((as_iptables if iptables else as_nft)(ruleset, translates=nat))
    for passage in [random_passage(random, translated=nat) for _ in range(PASSAGES)]:
        linux, kept = followed(ruleset, passage), proof.why_kept(passage)
        required = proof.back(passage)
        for back in range(required or NO_WAY, STRICT):  # with less of a way back it is not carried
            assert kept or followed(ruleset, passage, back) == linux, f"{passage} has to lead back"
        if linux is None:
            assert kept is not None, f"{passage} has to be Linux'"
        elif kept is None:
            counted = [one if iptables else ("", one[1]) for one in linux.counted if iptables or one[1]]
            if linux.counted or all(linux.leaves.values()):
                assert handles(ruleset, proof, passage, iptables=iptables) == counted
            if any(linux.leaves.values()):
                assert marks(proof, passage) == (linux.routed, linux.left)
            mangle = proof.mangle(passage)
            for (tos, ttl), left in linux.leaves.items():
                is_left = mangle.tos(tos), mangle.hops(ttl)
                assert (is_left if is_left[1] > 0 else None) == left
        elif exact and (nat or not kept.why.endswith(MANY)):
            raise AssertionError(f"{passage} is kept in vain: {kept.why} {kept.rule}")
        assert classified(proof, passage) == kept
        assert led(proof, passage) == (required or NO_WAY)
        assert kept or changed(proof, passage) == proof.mangle(passage)


def marks(proof: Proof, passage: Passage) -> tuple[int, int]:
    """Of its packets where they are routed, and where they leave: by the conditions of their classifiers."""
    classes, found = classes_of(proof), []
    for marking in (proof.routed[4], proof.left[4]):
        asked, told = marks_question(marking, 4, INTERFACES, classes)
        first = first_rule(asked.conditions, asked.sets, packet_of(passage, marking.view, classes))
        assert first is not None
        found.append(told[asked.told[first]].of(passage.mark))
    return found[0], found[1]


def packet_of(passage: Passage, view: View, classes: Classes) -> Packet:
    source, sport, destination, dport = passage.seen(view)
    inside, outside = INTERFACES[passage.inside], INTERFACES[passage.outside]
    [mark] = [number for number, part in enumerate(classes.parts) if passage.mark in part]
    return Packet(
        source, destination, passage.protocol, sport, dport, inside=inside, outside=outside, mark=mark
    )


def classified(proof: Rulings, passage: Passage) -> object:
    """What the conditions say that classifiers are made of."""
    for view in View:
        if (view, 4) not in proof.rulings:
            continue
        asked = question(proof, (view, 4), INTERFACES)
        packet = packet_of(passage, view, classes_of(proof))
        found = first_rule(asked.conditions, asked.sets, packet)
        if found is not None and asked.told[found]:
            return proof.keeps[asked.told[found] - 1]
    return None


def changed(proof: Proof, passage: Passage) -> Mangle:
    """What the same say of changes."""
    classes = classes_of(proof)
    for view in View:
        if (view, 4) in proof.mangles:
            asked = mangle_question(proof, (view, 4), INTERFACES, classes)
            found = first_rule(asked.conditions, asked.sets, packet_of(passage, view, classes))
            return mangle_rows(proof)[0 if found is None else asked.told[found]]
    return Mangle()


def led(proof: Proof, passage: Passage) -> int:
    """The same of the way back that is required."""
    if 4 not in proof.backs:
        return NO_WAY
    classes = classes_of(proof)
    asked = back_question(proof, 4, INTERFACES, classes)
    found = first_rule(asked.conditions, asked.sets, packet_of(passage, View.BEFORE, classes))
    return NO_WAY if found is None else asked.told[found]


@BOTH
@settings(max_examples=150)
@given(random=st.randoms(use_true_random=False))
def test_what_is_not_kept_is_as_in_linux(random: Random, iptables: bool) -> None:
    check(random, exact=False, iptables=iptables)


@BOTH
@settings(max_examples=150)
@given(random=st.randoms(use_true_random=False))
def test_nothing_is_kept_in_vain_where_rules_are_plain(random: Random, iptables: bool) -> None:
    check(random, exact=True, iptables=iptables)


@BOTH
@pytest.mark.parametrize("region", [Region.FIRST, Region.LATER])
@settings(max_examples=100)
@given(random=st.randoms(use_true_random=False))
def test_of_what_is_claimed_linux_lets_pass_what_is_not_kept(
    random: Random, region: Region, iptables: bool
) -> None:
    exact = random.random() < 0.5
    ruleset = random_ruleset(random, exact=exact, iptables=iptables)
    proof = prove(as_iptables(ruleset) if iptables else as_nft(ruleset))
    rulings = prove_claimed(proof, region)
    for passage in [random_passage(random) for _ in range(PASSAGES)]:
        passes, kept = accepted(ruleset, passage, region), rulings.why_kept(passage)
        if not passes:
            assert kept is not None, f"{passage} has to be Linux'"
        elif exact and region is Region.FIRST:  # packets that follow differ in their flags
            plainly = kept is not None and kept.why != "asks for a route to the sender"
            assert not plainly, f"{passage} is kept in vain: {kept}"
        assert classified(rulings, passage) == kept


def test_classifiers_are_made_of_all_that_is_kept() -> None:
    for seed in range(30):
        ruleset = random_ruleset(Random(seed), exact=False, iptables=False)
        proof = prove(as_nft(ruleset))
        assert set(classifiers(proof, INTERFACES).classifiers) == set(proof.rulings)


# ---- a reference that finds nothing is worth nothing ----


def broken(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    match what:
        case "what differs from packet to packet":
            monkeypatch.setattr(walk, "varying", lambda _boxes, _start: "")
        case "opaque statements":
            monkeypatch.setattr(Steps, "opaque", lambda _self, _why: None)
        case "conditions in no box":
            monkeypatch.setattr(Steps, "doubt", lambda _self, _why: None)
        case "drops":
            monkeypatch.setattr(walk.Walk, "_decide", lambda *_all: None)
        case "returns":
            monkeypatch.setattr(walk._Way, "leave", lambda _self, _boxes, certain: None)
        case "where NAT is":
            monkeypatch.setattr("clearway.proof.walk.views_of", lambda _hook, _at, _kind: (View.BEFORE,))
        case "the way back":
            monkeypatch.setattr(Steps, "ask_back", lambda self, _back, exists, marked: exists or self.never())
        case "what is changed":
            monkeypatch.setattr(Proof, "mangle", lambda _self, _passage: Mangle())
            monkeypatch.setattr("tests.unit.test_proof_random.changed", lambda _proof, _passage: Mangle())
        case "how a packet leaves":
            monkeypatch.setattr("clearway.proof.walk.widened", lambda boxes, _start: boxes)


@pytest.mark.parametrize(
    "what",
    [
        "what differs from packet to packet",
        "opaque statements",
        "conditions in no box",
        "drops",
        "returns",
        "where NAT is",
        "the way back",
        "what is changed",
        "how a packet leaves",
    ],
)
def test_reference_finds_what_is_broken(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    broken(monkeypatch, what)
    with pytest.raises(AssertionError):
        for seed in range(400):
            check(Random(seed), exact=seed % 2 == 0, iptables=False)
