# SPDX-License-Identifier: Apache-2.0
"""What clearway.proof keeps in Linux, asked of its classifiers in the kernel."""

from __future__ import annotations

from random import Random

import numpy as np

from bench.classifier.lookups import NO_RULE, Lookups
from clearway.proof import Keep, Passage, Proof, View, classifiers, prove
from clearway.proof.classes import Classes
from tests.classifier.reference import Packet
from tests.unit.proof_reference import INTERFACES, as_nft, random_passage, random_ruleset

RULESETS = 40
PASSAGES = 50


def packet(passage: Passage, view: View, classes: Classes) -> Packet:
    source, sport, destination, dport = passage.seen(view)
    inside, outside = INTERFACES[passage.inside], INTERFACES[passage.outside]
    [mark] = [number for number, part in enumerate(classes.parts) if passage.mark in part]
    return Packet(
        source, destination, passage.protocol, sport, dport, inside=inside, outside=outside, mark=mark
    )


def asked(lookups: Lookups, proof: Proof, passages: list[Passage]) -> list[Keep | None]:
    """What keeps each of them, as the kernel finds it: the first view that knows a reason."""
    found: list[Keep | None] = [None] * len(passages)
    compiled = classifiers(proof, INTERFACES)
    for view in View:
        if (view, 4) not in compiled.classifiers:
            continue
        lookups.put(compiled.classifiers[view, 4])
        words = np.array([packet(one, view, compiled.classes).words() for one in passages], np.uint64)
        rules, told = lookups.answers(words)
        for place, (rule, number) in enumerate(zip(rules.tolist(), told.tolist(), strict=True)):
            if found[place] is None and rule != NO_RULE and number:
                found[place] = compiled.keeps[number - 1]
    return found


def test_classifiers_keep_what_the_proof_keeps(lookups: Lookups) -> None:
    for seed in range(RULESETS):
        random = Random(seed)
        proof = prove(as_nft(random_ruleset(random, exact=seed % 2 == 0, iptables=False)))
        passages = [random_passage(random) for _ in range(PASSAGES)]
        assert asked(lookups, proof, passages) == [proof.why_kept(one) for one in passages]
