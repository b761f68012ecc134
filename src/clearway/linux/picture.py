# SPDX-License-Identifier: Apache-2.0
"""The kernel's links, addresses and neighbours as far as they are known, kept up to date from announcements.

Pure: takes records, does no I/O. note_*() return a sentence when decisions that the data path has stored in
its flows may be wrong from now on, and None when nothing changed that forwarding depends on. In particular
the neighbour states that come and go by themselves (REACHABLE, STALE, DELAY, PROBE) are silent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from clearway.linux.rtnetlink import Address, Hop, Ip, Link, Neighbour


@dataclass
class Picture:
    """What is known. `links` by ifindex, `addresses` by device and address in the kernel's order."""

    links: dict[int, Link] = field(default_factory=dict)
    addresses: dict[tuple[int, Ip], Address] = field(default_factory=dict)
    neighbours: dict[Hop, bytes | None] = field(default_factory=dict)

    def note_link(self, link: Link, *, gone: bool = False) -> str | None:
        known = self.links.get(link.ifindex)
        if gone:
            if known is None:
                return None
            del self.links[link.ifindex]
            self._forget_device(link.ifindex)
            return f"{known.name} is gone"
        if known == link:
            return None
        self.links[link.ifindex] = link
        return f"{link.name} {_difference(known, link)}"

    def note_address(self, address: Address, *, gone: bool = False) -> str | None:
        key = (address.ifindex, address.ip)
        known = self.addresses.get(key)
        if gone:
            return f"{address.ip} is gone" if self.addresses.pop(key, None) else None
        self.addresses[key] = address
        if known is not None and (known.flags, known.scope) == (address.flags, address.scope):
            return None
        return f"{address.ip} is {'new' if known is None else 'different'}"

    def note_neighbour(self, neighbour: Neighbour, *, gone: bool = False) -> str | None:
        """A neighbour that was never heard of before is silent, too.

        Nothing can be stored that depends on it: a flow whose next hop is not known stays unresolved
        (bpf/route.h), and asks again with its next packet.
        """
        hop = Hop(neighbour.ifindex, neighbour.ip)
        unheard_of = hop not in self.neighbours
        known = self.neighbours.pop(hop, None)
        if gone:
            return f"neighbour {neighbour.ip} is gone" if known is not None else None
        self.neighbours[hop] = neighbour.mac
        if unheard_of or known == neighbour.mac:
            return None
        if neighbour.mac is None:
            return f"neighbour {neighbour.ip} does not answer"
        return f"neighbour {neighbour.ip} is at {neighbour.mac.hex(':') or 'no link address'}"

    def replace(
        self, links: Iterable[Link], addresses: Iterable[Address], neighbours: Iterable[Neighbour]
    ) -> None:
        """Start over from a full listing, after announcements were lost."""
        self.links = {link.ifindex: link for link in links}
        self.addresses = {(address.ifindex, address.ip): address for address in addresses}
        self.neighbours = {Hop(n.ifindex, n.ip): n.mac for n in neighbours}

    def ifindexes(self) -> dict[str, int]:
        return {link.name: link.ifindex for link in self.links.values()}

    def _forget_device(self, ifindex: int) -> None:
        """The kernel announces neither all addresses nor all neighbours of a device that leaves."""
        self.addresses = {key: value for key, value in self.addresses.items() if key[0] != ifindex}
        self.neighbours = {hop: mac for hop, mac in self.neighbours.items() if hop.ifindex != ifindex}


def _difference(known: Link | None, link: Link) -> str:
    if known is None:
        return f"is new (ifindex {link.ifindex})"
    if known.up != link.up or known.carrier != link.carrier:
        return "is up" if link.up and link.carrier else "is down"
    if known.mac != link.mac:
        return f"has link address {link.mac.hex(':')}"
    if known.name != link.name:
        return f"was {known.name}"
    return "changed"
