# SPDX-License-Identifier: Apache-2.0
"""The sockets through which the kernel announces changes, and what has been learned from them so far.

Every listener joins its groups before anything is listed: nothing falls between listing and listening.
Routes and nftables are only ever noticed, never read: the data path asks the kernel about them itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from clearway.linux import rtnetlink
from clearway.linux.netlink import (
    NETLINK_GENERIC,
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    Conversation,
    Listener,
    Message,
    OverrunError,
)
from clearway.linux.nftables import NFNLGRP_NFTABLES
from clearway.linux.picture import Picture
from clearway.linux.xdp_features import NETDEV_XDP_ACT_NDO_XMIT, XdpFeatures

_MIRRORED = (
    rtnetlink.RTNLGRP_LINK,
    rtnetlink.RTNLGRP_NEIGH,
    rtnetlink.RTNLGRP_IPV4_IFADDR,
    rtnetlink.RTNLGRP_IPV6_IFADDR,
)
_ROUTES = (
    rtnetlink.RTNLGRP_IPV4_ROUTE,
    rtnetlink.RTNLGRP_IPV6_ROUTE,
    rtnetlink.RTNLGRP_IPV4_RULE,
    rtnetlink.RTNLGRP_IPV6_RULE,
    rtnetlink.RTNLGRP_NEXTHOP,
)

# Announcements of routes are thrown away unread, so this buffer may well overflow: that, too, says "changed".
_NOTICE_BUFFER = 1 << 16

T = TypeVar("T")


class Watch:
    """Listens in the network namespace of the thread that makes it. Every method returns without waiting."""

    def __init__(self) -> None:
        self.mirror = Listener(NETLINK_ROUTE, _MIRRORED)
        self.routes = Listener(NETLINK_ROUTE, _ROUTES, _NOTICE_BUFFER)
        self.nftables = Listener(NETLINK_NETFILTER, (NFNLGRP_NFTABLES,), _NOTICE_BUFFER)
        self._xdp_features = XdpFeatures()
        groups = (self._xdp_features.group,) if self._xdp_features.group else ()
        self.features = Listener(NETLINK_GENERIC, groups, _NOTICE_BUFFER)
        self.kernel = Conversation(NETLINK_ROUTE)
        self.picture = Picture()
        self.resync()

    def close(self) -> None:
        for part in (self.mirror, self.routes, self.nftables, self.features, self._xdp_features, self.kernel):
            part.close()

    def resync(self) -> None:
        """List everything anew. Blocks for as long as the kernel takes, some 5 us an entry."""
        self.picture.replace(
            rtnetlink.links(self.kernel), rtnetlink.addresses(self.kernel), rtnetlink.neighbours(self.kernel)
        )

    def read(self) -> list[str]:
        """Take in what was announced of links, addresses and neighbours.

        Returns a sentence for each change that forwarding depends on (Picture).
        """
        try:
            arrived = self.mirror.read()
        except OverrunError:
            self.resync()
            return ["announcements were lost, so everything was listed again"]
        sentences = [self._note(message) for message in arrived]
        return [sentence for sentence in sentences if sentence]

    def xdp_transmit(self) -> dict[int, bool] | None:
        """Which devices take frames that XDP redirects; None when this kernel cannot tell."""
        if not self._xdp_features.available:
            return None
        features = self._xdp_features.read()
        return {ifindex: bool(bits & NETDEV_XDP_ACT_NDO_XMIT) for ifindex, bits in features.items()}

    def _note(self, message: Message) -> str | None:
        picture = self.picture
        match message.kind:
            case rtnetlink.RTM_NEWLINK | rtnetlink.RTM_DELLINK:
                gone = message.kind == rtnetlink.RTM_DELLINK
                return _decoded(message, rtnetlink.decode_link, lambda x: picture.note_link(x, gone=gone))
            case rtnetlink.RTM_NEWADDR | rtnetlink.RTM_DELADDR:
                gone = message.kind == rtnetlink.RTM_DELADDR
                return _decoded(
                    message, rtnetlink.decode_address, lambda x: picture.note_address(x, gone=gone)
                )
            case rtnetlink.RTM_NEWNEIGH | rtnetlink.RTM_DELNEIGH:
                gone = message.kind == rtnetlink.RTM_DELNEIGH
                return _decoded(
                    message, rtnetlink.decode_neighbour, lambda x: picture.note_neighbour(x, gone=gone)
                )
        return None


def _decoded(
    message: Message, decode: Callable[[Message], T | None], note: Callable[[T], str | None]
) -> str | None:
    record = decode(message)
    return None if record is None else note(record)
