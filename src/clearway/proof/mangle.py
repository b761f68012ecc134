# SPDX-License-Identifier: Apache-2.0
"""What rules change in packets, and what comes of several changes: the type of service (or traffic class, or
DSCP) and the TTL (or hop limit), as far as that is the same for all packets that meet the rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clearway.importer.box import Box, Boxes, common, whole
from clearway.importer.words import dscps

from .result import Mangle, RuleName

BYTE_MAX = 255
DSCP_SHIFT, ECN = 2, 3
FIELDS = {
    ("ip", "dscp"): "dscp",
    ("ip6", "dscp"): "dscp",
    ("ip", "ttl"): "hops",
    ("ip6", "hoplimit"): "hops",
}


@dataclass(frozen=True, slots=True)
class FieldChange:
    """Of one field. `hops`: "" for the type of service, all of which but `keep` goes, and the number is put
    over it; otherwise what becomes of the TTL: "set" to the number, "inc" or "dec" by it.
    """

    hops: str
    number: int
    keep: int = 0

    def mangle(self, *, early: bool) -> Mangle:
        """`early`: before routing, and before forwarding lowers the TTL (ip_forward(), ip6_forward())."""
        less = 1 if early else 0
        match self.hops:
            case "set":
                return Mangle(hops_add=self.number - less, hops_keep=0)
            case "inc":
                return Mangle(hops_add=self.number - 1, hops_most=BYTE_MAX - less)
            case "dec":
                return Mangle(hops_add=-self.number - 1)
        return Mangle(tos_keep=self.keep, tos_flip=self.number, early=early)


def change_of(key: Mapping[str, Any], value: Any) -> FieldChange | None:
    """Of nft's `mangle`; None when it is nothing of that kind. InexactError for values that are no DSCP."""
    payload = key.get("payload", {})
    match FIELDS.get((payload.get("protocol"), payload.get("field"))):
        case "dscp" if isinstance(value, int | str):
            [(number, _last)] = dscps(str(value)).spans
            return FieldChange("", number << DSCP_SHIFT, ECN)
        case "hops" if isinstance(value, int) and 0 <= value <= BYTE_MAX:
            return FieldChange("set", value)
    return None


def change_of_target(target: str, words: Sequence[str]) -> FieldChange | None:
    """The same of a target of iptables, with its options (xt_DSCP.c, xt_HL.c)."""
    if len(words) != 2:
        return None
    option, value = words
    first, _slash, mask = value.partition("/")
    number = int(first, 0)
    match target, option:
        case "DSCP", "--set-dscp":
            return FieldChange("", number << DSCP_SHIFT, ECN)
        case "TOS", "--set-tos":
            return FieldChange("", number, BYTE_MAX & ~(int(mask, 0) if mask else BYTE_MAX))
        case "TTL" | "HL", _ if option.removeprefix(f"--{target.lower()}-") in {"set", "inc", "dec"}:
            return FieldChange(option.rpartition("-")[2], number)
    return None


def both(first: Mangle, then: Mangle) -> Mangle | None:
    """One change after the other; None where that is no such change."""
    if first.changes_hops and then.changes_hops:
        return None
    if first.changes_tos and then.changes_tos and first.early != then.early:
        return None
    hops = first if first.changes_hops else then
    return replace(
        hops,
        tos_keep=first.tos_keep & then.tos_keep,
        tos_flip=(first.tos_flip & then.tos_keep) ^ then.tos_flip,
        early=first.early or then.early,
    )


# ---- which packets ----


@dataclass(frozen=True, slots=True)
class Effect:
    """Packets in the boxes are changed like this, for the sake of the rule."""

    boxes: Boxes
    mangle: Mangle
    rule: RuleName


def effect(boxes: Boxes, mangle: Mangle, rule: RuleName) -> Effect:
    """`boxes`: of their fields those count that are the same in all packets of a flow."""
    return Effect(tuple(dict.fromkeys(map(_flow, boxes))), mangle, rule)


def _flow(box: Box) -> Box:
    return replace(
        whole(box.family),
        source=box.source,
        destination=box.destination,
        protocol=box.protocol,
        inside=box.inside,
        outside=box.outside,
        sport=box.sport,
        dport=box.dport,
        connmark=box.connmark,
    )


def one_after_the_other(first: Sequence[Effect], then: Sequence[Effect]) -> tuple[list[Effect], list[Effect]]:
    """What comes of two lists of effects, first match first, of which each packet meets one and then the
    other; and of those in `then` what cannot be said so.
    """
    found: list[Effect] = []
    unsaid: list[Effect] = []
    for mine in first:
        for one, known in _met(mine, then):
            (found if known else unsaid).append(one)
        found.append(mine)
    return [*found, *then], unsaid


def _met(mine: Effect, then: Sequence[Effect]) -> Iterator[tuple[Effect, bool]]:
    for other in then:
        if boxes := common(mine.boxes, other.boxes):
            mangle = both(mine.mangle, other.mangle)
            yield Effect(boxes, mangle or other.mangle, other.rule), mangle is not None
