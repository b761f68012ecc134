# SPDX-License-Identifier: Apache-2.0
"""Devices of the lab's node, as its kernel numbers them."""

from __future__ import annotations

from clearway.lab import Lab
from clearway.linux import rtnetlink
from clearway.linux.netlink import NETLINK_ROUTE, Conversation


def ifindex_of(lab: Lab, name: str) -> int:
    with lab.node.entered(), Conversation(NETLINK_ROUTE) as kernel:
        return next(link.ifindex for link in rtnetlink.links(kernel) if link.name == name)
