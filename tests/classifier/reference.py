# SPDX-License-Identifier: Apache-2.0
"""What a classifier has to say, rule by rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clearway.compiler.classifier import Condition, Sets
from clearway.model import IPAddress, IPNetwork, PortRange

IFINDEX_MAX = (1 << 26) - 2


@dataclass(frozen=True)
class Packet:
    source: IPAddress
    destination: IPAddress
    protocol: int = 6
    sport: int = 0
    dport: int = 0
    dscp: int = 0
    tcp_flags: int = 0
    local: bool = False
    inside: int = 0
    outside: int = 0
    vlan: int = 0
    mark: int = 0

    @property
    def family(self) -> int:
        return self.source.version

    def words(self) -> list[int]:
        """As struct fields has them."""
        addresses = []
        for one in (self.source, self.destination):
            number = int(one)
            addresses += [number, 0] if one.version == 4 else [number >> 64, number & (1 << 64) - 1]
        fourth = self.sport << 48 | self.dport << 32 | self.protocol << 24 | self.dscp << 16
        fourth |= self.tcp_flags << 8 | self.mark << 1 | self.local
        inside, outside = (min(one, IFINDEX_MAX + 1) for one in (self.inside, self.outside))
        return [*addresses, fourth, inside << 38 | outside << 12 | self.vlan, 0]


def first_rule(conditions: Sequence[Condition], sets: Sets, packet: Packet) -> int | None:
    return next((n for n, one in enumerate(conditions) if meets(one, sets, packet)), None)


def meets(condition: Condition, sets: Sets, packet: Packet) -> bool:
    return (
        _among(condition.source, packet.source, sets)
        and _among(condition.destination, packet.destination, sets)
        and _in_ports(condition.sport, packet.sport, sets)
        and _in_ports(condition.dport, packet.dport, sets)
        and (condition.protocols is None or packet.protocol in condition.protocols)
        and (condition.dscp is None or packet.dscp in condition.dscp)
        and (
            condition.tcp_flags is None or packet.tcp_flags & condition.tcp_flags[0] == condition.tcp_flags[1]
        )
        and (condition.local is None or packet.local == condition.local)
        and (condition.interfaces_in is None or packet.inside in condition.interfaces_in)
        and (condition.interfaces_out is None or packet.outside in condition.interfaces_out)
        and (condition.vlans is None or packet.vlan in condition.vlans)
        and (condition.marks is None or packet.mark in condition.marks)
    )


def _among(asked: tuple[IPNetwork, ...] | str | None, address: IPAddress, sets: Sets) -> bool:
    if asked is None:
        return True
    networks = sets.addresses[asked] if isinstance(asked, str) else asked
    return any(address in network for network in networks if network.version == address.version)


def _in_ports(asked: tuple[PortRange, ...] | str | None, port: int, sets: Sets) -> bool:
    if asked is None:
        return True
    ports = sets.ports[asked] if isinstance(asked, str) else asked
    return any(one.first <= port <= one.last for one in ports)
