# SPDX-License-Identifier: Apache-2.0
"""What is allowed and probably not meant: a sentence each. Pure.

Clearway translates where it takes packets. What comes in elsewhere is left to Linux, which knows nothing of
the translation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from clearway.linux.rtnetlink import Hop, Link
from clearway.model import Config

MASTERS = ("bridge", "bond", "team", "vrf")  # their packets are taken at the devices that belong to them
LOOPBACK = "lo"


def about_nat(config: Config, links: Mapping[int, Link]) -> list[str]:
    """Rules whose replies clearway does not see. Interfaces that are not there are waited for anyway."""
    unlisted = _unlisted(config, links)
    return [
        f"nat {rule.name}: replies come in by {rule.interface}, which is not among interfaces:"
        " they go to Linux; add it"
        for rule in config.nat
        if rule.interface in unlisted
    ]


def about_endpoints(config: Config, hops: Iterable[Hop], links: Mapping[int, Link]) -> list[str]:
    """`hops`: where the kernel sends packets for the endpoints."""
    unlisted = _unlisted(config, links)
    towards = {link.name for hop in hops if (link := links.get(hop.ifindex)) is not None}
    return [
        f"endpoints: some are reached through {name}, which is not among interfaces:"
        " their replies go to Linux; add it"
        for name in sorted(towards & unlisted)
    ]


def _unlisted(config: Config, links: Mapping[int, Link]) -> set[str]:
    """Devices by which packets come in that clearway does not take."""
    listed = {interface.name for interface in config.interfaces}
    return {
        link.name
        for link in links.values()
        if link.name != LOOPBACK and link.kind not in MASTERS and not _is_listed(link, listed, links)
    }


def _is_listed(link: Link, listed: set[str], links: Mapping[int, Link]) -> bool:
    """Whether it, or a device below its VLANs, is among `listed`, or belongs to a master below."""
    below: Link | None = link
    while below is not None and below.name not in listed and below.kind not in MASTERS:
        below = links.get(below.lower) if below.vlan is not None else None
    return below is not None
