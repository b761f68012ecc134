# SPDX-License-Identifier: Apache-2.0
"""Has the kernel keep the neighbours resolved that endpoints are reached through.

An XDP program can look a link address up but cannot ask for one, so the first packet to an endpoint must find
it there. Entries marked as managed are resolved and refreshed by the kernel itself (Linux 5.16). Those that
clearway asked for carry its protocol number, so that a restarted daemon and `clearway down` find them again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from clearway.linux.netlink import Conversation, NetlinkError
from clearway.linux.rtnetlink import (
    NUD_PERMANENT,
    Hop,
    Ip,
    Link,
    Neighbour,
    neighbours,
    route,
    set_neighbour,
)

# In the range of protocol numbers that nobody has registered (/etc/iproute2/rt_protos).
OUR_PROTOCOL = 199
_KERNEL_PROTOCOL = 2  # RTPROT_KERNEL


@dataclass(frozen=True)
class Kept:
    """What keep() found and did."""

    hops: frozenset[Hop]  # next hops that are being kept resolved
    unreachable: tuple[str, ...]  # a sentence for each destination that has no next hop


@dataclass(frozen=True)
class Work:
    """Entries to hand to the kernel's care, and entries to release from it."""

    manage: frozenset[Hop]
    release: frozenset[Hop]


def plan(hops: Collection[Hop], table: Iterable[Neighbour], links: Mapping[int, Link]) -> Work:
    """Which entries have to change so that exactly `hops` are kept. Pure.

    Permanent entries and devices that resolve nothing (tunnels, loopback) need no care.
    """
    known = {Hop(entry.ifindex, entry.ip): entry for entry in table}
    manage = set()
    for hop in hops:
        link = links.get(hop.ifindex)
        entry = known.get(hop)
        if link is None or not link.resolves or not link.up:
            continue
        if entry is None or not (entry.managed or entry.state & NUD_PERMANENT):
            manage.add(hop)
    ours = {hop for hop, entry in known.items() if entry.managed and entry.protocol == OUR_PROTOCOL}
    return Work(frozenset(manage), frozenset(ours - set(hops)))


def keep(kernel: Conversation, destinations: Iterable[Ip], links: Mapping[int, Link]) -> Kept:
    """Keep the next hops towards `destinations` resolved, and release those that were kept for others.

    Blocks for some 50 us a destination.
    """
    hops: set[Hop] = set()
    unreachable: list[str] = []
    for destination in destinations:
        try:
            hop = route(kernel, destination)
        except NetlinkError as error:
            unreachable.append(f"{destination}: {error}")
            continue
        if hop is not None:
            hops.add(hop)
    work = plan(hops, neighbours(kernel), links)
    for hop in work.manage:
        try:
            set_neighbour(kernel, hop, managed=True, protocol=OUR_PROTOCOL)
        except NetlinkError as error:
            unreachable.append(f"{hop.ip}: the kernel refuses to keep this neighbour resolved: {error}")
    _release(kernel, work.release)
    return Kept(frozenset(hops), tuple(unreachable))


def release_all(kernel: Conversation) -> None:
    """Leave every neighbour that clearway has kept to itself again."""
    _release(kernel, plan((), neighbours(kernel), {}).release)


def _release(kernel: Conversation, hops: Iterable[Hop]) -> None:
    for hop in hops:
        try:
            set_neighbour(kernel, hop, managed=False, protocol=_KERNEL_PROTOCOL)
        except NetlinkError:
            continue  # its device has gone meanwhile, and the entry with it
