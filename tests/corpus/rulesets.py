# SPDX-License-Identifier: Apache-2.0
"""Rulesets as tools and people write them, each with the connections that such a machine typically forwards.

A folder holds one: its rules, as the tool would load them, and `ruleset.toml`, which says where their
structure is documented, on which interfaces they are, and who talks through them. `share` is percent of the
packets that such a machine forwards, an estimate; what its rules refuse (`forwarded = false`) has none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PROTOCOLS = {"tcp": 6, "udp": 17}

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Tuple:
    """Addresses and ports of a packet; ports in host order."""

    source: Address
    sport: int
    destination: Address
    dport: int

    @staticmethod
    def of(text: str) -> Tuple:
        """From `10.0.0.1:40000 > [2001:db8::1]:443`; ValueError when it is nothing like that."""
        source, destination = (side.rsplit(":", 1) for side in text.split(" > "))
        return Tuple(
            ip_address(source[0].strip("[]")),
            int(source[1]),
            ip_address(destination[0].strip("[]")),
            int(destination[1]),
        )

    def back(self) -> Tuple:
        """That of the answer."""
        return Tuple(self.destination, self.dport, self.source, self.sport)


@dataclass(frozen=True, slots=True)
class Direction:
    """Packets of one direction of a connection: how they arrive at the machine, and how they leave it."""

    inside: str
    outside: str
    arrives: Tuple
    leaves: Tuple

    def reply(self) -> Direction:
        return Direction(self.outside, self.inside, self.leaves.back(), self.arrives.back())


@dataclass(frozen=True, slots=True)
class Traffic:
    """Connections of one kind. `mark` is what the rules leave in conntrack for them; `balanced`: the rules
    choose at random, and what is written here is one of the results."""

    name: str
    share: float
    protocol: int
    original: Direction
    forwarded: bool = True
    balanced: bool = False
    mark: int = 0

    @property
    def family(self) -> int:
        return self.original.arrives.source.version

    @property
    def directions(self) -> tuple[Direction, Direction]:
        return self.original, self.original.reply()


@dataclass(frozen=True)
class Ruleset:
    """One folder. `load` has file names and how each is loaded (`nft`, `iptables-restore`,
    `ip6tables-restore`); `interfaces` has their addresses with prefix lengths; `adapted` says what differs
    from the tool's own."""

    name: str
    title: str
    tool: str
    host: str
    structure: tuple[str, ...]
    adapted: tuple[str, ...]
    load: Mapping[str, str]
    interfaces: Mapping[str, tuple[str, ...]]
    traffic: tuple[Traffic, ...]

    @cached_property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """How each file is loaded, and what is in it."""
        return tuple((how, (FOLDER / self.name / file).read_text()) for file, how in self.load.items())


def _traffic(entry: dict[str, Any]) -> Traffic:
    arrives = Tuple.of(entry.pop("arrives"))
    leaves = Tuple.of(entry.pop("leaves")) if "leaves" in entry else arrives
    original = Direction(entry.pop("inside"), entry.pop("outside"), arrives, leaves)
    return Traffic(
        protocol=PROTOCOLS[entry.pop("protocol")], share=entry.pop("share", 0), original=original, **entry
    )


def read(name: str) -> Ruleset:
    """The ruleset of that folder. TypeError, KeyError or ValueError when its description has another form."""
    document = tomllib.loads((FOLDER / name / "ruleset.toml").read_text())
    traffic = tuple(_traffic(entry) for entry in document.pop("traffic"))
    return Ruleset(
        name=name,
        structure=tuple(document.pop("structure")),
        adapted=tuple(document.pop("adapted", ())),
        interfaces={device: tuple(all_) for device, all_ in document.pop("interfaces").items()},
        traffic=traffic,
        **document,
    )


NAMES = tuple(sorted(path.parent.name for path in FOLDER.glob("*/ruleset.toml")))
