# SPDX-License-Identifier: Apache-2.0
"""What must hold within a firewall rule, and between rules and sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .errors import Problem
from .firewall_values import SetName
from .prefixes import Prefixes
from .protocols import ICMP, ICMPV6, TCP, TYPES_OF, UDP

if TYPE_CHECKING:
    from .firewall import Firewall, FirewallRule


def rule_problems(rule: FirewallRule) -> list[Problem]:
    """What is wrong within one rule; places are relative to it."""
    return [*_protocol_problems(rule), *_family_problems(rule), *_direction_problems(rule)]


def _protocol_problems(rule: FirewallRule) -> Iterator[Problem]:
    protocols = set(rule.protocol or ())
    for key in ("source_ports", "destination_ports"):
        if getattr(rule, key) is not None and not (protocols and protocols <= {TCP, UDP}):
            what = "only TCP and UDP are known to have ports"
            yield Problem((key,), what, "add protocol: tcp, protocol: udp or protocol: [tcp, udp]")
    if rule.tcp_flags is not None and protocols != {TCP}:
        yield Problem(("tcp_flags",), "only TCP has these flags", "add protocol: tcp")
    if rule.icmp_types is None:
        return
    if not (protocols and protocols <= {ICMP, ICMPV6}):
        what = "only ICMP and ICMPv6 have these types"
        yield Problem(("icmp_types",), what, "add protocol: icmp, protocol: icmpv6 or both")
        return
    for kind in rule.icmp_types:
        if isinstance(kind, int) and len(protocols) > 1:
            what = f"{kind} means one thing in ICMP and another in ICMPv6"
            yield Problem(("icmp_types",), what, "use a name, or a rule for each")
        elif isinstance(kind, str) and not any(kind in TYPES_OF[protocol] for protocol in protocols):
            other = "icmpv6" if protocols == {ICMP} else "icmp"
            yield Problem(("icmp_types",), f"{kind} is a type of {other} only", f"add protocol: {other}")


def _family_problems(rule: FirewallRule) -> Iterator[Problem]:
    """Rules that no packet can meet."""
    families = {4, 6}
    for key in ("source", "destination"):
        named = [one for one in getattr(rule, key) or () if not isinstance(one, SetName)]
        if named and len(named) == len(getattr(rule, key)):
            families &= {one.version for one in named}
    if not families:
        what = "source and destination are of different families, so no packet meets the rule"
        yield Problem(("destination",), what, "use addresses of one family")
    protocols = set(rule.protocol or ())
    wanted = {4: ICMP, 6: ICMPV6}
    able = any(wanted[family] in protocols for family in families)
    if protocols and protocols <= {ICMP, ICMPV6} and families and not able:
        fix = f"use protocol: {'icmpv6' if families == {6} else 'icmp'}"
        yield Problem(("protocol",), "these addresses are of the other family", fix)


def _direction_problems(rule: FirewallRule) -> Iterator[Problem]:
    local = rule.direction == "local"
    if local and rule.interface_out is not None:
        what = "what is for this machine goes out by no interface"
        yield Problem(("interface_out",), what, "remove it, or set direction: through")
    if not rule.after_translation:
        return
    if local:
        what = "what is for this machine is not translated"
        yield Problem(("after_translation",), what, "remove it, or set direction: through")
    if rule.source_ports is not None:
        what = "the source port after translation is chosen when the rules have decided"
        yield Problem(("source_ports",), what, "remove it, or after_translation")


def firewall_problems(firewall: Firewall) -> list[Problem]:
    """What is wrong between rules and sets; places are relative to the firewall."""
    return [*_name_problems(firewall), *_set_problems(firewall)]


def _name_problems(firewall: Firewall) -> Iterator[Problem]:
    first: set[str] = set()
    for index, rule in enumerate(firewall.rules):
        if rule.name in first:
            what = f"there is already a rule {rule.name}"
            yield Problem(("rules", index, "name"), what, "give every one a name of its own")
        first.add(rule.name)


def _set_problems(firewall: Firewall) -> Iterator[Problem]:
    for index, rule in enumerate(firewall.rules):
        for key in ("source", "destination", "source_ports", "destination_ports"):
            for reference in _references(getattr(rule, key) or ()):
                members = firewall.sets.get(reference.name)
                if members is None:
                    known = ", ".join(sorted(firewall.sets)) or "none"
                    what = f"there is no set {reference.name}"
                    yield Problem(("rules", index, key), what, f"add it to sets; there are: {known}")
                elif members and isinstance(members, Prefixes) == key.endswith("_ports"):
                    kind = "prefixes" if isinstance(members, Prefixes) else "ports"
                    what = f"set {reference.name} is one of {kind}"
                    yield Problem(("rules", index, key), what, "refer to a set of the other kind")


def _references(values: Iterable[object]) -> Iterator[SetName]:
    return (value for value in values if isinstance(value, SetName))
