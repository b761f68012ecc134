# SPDX-License-Identifier: Apache-2.0
"""Firewall rules made by chance, and what they are in nftables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import collapse_addresses, ip_network
from random import Random
from typing import Any

from clearway.lab import Lab

PORTS = (22, 53, 80, 443, 7000)  # somebody listens there
CLOSED = 9999
EF = 46
RULES = (5, 20)

Rule = Mapping[str, Any]


def make(seed: int, lab: Lab, source_ports: tuple[int, int]) -> dict[str, Any]:
    """A `firewall:` whose rules are about the hosts of the lab; nobody else's are needed to tell it again."""
    return _Maker(Random(seed), lab, source_ports).firewall()


class _Maker:
    def __init__(self, random: Random, lab: Lab, source_ports: tuple[int, int]) -> None:
        self._random = random
        self._source_ports = source_ports
        self._interfaces = ["client1", "client2", "server1"]
        client, server = lab.client, lab["server1"]
        self._prefixes = {
            4: [
                client.address(4),
                "10.1.0.0/16",
                "10.2.1.0/24",
                server.address(4),
                "10.0.0.0/8",
                "0.0.0.0/0",
            ],
            6: [client.address(6), "fd00:1::/32", "fd00:2:1::/64", server.address(6), "fd00::/8", "::/0"],
        }
        for family in (4, 6):
            self._prefixes[family] += [lab.vip(family), client.plan.gateway(family)]

    def firewall(self) -> dict[str, Any]:
        sets = {
            "hosts": self._mixed(),
            "others": self._mixed(),
            "open": self._ports(3),
            "none": [],
        }
        count = self._random.randint(*RULES)
        default = self._random.choice(["accept", "drop", "drop", "reject"])
        return {
            "default": default,
            "sets": sets,
            "rules": [{"name": f"rule{number}", **self._rule(default)} for number in range(count)],
        }

    def _mixed(self) -> list[str]:
        families = (self._random.sample(self._prefixes[family], 2) for family in (4, 6))
        return [prefix for some in families for prefix in some]

    def _ports(self, count: int) -> list[int | str]:
        some: list[int | str] = list(self._random.sample([*PORTS, CLOSED], count))
        if self._random.random() < 0.4:
            first = self._random.randint(1, 500)
            some.append(f"{first}-{first + self._random.randint(0, 7000)}")
        return some

    def _some(self, chance: float) -> bool:
        return self._random.random() < chance

    def _rule(self, default: str) -> dict[str, Any]:
        others = [action for action in ("accept", "drop", "reject") if action != default]
        rule: dict[str, Any] = {"action": self._random.choice([*others, *others, default])}
        rule["direction"] = self._random.choice(["any", "any", "through", "local"])
        rule |= self._protocol()
        families = self._random.choice([(4,), (6,), (4, 6)])
        for key in ("source", "destination"):
            if self._some(0.45):
                rule[key] = self._addresses(families)
        if self._some(0.2):
            rule["interface_in"] = self._random.sample(self._interfaces, self._random.randint(1, 2))
        if rule["direction"] != "local":
            if self._some(0.2):
                rule["interface_out"] = self._random.choice(self._interfaces)
            rule["after_translation"] = "source_ports" not in rule and self._some(0.25)
        if self._some(0.15):
            rule["dscp"] = self._random.choice(["ef", "cs0"])
        return rule

    def _addresses(self, families: Sequence[int]) -> object:
        if self._some(0.25):
            return self._random.choice(
                ["@hosts", "@others", ["@hosts", *self._random.sample(self._prefixes[4], 1)]]
            )
        if self._some(0.05):
            return "@none"
        return [self._random.choice(self._prefixes[family]) for family in families]

    def _protocol(self) -> dict[str, Any]:
        kind = self._random.choice(["none", "tcp", "tcp", "udp", "udp", "both", "icmp"])
        if kind == "none":
            return {}
        if kind == "icmp":
            asked = {"icmp_types": self._random.choice(["echo-request", ["echo-request", "time-exceeded"]])}
            return {"protocol": ["icmp", "icmpv6"], **(asked if self._some(0.6) else {})}
        rule: dict[str, Any] = {"protocol": ["tcp", "udp"] if kind == "both" else kind}
        if self._some(0.7):
            rule["destination_ports"] = (
                "@open" if self._some(0.2) else self._ports(self._random.randint(1, 3))
            )
        if self._some(0.2):
            first, last = self._source_ports
            middle = self._random.randint(first, last)
            rule["source_ports"] = self._random.choice([f"{first}-{middle}", f"{middle}-65535", middle])
        if kind == "tcp" and self._some(0.15):
            rule["tcp_flags"] = self._random.choice(["syn/fin,syn,rst,ack", "ack", "none/fin"])
        return rule


# ---- in nftables ----

TABLE = "cw_firewall"
ICMP_NAMES = {4: "icmp", 6: "icmpv6"}
WORDS = {4: "ip", 6: "ip6"}
SPARED = "icmpv6 type { 130-137, 143 } accept"  # what clearway's firewall does not judge


def nftables(firewall: Mapping[str, Any]) -> str:
    """The text for `nft -f`: the table that decides as `firewall` does."""
    lines = [f"table inet {TABLE} {{"]
    for hook in ("forward", "input"):
        lines += [f"chain {hook} {{", f"type filter hook {hook} priority filter;"]
        lines += ["ct state established,related accept", SPARED]
        for rule in firewall["rules"]:
            lines += _lines(rule, firewall["sets"], hook)
        lines += [*_act("", firewall["default"], None), "}"]
    return "\n".join([*lines, "}", ""])


def _lines(rule: Rule, sets: Mapping[str, Sequence[Any]], hook: str) -> Iterator[str]:
    wanted = {"any": hook, "through": "forward", "local": "input"}[rule["direction"]]
    if wanted != hook or (hook == "input" and "interface_out" in rule):
        return
    protocols = _several(rule.get("protocol", None)) or [None]
    for family in (4, 6):
        for protocol in protocols:
            match = _match(rule, sets, family, protocol)
            if match is not None:
                yield from _act(match, rule["action"], protocol)


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _match(rule: Rule, sets: Mapping[str, Sequence[Any]], family: int, protocol: str | None) -> str | None:
    """None: no packet of the family meets the rule."""
    parts: list[str | None] = [
        f"meta nfproto ipv{family}",
        "" if protocol is None else f"meta l4proto {protocol}",
        *_addresses(rule, sets, family),
        *_ports(rule, sets, protocol),
    ]
    if "icmp_types" in rule:
        mine = protocol == ICMP_NAMES[family]
        parts.append(f"{protocol} type {_listed(_several(rule['icmp_types']))}" if mine else None)
    for key, word in (("interface_in", "iifname"), ("interface_out", "oifname")):
        parts.append(f"{word} {_listed(_several(rule[key]))}" if key in rule else "")
    parts.append(f"{WORDS[family]} dscp {rule['dscp']}" if "dscp" in rule else "")
    if "tcp_flags" in rule:
        flags, _, mask = rule["tcp_flags"].partition("/")
        looked_at = (mask or flags).replace(",", "|")
        parts.append(f"tcp flags & ({looked_at}) == {'0x0' if flags == 'none' else flags}")
    return None if None in parts else " ".join(part for part in parts if part)


def _addresses(rule: Rule, sets: Mapping[str, Sequence[Any]], family: int) -> Iterator[str | None]:
    for key, word in (("source", "saddr"), ("destination", "daddr")):
        if key in rule:
            mine = _collapsed(_members(rule[key], sets), family)
            yield f"{WORDS[family]} {word} {_listed(mine)}" if mine else None


def _collapsed(prefixes: Iterator[str], family: int) -> list[Any]:
    """Prefixes of one family that overlap nowhere, as nft wants them."""
    mine: Any = (network for network in map(ip_network, prefixes) if network.version == family)
    return list(collapse_addresses(mine))


def _ports(rule: Rule, sets: Mapping[str, Sequence[Any]], protocol: str | None) -> Iterator[str | None]:
    for key, word in (("source_ports", "sport"), ("destination_ports", "dport")):
        if key in rule:
            ports = _merged(_members(rule[key], sets))
            yield f"{protocol} {word} {_listed(ports)}" if ports else None


def _members(asked: Any, sets: Mapping[str, Sequence[Any]]) -> Iterator[Any]:
    for one in _several(asked):
        if isinstance(one, str) and one.startswith("@"):
            yield from sets[one[1:]]
        else:
            yield one


def _merged(ports: Iterator[Any]) -> list[str]:
    """Ranges that overlap nowhere, as nft wants them."""
    covered: set[int] = set()
    for one in ports:
        first, _, last = str(one).partition("-")
        covered |= set(range(int(first), int(last or first) + 1))
    merged: list[list[int]] = []
    for port in sorted(covered):
        if merged and merged[-1][1] == port - 1:
            merged[-1][1] = port
        else:
            merged.append([port, port])
    return [f"{first}-{last}" for first, last in merged]


def _listed(items: Sequence[object]) -> str:
    return "{ " + ", ".join(map(str, items)) + " }"


def _act(match: str, action: str, protocol: str | None) -> list[str]:
    if action != "reject":
        return [f"{match} {action}"]
    lines = []
    if protocol in (None, "tcp"):
        lines.append(f"{match} meta l4proto tcp reject with tcp reset")
    if protocol in (None, "udp"):
        lines.append(f"{match} meta l4proto udp reject with icmpx port-unreachable")
    if protocol not in ("tcp", "udp"):
        lines.append(f"{match} reject with icmpx admin-prohibited")
    return lines
