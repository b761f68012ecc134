# SPDX-License-Identifier: Apache-2.0
"""The addresses of the test network, the same plan for both families.

clients, internet -- front [node] back   -- endpoints, inside hosts, a router
                                 spare   -- another router to the same places
                                 narrow  -- endpoints behind a small MTU
"""

from __future__ import annotations

from dataclasses import dataclass

FRONT, BACK, SPARE, NARROW = "front", "back", "spare", "narrow"
DEVICES = (FRONT, BACK, SPARE, NARROW)
NARROW_MTU = 1400
MTU = 1500


def device_mac(device: str) -> str:
    """Link address of the node on that device."""
    return f"02:00:00:00:01:{DEVICES.index(device):02x}"


def neighbour_mac(device: str, number: int) -> str:
    """Link address of host `number` on that device's network."""
    return f"02:00:00:00:{DEVICES.index(device) + 0x10:02x}:{number:02x}"


@dataclass(frozen=True)
class Net:
    """The plan for one family. Host numbers are below 255 and mean the same in both families."""

    family: int
    networks: dict[str, str]
    """Device -> prefix text in front of a host number; the node is number 1, routers are number 254."""
    length: int
    """Prefix length of those networks."""
    far: str
    """Prefix text of far clients, behind router 254 of the front (default route)."""
    remote: str
    """Prefix text of a network behind router 254 of the back."""
    vip: str
    other_vip: str
    pool: str

    def host(self, device: str, number: int) -> str:
        return (
            f"{self.networks[device]}{number:x}" if self.family == 6 else f"{self.networks[device]}{number}"
        )

    def node(self, device: str) -> str:
        return self.host(device, 1)

    def router(self, device: str) -> str:
        return self.host(device, 254)

    @property
    def client(self) -> str:
        return self.host(FRONT, 50)

    @property
    def server(self) -> str:
        """A server in the internet, for what inside hosts open through source NAT."""
        return self.host(FRONT, 60)

    @property
    def inside(self) -> str:
        """A host in the back that opens connections to the internet."""
        return self.host(BACK, 50)

    @property
    def endpoint(self) -> str:
        return self.endpoints[0]

    @property
    def endpoints(self) -> list[str]:
        return [self.host(BACK, number) for number in range(11, 19)]

    @property
    def narrow_endpoint(self) -> str:
        return self.host(NARROW, 11)

    @property
    def unresolved(self) -> str:
        """On the back's link, and the kernel does not know its link address."""
        return self.host(BACK, 99)

    def far_client(self, number: int) -> str:
        """One of 65,536 clients behind the front's router."""
        if self.family == 6:
            return f"{self.far}{number:x}"
        return f"{self.far}{number >> 8}.{number & 255}"

    def remote_host(self, number: int) -> str:
        return f"{self.remote}{number:x}" if self.family == 6 else f"{self.remote}{number}"

    def prefix(self, device: str) -> str:
        return f"{self.networks[device]}{'' if self.family == 6 else '0'}/{self.length}"

    @property
    def remote_prefix(self) -> str:
        return f"{self.remote}/64" if self.family == 6 else f"{self.remote}0/24"

    @property
    def other_family(self) -> Net:
        return NETS[10 - self.family]

    @property
    def any(self) -> str:
        return "::/0" if self.family == 6 else "0.0.0.0/0"


NETS = {
    4: Net(
        family=4,
        networks={FRONT: "203.0.113.", BACK: "10.0.0.", SPARE: "10.0.1.", NARROW: "10.0.2."},
        length=24,
        far="198.18.",
        remote="10.9.0.",
        vip="192.0.2.10",
        other_vip="192.0.2.11",
        pool="198.51.100.8-198.51.100.11",
    ),
    6: Net(
        family=6,
        networks={
            FRONT: "2001:db8:f::",
            BACK: "fd00:a::",
            SPARE: "fd00:b::",
            NARROW: "fd00:c::",
        },
        length=64,
        far="2001:db8:1234::",
        remote="fd00:9::",
        vip="2001:db8:5::10",
        other_vip="2001:db8:5::11",
        pool="2001:db8:6::8-2001:db8:6::b",
    ),
}
