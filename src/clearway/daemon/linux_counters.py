# SPDX-License-Identifier: Apache-2.0
"""Where Linux' rules count, and what each has counted: rules of nftables and iptables-nft, policies of chains
(which iptables has), and counters with names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clearway.linux.ruleset import Ruleset
from clearway.proof import Counted
from clearway.proof.written import written

POLICY = re.compile(r":(\S+) (?:ACCEPT|DROP) \[(\d+):(\d+)\]")
Where = tuple[str, str, str, int | str]
"""Family, table, chain and position, from 1 on, 0 for the policy; or "" and a counter's name."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is counted, by nft's handles: of the table, and in it of a rule, of a chain (its
    policy) or of a counter with a name. Who deletes a table and makes it again has other ones.
    """

    kind: str  # rule | policy | counter
    family: str
    table: str
    made: int
    handle: int


@dataclass(frozen=True, slots=True)
class LinuxCounter:
    """What Linux has counted at a place. `chain`: "" for a counter with a name. `text`: the rule."""

    place: Place
    chain: str
    text: str
    packets: int
    bytes: int


@dataclass(frozen=True)
class LinuxCounters:
    """All of a ruleset, in its order. `at`: every rule, chain and counter, whether it counts or not."""

    counters: tuple[LinuxCounter, ...] = ()
    at: Mapping[Where, Place] | None = None

    def place_of(self, counted: Counted) -> Place | None:
        """Where a counter of a proof stands; None: the proof is of another ruleset."""
        rule = counted.rule
        last: tuple[str, int | str] = (
            ("", counted.counter) if counted.counter else (rule.chain, rule.position)
        )
        return (self.at or {}).get((rule.family, rule.table, *last))

    @property
    def places(self) -> frozenset[Place]:
        return frozenset((self.at or {}).values())


def linux_counters(ruleset: Ruleset) -> LinuxCounters:
    """Reads them from the texts. ValueError for what nft does not print."""
    return _Reader(ruleset).read()


class _Reader:
    def __init__(self, ruleset: Ruleset) -> None:
        objects = json.loads(ruleset.nft)["nftables"] if ruleset.nft.strip() else []
        self.objects = [next(iter(one.items())) for one in objects]
        self.made = {_of(one): one["handle"] for kind, one in self.objects if kind == "table"}
        self.at: dict[Where, Place] = {}
        self.policies: dict[tuple[str, str, str], tuple[str, int, int]] = {}
        self.texts: dict[Where, str] = {}
        for family, text in ruleset.saves.items():
            self._saved(family, text)

    def read(self) -> LinuxCounters:
        rules: dict[tuple[str, str, str], list[LinuxCounter]] = {}
        positions: dict[tuple[str, str, str], int] = {}
        for kind, one in self.objects:
            if kind == "rule":
                chain = (*_of(one), one["chain"])
                positions[chain] = positions.get(chain, 0) + 1
                rules.setdefault(chain, []).extend(self._rule(one, chain, positions[chain]))
        found = []
        for kind, one in self.objects:
            if kind == "chain":
                chain = (*_of(one), one["name"])
                found += [*rules.get(chain, ()), *self._policy(one, chain)]
            elif kind == "counter":
                found.append(self._named(one))
        return LinuxCounters(tuple(found), self.at)

    def _rule(
        self, one: Mapping[str, Any], chain: tuple[str, str, str], position: int
    ) -> Iterator[LinuxCounter]:
        where = (*chain, position)
        self.at[where] = place = self._place("rule", one)
        expressions = one.get("expr", [])
        counts = [each["counter"] for each in expressions if _has_numbers(each.get("counter"))]
        if counts:
            text = self.texts.get(where) or written(expressions, one.get("comment", ""))
            packets, octets = (sum(count[name] for count in counts) for name in ("packets", "bytes"))
            yield LinuxCounter(place, one["chain"], text, packets, octets)

    def _policy(self, one: Mapping[str, Any], chain: tuple[str, str, str]) -> Iterator[LinuxCounter]:
        self.at[*chain, 0] = place = self._place("policy", one)
        if chain in self.policies:
            text, packets, octets = self.policies[chain]
            yield LinuxCounter(place, one["name"], text, packets, octets)

    def _named(self, one: Mapping[str, Any]) -> LinuxCounter:
        self.at[*_of(one), "", one["name"]] = place = self._place("counter", one)
        return LinuxCounter(place, "", f"counter {one['name']}", one["packets"], one["bytes"])

    def _place(self, kind: str, one: Mapping[str, Any]) -> Place:
        return Place(kind, *_of(one), self.made[_of(one)], one["handle"])

    def _saved(self, family: str, text: str) -> None:
        """What the JSON does not tell of tables of iptables: the words of rules, and what policies count."""
        table, positions = "", dict[str, int]()
        for line in text.split("\n"):
            if line.startswith("*"):
                table, positions = line[1:].strip(), {}
            elif policy := POLICY.match(line):
                chain, packets, octets = policy.groups()
                said = f"policy {line.split()[1].lower()}"
                self.policies[family, table, chain] = said, int(packets), int(octets)
            elif line.startswith("["):
                rule = line.partition("] ")[2]
                chain = rule.split(" ")[1]
                positions[chain] = positions.get(chain, 0) + 1
                self.texts[family, table, chain, positions[chain]] = rule


def _of(one: Mapping[str, Any]) -> tuple[str, str]:
    return one["family"], one["name"] if "table" not in one else one["table"]


def _has_numbers(counter: Any) -> bool:
    """Of its own; others name an object, or a map of some (which the proof leaves to Linux)."""
    return isinstance(counter, Mapping) and "packets" in counter
