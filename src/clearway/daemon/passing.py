# SPDX-License-Identifier: Apache-2.0
"""A direction of a connection through this machine, as a proof asks for it and as `explain` shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from clearway.api.views import DirectionView
from clearway.linux import rtnetlink
from clearway.linux.conntrack import Tuple
from clearway.linux.netlink import NETLINK_ROUTE, Conversation, NetlinkError
from clearway.linux.picture import Picture
from clearway.model import host_port
from clearway.proof import Keep, Passage


def unmarked(_passage: Passage) -> int:
    """What packets are routed with that have no mark."""
    return 0


def passage_of(
    arrives: Tuple,
    leaves: Tuple,
    picture: Picture,
    mark: int = 0,
    routed_with: Callable[[Passage], int] = unmarked,
) -> Passage:
    """By the interfaces that routes lead to; "" for this machine itself, and where none leads. mark: the
    connection's. routed_with: the mark that packets of a passage are routed with.
    """
    back = _passage(leaves.reversed, arrives.reversed, mark)
    inside = interface_to(arrives.source, picture, routed_with(back)) or ""
    there = replace(_passage(arrives, leaves, mark), inside=inside)
    return replace(there, outside=interface_to(leaves.destination, picture, routed_with(there)) or "")


def _passage(arrives: Tuple, leaves: Tuple, mark: int) -> Passage:
    """By interfaces that are not known."""
    return Passage(
        family=arrives.source.version,
        protocol=arrives.protocol,
        arrives=(arrives.source, arrives.sport, arrives.destination, arrives.dport),
        leaves=(leaves.source, leaves.sport, leaves.destination, leaves.dport),
        inside="",
        outside="",
        mark=mark,
    )


def direction(
    name: str,
    arrives: Tuple,
    leaves: Tuple,
    passage: Passage,
    keep: Keep | None,
    why: str = "",
    *,
    flows: bool,
) -> DirectionView:
    """why: it stays in Linux for another reason than a rule. flows: there is a flow of its connection."""
    return DirectionView(
        direction=name,
        arrives=_ends(arrives),
        leaves=_ends(leaves),
        interface_in=passage.inside or None,
        interface_out=passage.outside or None,
        carried=flows and not (keep or why),
        kept=bool(keep or why),
        why=keep.why if keep else why,
        rule=str(keep.rule) if keep and keep.rule else None,
    )


def is_own(address: rtnetlink.Ip, picture: Picture) -> bool:
    """Whether it is one of this machine's."""
    return any(one.ip == address for one in picture.addresses.values())


def interface_to(address: rtnetlink.Ip, picture: Picture, mark: int = 0) -> str | None:
    """By which a packet to that address leaves, with this mark; None for this machine's own, and where no
    route leads.
    """
    if is_own(address, picture):
        return None
    try:
        with Conversation(NETLINK_ROUTE) as kernel:
            hop = rtnetlink.route(kernel, address, mark)
    except NetlinkError:
        return None
    link = picture.links.get(hop.ifindex) if hop else None
    return link.name if link else None


def _ends(tuple_: Tuple) -> str:
    return f"{host_port(tuple_.source, tuple_.sport)} -> {host_port(tuple_.destination, tuple_.dport)}"
