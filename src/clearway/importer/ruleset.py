# SPDX-License-Identifier: Apache-2.0
"""A ruleset as it was read: chains of rules in the boxes of box.py, whatever it was written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from .box import FAMILIES, Boxes


class Verb(StrEnum):
    """What a rule does with a packet that it matches."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"
    LOG = "log"  # and goes on with the next rule
    NOTHING = "nothing"  # for the verdict: counters, marks
    UNKNOWN = "unknown"  # decides, but not here: queue


ENDS = frozenset({Verb.ACCEPT, Verb.DROP, Verb.REJECT, Verb.UNKNOWN})


@dataclass(frozen=True, slots=True)
class Branch:
    """Packets in `boxes` get the verb: all or, when there are `reasons`, some. Those are conditions that
    cannot be said in boxes. `target` is the chain to go to, or how to reject."""

    boxes: Boxes
    verb: Verb
    target: str = ""
    log: bool = False
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A line. A verdict map has several branches, of which a packet meets one at most."""

    line: int
    text: str
    branches: tuple[Branch, ...]
    comment: str = ""
    side_effect: str = ""
    """What it does besides, to packets or to the machine's state."""
    remark: str = ""
    """What it does otherwise than the rule that comes of it."""


@dataclass(slots=True)
class Chain:
    """`hook` is empty for chains that are only jumped to."""

    name: str
    table: str
    line: int
    text: str
    families: tuple[int, ...] = FAMILIES
    kind: str = "filter"
    hook: str = ""
    priority: int = 0
    policy: Verb = Verb.ACCEPT
    rules: list[Rule] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Chains by table and name, in the order of the text."""

    chains: Mapping[tuple[str, str], Chain]
    families: tuple[int, ...] = FAMILIES
    """Those that the text speaks about."""
