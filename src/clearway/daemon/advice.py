# SPDX-License-Identifier: Apache-2.0
"""What is allowed and probably not meant: a sentence each. Pure.

Clearway translates where it takes packets. What comes in elsewhere is left to Linux, which knows nothing of
the translation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from clearway.linux.nftables import Chain
from clearway.linux.picture import Picture
from clearway.linux.rtnetlink import Hop, Link
from clearway.model import Config

MASTERS = ("bridge", "bond", "team", "vrf")  # their packets are taken at the devices that belong to them
LOOPBACK = "lo"
OWN_ADDRESS = ("macvlan", "macvtap", "ipvlan", "ipvtap")  # take packets away from the device below


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


def about_forwarding(config: Config, picture: Picture, missing: Callable[[int], str | None]) -> list[str]:
    """Families that interfaces have addresses of, two of them at least, and that Linux does not forward.
    `missing`: the setting without which it does not forward the family.
    """
    listed = {interface.name for interface in config.interfaces}
    found = []
    for family in (4, 6):
        between = {
            ifindex
            for ifindex, ip in picture.addresses
            if ip.version == family and not ip.is_link_local and _is_named(picture.links.get(ifindex), listed)
        }
        if len(between) > 1 and (setting := missing(family)):
            found.append(f"interfaces: Linux forwards no IPv{family} between them: sysctl -w {setting}=1")
    return found


def about_firewall(config: Config, links: Mapping[int, Link], chains: Iterable[Chain]) -> list[str]:
    """Packets that are not judged, rules that are about such, and what Linux would do to packets that it does
    not see any more. `chains`: of nftables, those at a hook.
    """
    if config.firewall is None:
        return []
    if not config.interfaces:
        return ["firewall: there are no interfaces, so nothing is judged; list them under interfaces"]
    unlisted = _unlisted(config, links)
    return [
        *(
            f"firewall rule {rule.name}: what comes in by {', '.join(rule.interface_in)} is not judged;"
            " add it to interfaces"
            for rule in config.firewall.rules
            if rule.interface_in and unlisted.issuperset(rule.interface_in)
        ),
        *_about_unjudged(config, links),
        *(
            f"firewall: what it forwards is not translated by chain {chain.name} of table {chain.table};"
            " use nat: and services: for that"
            for chain in chains
            if chain.kind == "nat" and chain.rules
        ),
    ]


def _about_unjudged(config: Config, links: Mapping[int, Link]) -> list[str]:
    """Devices beside listed ones, with link addresses of their own."""
    listed = {interface.name for interface in config.interfaces}
    found = []
    for link in links.values():
        master, below = links.get(link.master), links.get(link.lower)
        if link.name in listed and master and master.kind == "bridge" and master.name not in listed:
            why = (
                f"{link.name} is a port of {master.name}: frames to {master.name} itself are not judged there"
            )
            found.append(f"firewall: {why}; list {master.name} instead")
        elif link.kind in OWN_ADDRESS and link.name not in listed and below and below.name in listed:
            found.append(f"firewall: what {link.name} takes from {below.name} is not judged; add {link.name}")
    return found


def _is_named(link: Link | None, listed: set[str]) -> bool:
    return link is not None and link.name in listed


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
