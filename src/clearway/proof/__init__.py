# SPDX-License-Identifier: Apache-2.0
"""For which established, forwarded connections a path around netfilter gives what Linux gives. Rulesets in,
what has to stay in Linux out.

    nft.py, iptables.py -> steps.py: rules as steps, in the boxes of importer/box.py
    settled.py: what is known of fragments; marks.py: what rules make of marks, and ask of them
    back.py: rules that look for a route to the sender; mangle.py: what rules change in packets
    region.py: what is carried at all, and what a chain at each hook sees of it
    walk.py: a base chain as lines, kept or passing; lines.py: those of several chains as one list
    marking.py: marks from chain to chain; classes.py: those that need not be told apart
    proving.py: all of it, as a Proof; kinds.py: every rule by itself
    compiled.py: what is kept, as classifiers; counted.py, passages.py: the counters to make up for

What is carried at all is said in region.py. What is not proven is kept: a rule that is not known here keeps
all that it may concern. Needs no kernel.
"""

from .compiled import Compiled, classifiers
from .passages import Addresses, Passages, Side
from .proving import Proof, Ruling, Rulings, prove, prove_claimed
from .region import Region
from .result import (
    Back,
    Classified,
    Counted,
    Keep,
    Kind,
    Mangle,
    Obstacle,
    Passage,
    RuleName,
    Sources,
    View,
)

__all__ = [
    "Addresses",
    "Back",
    "Classified",
    "Compiled",
    "Counted",
    "Keep",
    "Kind",
    "Mangle",
    "Obstacle",
    "Passage",
    "Passages",
    "Proof",
    "Region",
    "RuleName",
    "Ruling",
    "Rulings",
    "Side",
    "Sources",
    "View",
    "classifiers",
    "prove",
    "prove_claimed",
]
