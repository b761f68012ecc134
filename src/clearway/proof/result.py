# SPDX-License-Identifier: Apache-2.0
"""What is given to a proof, what it says, and the words of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from clearway.importer.box import Boxes
from clearway.model import IPAddress, IPNetwork


class View(StrEnum):
    """Which addresses a packet has where a chain sees it."""

    BEFORE = "before"  # as it arrives
    BETWEEN = "between"  # its destination is translated, its source is not
    AFTER = "after"  # as it leaves


class Back(IntEnum):
    """What rules want to be true of the route to a packet's sender: enum back of bpf/types.h."""

    LOOSE = 1  # there is one
    STRICT = 2  # it leaves by the interface that the packet came in by
    DEVICE = 3  # likewise, and policy rules are asked by that interface


@dataclass(frozen=True, slots=True)
class Mangle:
    """What rules change in the packets of a flow: struct mangle of bpf/types.h."""

    hops_add: int = -1
    hops_keep: int = 255
    hops_most: int = 255
    tos_keep: int = 255
    tos_flip: int = 0
    early: bool = False

    @property
    def changes_hops(self) -> bool:
        return (self.hops_add, self.hops_keep, self.hops_most) != (-1, 255, 255)

    @property
    def changes_tos(self) -> bool:
        return (self.tos_keep, self.tos_flip) != (255, 0)

    def hops(self, arrived: int) -> int:
        """What is left of the TTL or hop limit when the packet leaves; below 1 it expires."""
        return min((arrived & self.hops_keep) + self.hops_add, self.hops_most)

    def tos(self, arrived: int) -> int:
        """Type of service or traffic class, as the packet leaves."""
        return (arrived & self.tos_keep) ^ self.tos_flip


class Kind(StrEnum):
    """What a rule means for a path around it."""

    FLOW_INVARIANT = "flow-invariant"  # decides the same for every packet of a flow
    RESTORABLE = "restorable"  # has effects besides, which are reproduced, or never happen
    OPAQUE = "opaque"
    ELSEWHERE = "not on the path"


@dataclass(frozen=True, slots=True)
class RuleName:
    """A rule as its administrator finds it. `family` is nft's word; `position` counts from 1 within the
    chain, 0 is the policy; `handle` is nft's, where it is known.
    """

    family: str
    table: str
    chain: str
    position: int
    handle: int | None
    text: str

    def __str__(self) -> str:
        where = f"{self.family} {self.table} {self.chain}"
        if self.position == 0:
            return f"{where}: {self.text}"
        place = f"rule {self.position}" if self.handle is None else f"handle {self.handle}"
        return f"{where} {place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Keep:
    """Packets in these boxes, in this view, are Linux' as long as no earlier line of the view lets them pass.
    Of the boxes source, destination, ports, protocol, interfaces and conntrack's mark count.
    """

    view: View
    boxes: Boxes
    why: str
    rule: RuleName | None = None


@dataclass(frozen=True, slots=True)
class Classified:
    """A rule and what it means. `keeps`: at least one flow because of it; `keeps_all`: every one of its
    families, whatever its addresses, ports, interfaces and mark are.
    """

    name: RuleName
    kind: Kind
    why: str
    keeps: bool
    keeps_all: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """A counter that packets meet: of the rule, or the object of this name."""

    rule: RuleName
    counter: str = ""


Tuple = tuple[IPAddress, int, IPAddress, int]
"""Source and its port, destination and its port."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One direction of a connection through this machine. `protocol`: IP's number; `inside`: the interface
    by which its packets come in, `outside`: by which they leave. `mark`: its connection's.
    """

    family: int
    protocol: int
    arrives: Tuple
    leaves: Tuple
    inside: str
    outside: str
    mark: int = 0

    def seen(self, view: View) -> Tuple:
        match view:
            case View.BEFORE:
                return self.arrives
            case View.AFTER:
                return self.leaves
        return (*self.arrives[:2], *self.leaves[2:])


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What packets meet besides netfilter's rules: filters of tc, policies of xfrm. None: any. Addresses and
    ports are those that packets have behind routing, translated or not.
    """

    family: int | None
    inside: str | None
    outside: str | None
    why: str
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    protocol: int | None = None
    sport: int | None = None
    dport: int | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """`nft`: what `nft -j list ruleset` prints, "" for nothing. `saves`: what `iptables-nft-save` and
    `ip6tables-nft-save` print, by "ip" and "ip6". `legacy`: families that have tables of iptables-legacy.
    `above`: for a device those on top of it (VLANs, a bridge or bond): rules may know its packets by these.
    `filtering`: by family, bridges that have their frames meet prerouting before they are anybody's.
    `translated`: families of which others than these rules (clearway's own table) may translate connections.
    """

    nft: str = ""
    saves: Mapping[str, str] = field(default_factory=dict)
    legacy: frozenset[int] = frozenset()
    obstacles: tuple[Obstacle, ...] = ()
    above: Mapping[str, frozenset[str]] = field(default_factory=dict)
    filtering: Mapping[int, frozenset[str]] = field(default_factory=dict)
    translated: frozenset[int] = frozenset()
