# SPDX-License-Identifier: Apache-2.0
"""Who is in the lab, and with which addresses: pure data, nothing here touches the kernel.

    client1 --+                 +-- server1 (nginx)
    client2 --+----- node ------+-- server2 (nginx)
                      |         +-- server3 (nginx)
                    uplink
                      |
                   outside

Each host has a veth pair of its own to the node, whose end there is named after the host (`uplink` for the
outside host): the node's interfaces are plain veths, which carry XDP. The outside host knows the uplink's
network and the service addresses but not the inner networks, as the internet does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Interface, IPv6Interface

VIP4 = "203.0.113.10"
VIP6 = "2001:db8:113::10"
SERVER_PORT = 8080
STANDARD_MTU = 1500


class Role(Enum):
    CLIENT = "client"
    SERVER = "server"
    OUTSIDE = "outside"


@dataclass(frozen=True)
class HostPlan:
    """One host: its addresses, those of the gateway at the other end of its link, and the way to the node.

    `path_mtus` are the MTUs of the links from the node to the host. With more than one, a router stands
    between each two of them, so (1500, 1300, 1500) puts a narrow link where neither end sees it.
    """

    name: str
    role: Role
    interface: str
    ipv4: IPv4Interface
    gateway4: IPv4Interface
    ipv6: IPv6Interface
    gateway6: IPv6Interface
    path_mtus: tuple[int, ...] = (STANDARD_MTU,)

    def address(self, family: int) -> str:
        """`family` is 4 or 6."""
        return str(self.ipv4.ip if family == 4 else self.ipv6.ip)

    def gateway(self, family: int) -> str:
        return str(self.gateway4.ip if family == 4 else self.gateway6.ip)


@dataclass(frozen=True)
class Topology:
    """How many clients and servers, and who lies behind a path of several links (by host name)."""

    clients: int = 2
    servers: int = 3
    path_mtus: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def hosts(self) -> list[HostPlan]:
        plans = [self._inner(Role.CLIENT, 1, number) for number in range(1, self.clients + 1)]
        plans += [self._inner(Role.SERVER, 2, number) for number in range(1, self.servers + 1)]
        plans.append(
            HostPlan(
                "outside",
                Role.OUTSIDE,
                "uplink",
                IPv4Interface("198.51.100.2/24"),
                IPv4Interface("198.51.100.1/24"),
                IPv6Interface("2001:db8:100::2/64"),
                IPv6Interface("2001:db8:100::1/64"),
                self.path_mtus.get("outside", (STANDARD_MTU,)),
            )
        )
        unknown = set(self.path_mtus) - {plan.name for plan in plans}
        if unknown:
            raise ValueError(f"path_mtus names hosts that are not in the lab: {', '.join(sorted(unknown))}")
        return plans

    def _inner(self, role: Role, network: int, number: int) -> HostPlan:
        name = f"{role.value}{number}"
        return HostPlan(
            name,
            role,
            name,
            IPv4Interface(f"10.{network}.{number}.2/24"),
            IPv4Interface(f"10.{network}.{number}.1/24"),
            IPv6Interface(f"fd00:{network}:{number}::2/64"),
            IPv6Interface(f"fd00:{network}:{number}::1/64"),
            self.path_mtus.get(name, (STANDARD_MTU,)),
        )


@dataclass(frozen=True)
class TransitNet:
    """Addresses of a link between the node and a router, or between two routers: (node's side, far side)."""

    ipv4: tuple[IPv4Interface, IPv4Interface]
    ipv6: tuple[IPv6Interface, IPv6Interface]


def transit_net(index: int) -> TransitNet:
    """The network of the `index`-th such link of a lab (0..255)."""
    return TransitNet(
        (IPv4Interface(f"10.9.{index}.1/30"), IPv4Interface(f"10.9.{index}.2/30")),
        (IPv6Interface(f"fd00:9:{index:x}::1/64"), IPv6Interface(f"fd00:9:{index:x}::2/64")),
    )
