# SPDX-License-Identifier: Apache-2.0
"""What a ruleset and what an imported firewall do with one packet, each followed step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from clearway.importer.box import FIELDS, STATES, Box
from clearway.importer.ruleset import Branch, Chain, Rule, Ruleset, Verb
from clearway.model import Firewall, FirewallRule, IPAddress, IPNetwork, PortRange, SetName
from clearway.model.protocols import ICMP, ICMPV6, TCP, TYPES_OF, UDP


@dataclass(frozen=True)
class Packet:
    """The first of a connection. Layer 4 begins with two ports, or with ICMP type and code."""

    source: IPAddress
    destination: IPAddress
    protocol: int = TCP
    sport: int = 40000
    dport: int = 80
    icmp: int = 8
    code: int = 0
    flags: int = 0x02
    dscp: int = 0
    hops: int = 64
    inside: str = "eth0"
    outside: str = ""
    to: int = 2
    connmark: int = 0
    mark: int = 0

    @property
    def family(self) -> int:
        return self.source.version

    def values(self) -> dict[str, int | str]:
        """By the fields of boxes."""
        own: dict[str, int | str] = {name: getattr(self, name) for name in FIELDS if name != "state"}
        addresses = {"source": int(self.source), "destination": int(self.destination)}
        return {**own, **addresses, "state": STATES["new"]}


def packet(source: str, destination: str, **values: Any) -> Packet:
    return Packet(ip_address(source), ip_address(destination), **values)


def within(one: Packet, boxes: Iterable[Box]) -> bool:
    values = one.values()
    return any(
        box.family == one.family and all(values[name] in getattr(box, name) for name in FIELDS)
        for box in boxes
    )


# ---- the ruleset ----


class EndedError(Exception):
    """A verdict was reached."""

    def __init__(self, verb: Verb) -> None:
        self.verb = verb


@dataclass
class Followed:
    """Goes through the chains as the kernel does. `luck` says whether a condition that is not known is met;
    `met` are the rules that it went through."""

    ruleset: Ruleset
    one: Packet
    luck: Callable[[Rule], bool]
    met: list[Rule] = field(default_factory=list)

    def verdict(self, hook: str) -> Verb:
        for chain in self.at(hook):
            try:
                self._chain(chain)
                verb = chain.policy
            except EndedError as ended:
                verb = ended.verb
            if verb is not Verb.ACCEPT:
                return verb
        return Verb.ACCEPT

    def at(self, hook: str) -> list[Chain]:
        chains = [one for one in self.ruleset.chains.values() if one.hook == hook and one.kind != "nat"]
        own = [one for one in chains if self.one.family in one.families]
        return sorted(own, key=lambda chain: chain.priority)

    def _chain(self, chain: Chain) -> bool:
        """Whether the chain that called this one goes on behind its call."""
        for rule in chain.rules:
            for branch in rule.branches:
                if not within(self.one, branch.boxes):
                    continue
                self.met.append(rule)
                if branch.reasons and not self.luck(rule):
                    continue
                if branch.verb is Verb.RETURN or (branch.verb is Verb.GOTO and self._call(chain, branch)):
                    return True
                if branch.verb is Verb.JUMP:
                    self._call(chain, branch)
                elif branch.verb not in {Verb.LOG, Verb.NOTHING}:
                    raise EndedError(branch.verb)
                break
        return True

    def _call(self, chain: Chain, branch: Branch) -> bool:
        return self._chain(self.ruleset.chains[chain.table, branch.target])


# ---- the firewall ----


def judged(firewall: Firewall, one: Packet, hook: str) -> str:
    """The action of the first rule that the packet meets."""
    for rule in firewall.rules:
        if meets(firewall, rule, one, hook):
            return rule.action
    return firewall.default


def meets(firewall: Firewall, rule: FirewallRule, one: Packet, hook: str) -> bool:
    ported = one.protocol in {TCP, UDP}
    return (
        rule.direction in {"any", {"input": "local", "forward": "through"}[hook]}
        and (rule.protocol is None or one.protocol in rule.protocol)
        and _among(firewall, rule.source, one.source)
        and _among(firewall, rule.destination, one.destination)
        and (rule.source_ports is None or (ported and _in_ports(firewall, rule.source_ports, one.sport)))
        and (
            rule.destination_ports is None
            or (ported and _in_ports(firewall, rule.destination_ports, one.dport))
        )
        and (rule.icmp_types is None or _of_type(rule, one))
        and (rule.tcp_flags is None or one.flags & rule.tcp_flags.mask == rule.tcp_flags.set)
        and (rule.dscp is None or one.dscp in rule.dscp)
        and (rule.interface_in is None or one.inside in rule.interface_in)
        and (rule.interface_out is None or one.outside in rule.interface_out)
    )


def _among(firewall: Firewall, asked: tuple[IPNetwork | SetName, ...] | None, address: IPAddress) -> bool:
    if asked is None:
        return True
    networks = [
        n for item in asked for n in (firewall.prefixes(item.name) if isinstance(item, SetName) else (item,))
    ]
    return any(address in network for network in networks if network.version == address.version)


def _in_ports(firewall: Firewall, asked: tuple[PortRange | SetName, ...], port: int) -> bool:
    ranges = [
        n for item in asked for n in (firewall.ports(item.name) if isinstance(item, SetName) else (item,))
    ]
    return any(one.first <= port <= one.last for one in ranges)


def _of_type(rule: FirewallRule, one: Packet) -> bool:
    """A rule with types is for the ICMP of the packet's family."""
    own = {4: ICMP, 6: ICMPV6}[one.family]
    numbers = [TYPES_OF[own].get(kind) if isinstance(kind, str) else kind for kind in rule.icmp_types or ()]
    return one.protocol == own and own in (rule.protocol or ()) and one.icmp in numbers
