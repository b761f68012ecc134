# SPDX-License-Identifier: Apache-2.0
"""Rules as a firewall has them, by the thousand, and packets that meet them.

Half of them name both ends, a tenth a client alone, the rest a server or a network of servers; most a
service's port, some a range of ports.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.compiler.classifier import Condition
from clearway.model import IPNetwork, PortRange

Array = npt.NDArray[Any]

SERVICES = (22, 25, 53, 80, 123, 143, 443, 993, 3306, 5432, 6379, 8080, 8443, 9090)
EPHEMERAL = PortRange(1024, 65535)
TCP, UDP = 6, 17
HOSTS = 1 << 22
SERVERS, CLIENTS, BLOCKED = 0, 2 * HOSTS, 4 * HOSTS
LOW = (1 << 64) - 1


@dataclass(frozen=True)
class Space:
    """Where hosts are: the number of the first one, its bits that tell no host, and those of an address."""

    family: int
    base: int
    shift: int
    width: int

    def network(self, host: int, length: int) -> IPNetwork:
        """length: of the prefix, counted from that of a single host's."""
        prefix = self.width - length - (self.shift if length else 0)
        number = self.base + (host << self.shift)
        number = number >> (self.width - prefix) << (self.width - prefix)
        return IPv4Network((number, prefix)) if self.family == 4 else IPv6Network((number, prefix))


NOBODY = {
    4: (100 << 24 | 64 << 16, 192 << 24),
    6: (0xFD01 << 112, 0xFD00 << 112),
}
"""By family where clients and servers are that no rule asks for, each the first of 65,536."""
SPACES = {4: Space(4, 10 << 24, 0, 32), 6: Space(6, 0x20010DB8 << 96, 64, 128)}
"""IPv4: 10.0.0.0/8. IPv6: a host in each /64 of 2001:db8::/32."""


def conditions(count: int, family: int) -> list[Condition]:
    """The same for the same arguments."""
    random, space = Random(count), SPACES[family]
    return [_condition(random, space, number) for number in range(count)]


def _condition(random: Random, space: Space, number: int) -> Condition:
    kind = random.random()
    server = space.network(SERVERS + random.randrange(HOSTS), 0 if kind < 0.5 or kind >= 0.6 else 8)
    client: IPNetwork | None = None
    if kind < 0.5:
        client = space.network(CLIENTS + random.randrange(HOSTS), random.choice((0, 8, 8, 16)))
    elif kind >= 0.9:
        client = space.network(BLOCKED + number, 0)
    ports: tuple[PortRange, ...] | None = None
    if random.random() < 0.8:
        service = random.choice(SERVICES)
        ports = (PortRange(service, service),) if random.random() < 0.85 else (EPHEMERAL,)
    return Condition(
        source=None if client is None else (client,),
        destination=None if kind >= 0.9 else (server,),
        dport=ports,
        protocols=(random.choice((TCP, TCP, UDP)),),
    )


def packets(rules: list[Condition], count: int, family: int) -> Array:
    """Packets that meet rules chosen at random, as words of struct fields (bpf/types.h)."""
    random = Random(count)
    return np.array([_packet(random, random.choice(rules), family) for _ in range(count)], np.uint64)


def _packet(random: Random, rule: Condition, family: int) -> list[int]:
    asked = (rule.source, rule.destination)
    ends = [_address(random, one, first) for one, first in zip(asked, NOBODY[family], strict=True)]
    assert not isinstance(rule.dport, str) and rule.protocols is not None
    ports = rule.dport[0] if rule.dport else PortRange(0, 65535)
    fourth = random.randrange(1024, 65536) << 48 | random.randint(ports.first, ports.last) << 32
    words = [number for end in ends for number in ((end, 0) if family == 4 else (end >> 64, end & LOW))]
    return [*words, fourth | rule.protocols[0] << 24, 0, 0]


def _address(random: Random, asked: tuple[IPNetwork, ...] | str | None, nobody: int) -> int:
    """One that will do; where none is asked for one that nobody asks for."""
    if asked is None:
        return nobody + random.randrange(1 << 16)
    assert not isinstance(asked, str)
    return random.randint(int(asked[0].network_address), int(asked[0].broadcast_address))
