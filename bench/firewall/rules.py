# SPDX-License-Identifier: Apache-2.0
"""The same rules for clearway, for nftables and for iptables: those of bench/classifier, all of which accept,
and a last one that accepts the UDP of certain clients. What meets none is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

from bench.classifier.rules import UDP, conditions
from clearway.compiler.classifier import Condition
from clearway.model import IPNetwork, PortRange

FAMILIES = (4, 6)
PROTOCOLS = {6: "tcp", 17: "udp"}
KEYWORDS = {4: "ip", 6: "ip6"}
TABLE = "bench"
CLIENTS: Mapping[int, IPNetwork] = {4: ip_network("198.18.0.0/15"), 6: ip_network("2001:2::/48")}
"""Whom the last rule is for, and no other."""


def ruleset(count: int, family: int) -> list[Condition]:
    """The same for the same arguments."""
    last = Condition(source=(CLIENTS[family],), protocols=(UDP,))
    return [*conditions(count - 1, family), last]


def firewall(rules: Iterable[Condition]) -> dict[str, Any]:
    """As a configuration has it."""
    return {"default": "drop", "rules": [_rule(number, rule) for number, rule in enumerate(rules)]}


def _rule(number: int, rule: Condition) -> dict[str, Any]:
    source, destination, protocol, ports = _parts(rule)
    keys = {
        "source": source and str(source),
        "destination": destination and str(destination),
        "destination_ports": ports and str(ports),
    }
    asked = {key: value for key, value in keys.items() if value is not None}
    return {"name": f"rule-{number}", "action": "accept", "protocol": protocol, **asked}


def nftables(rules: Sequence[Condition], family: int) -> str:
    """A table for `nft -f`, with a chain of rules one after the other."""
    lines = "\n".join(_nft_rule(rule, KEYWORDS[family]) for rule in rules)
    return (
        f"table {KEYWORDS[family]} {TABLE} {{\n  chain forward {{\n"
        "    type filter hook forward priority filter; policy drop;\n"
        f"    ct state established,related accept\n{lines}\n  }}\n}}\n"
    )


def _nft_rule(rule: Condition, keyword: str) -> str:
    source, destination, protocol, ports = _parts(rule)
    words = [f"{keyword} saddr {source}"] if source is not None else []
    words += [f"{keyword} daddr {destination}"] if destination is not None else []
    words += [f"{protocol} dport {ports}"] if ports is not None else [f"meta l4proto {protocol}"]
    return " ".join([*words, "accept"])


def iptables(rules: Sequence[Condition]) -> str:
    """For `iptables-restore` or, of IPv6, `ip6tables-restore`."""
    lines = "\n".join(_iptables_rule(rule) for rule in rules)
    first = "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    return f"*filter\n:FORWARD DROP [0:0]\n{first}\n{lines}\nCOMMIT\n"


def _iptables_rule(rule: Condition) -> str:
    source, destination, protocol, ports = _parts(rule)
    words = ["-A FORWARD", f"-p {protocol}"]
    words += [f"-s {source}"] if source is not None else []
    words += [f"-d {destination}"] if destination is not None else []
    words += [f"-m {protocol} --dport {ports.first}:{ports.last}"] if ports is not None else []
    return " ".join([*words, "-j ACCEPT"])


def _parts(rule: Condition) -> tuple[IPNetwork | None, IPNetwork | None, str, PortRange | None]:
    """Source, destination, protocol and destination ports: these rules ask for one of each, or for none."""
    source, destination, ports = rule.source, rule.destination, rule.dport
    assert not isinstance(source, str) and not isinstance(destination, str) and not isinstance(ports, str)
    assert rule.protocols is not None
    return (
        source[0] if source else None,
        destination[0] if destination else None,
        PROTOCOLS[rule.protocols[0]],
        ports[0] if ports else None,
    )
