# SPDX-License-Identifier: Apache-2.0
"""Firewall rules of tests, and what the data path has counted by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clearway.compiler import identity_of
from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.frames import frame, tcp, udp
from tests.packet.node import Node, Outcome

DEFAULT = ""
"""Stands for the name of the default."""


def rule(name: str = "rule", action: str = "accept", **asks: Any) -> dict[str, Any]:
    return {"name": name, "action": action, **asks}


def firewall(*rules: Mapping[str, Any], default: str = "drop", **keys: Any) -> dict[str, Any]:
    """Configuration of a firewall: what meets none of the rules is dropped."""
    return {"default": default, "rules": list(rules), **keys}


@dataclass(frozen=True)
class Judged:
    """What a rule has decided so far. `last`: jiffies, 0 for never."""

    packets: int
    bytes: int
    last: int


def judged(node: Node, name: str = "rule") -> Judged:
    """By the rule of that name, summed over CPUs."""
    assert node.tables.firewall is not None
    row = node.tables.firewall.counters[identity_of(name)]
    values = node.datapath.judged()[:, row]
    return Judged(
        int(values["packets"].sum()), int(values["bytes"].sum()), int(values["last"].max(initial=0))
    )


def ended(node: Node, why: str) -> int:
    """Connections that have ended so."""
    return node.datapath.ended()[why]


def through(net: Net, above: Any = None, **fields: Any) -> bytes:
    """From the client to a host in the back, that no service and no NAT rule claims."""
    return frame(FRONT, net.client, net.inside, udp(40000, 80) if above is None else above, **fields)


def to_node(net: Net, above: Any = None, **fields: Any) -> bytes:
    """From the client to the node itself."""
    return frame(FRONT, net.client, net.node(FRONT), udp(40000, 80) if above is None else above, **fields)


def syn(dport: int = 80, sport: int = 40000) -> Any:
    return tcp(sport, dport, "S", seq=1000)


def answered(node: Node, net: Net, above: Any) -> Outcome:
    """What the host in the back sends to the client."""
    return node.send(frame(BACK, net.inside, net.client, above), BACK)
