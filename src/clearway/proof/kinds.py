# SPDX-License-Identifier: Apache-2.0
"""What a rule means by itself, wherever it stands, for `explain rules`."""

from __future__ import annotations

from clearway.importer.box import FAMILIES, common

from .region import start, varying
from .result import Kind
from .steps import Act, Step, StepChain, StepRule

AT_DEVICES = frozenset({"ingress", "egress"})


def kind_of(rule: StepRule, chain: StepChain, *, on_path: bool, at_nat: bool) -> tuple[Kind, str]:
    """The kind and, in a few words, why. `on_path`: forwarded packets may come there, `at_nat`: the first
    of a connection may.
    """
    if chain.hook in AT_DEVICES:
        return Kind.OPAQUE, "sees frames at a device, not packets of a connection"
    if on_path:
        return _on_path(rule)
    if at_nat:
        return Kind.RESTORABLE, "meets the first packet of a connection only, which is Linux'"
    if chain.family in {"arp", "bridge", "netdev"}:
        return Kind.ELSEWHERE, f"{chain.family}: packets that are routed do not come there"
    where = f"hook {chain.hook}" if chain.hook else "a chain that no hook of theirs leads to"
    return Kind.ELSEWHERE, f"{where}: packets that are forwarded do not come there"


def _on_path(rule: StepRule) -> tuple[Kind, str]:
    for step in rule.steps:
        if step.act is Act.OPAQUE:
            return Kind.OPAQUE, step.text
    asked = {id(step.boxes): step for step in rule.steps if step.act not in {Act.CONNMARK, Act.SAVE}}
    for step in asked.values():  # what is counted and then accepted is asked once
        if why := _doubt(step):
            return Kind.OPAQUE, why
    if any(step.act is Act.COUNT for step in rule.steps):
        return Kind.RESTORABLE, "counts, which is made up for"
    if rule.restores:
        return Kind.RESTORABLE, rule.restores[0]
    return Kind.FLOW_INVARIANT, "decides the same for every packet of a flow"


def _doubt(step: Step) -> str:
    """Why the step is not the same for all packets of a flow."""
    for family in FAMILIES:
        there = start("forward", 0, family)
        if met := common(step.boxes, (there,)):
            what = varying(met, there)
            return step.reasons[0] if step.reasons else f"asks for {what}" if what else ""
    return ""
