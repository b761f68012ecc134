# SPDX-License-Identifier: Apache-2.0
"""What works on this machine: the data path's own checks, and what XDP can do on each interface."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from clearway.datapath.features import Check, checks
from clearway.datapath.interfaces import InterfaceFacts, interface_facts
from clearway.linux import nft, rtnetlink
from clearway.linux.netlink import NETLINK_ROUTE, Conversation

NO_XDP = "hook: auto takes TC; hook: xdp-generic works, slowly"


Verdict = Literal["ok", "missing", "to do", "falls back"]


def verdict(check: Check) -> Verdict:
    """What a check comes to. `to do`: a setting of this machine, which its user can change."""
    if check.ok:
        return "ok"
    if check.needed:
        return "missing"
    return "to do" if "sysctl -w" in check.fallback else "falls back"


def examine() -> list[Check]:
    """Every check; what to do only where there is something to do. None of them changes anything."""
    with Conversation(NETLINK_ROUTE) as kernel:
        names = [link.name for link in rtnetlink.links(kernel) if link.kind != "vlan" and link.resolves]
    found = [*checks(), _nft(), *(interface_check(interface_facts(name)) for name in names)]
    return [replace(check, fallback="") if check.ok else check for check in found]


def _nft() -> Check:
    """By which Linux' rules are read."""
    there = nft.available()
    detail = "nft is there" if there else "nft is missing"
    return Check(
        "nftables", there, False, detail, f"connections of Linux are not carried: install {nft.PACKAGE}"
    )


def interface_check(facts: InterfaceFacts) -> Check:
    """Which XDP the driver of an interface offers."""
    driver = facts.driver or "no driver"
    if facts.xdp_native is None:
        detail = f"{driver}; this kernel does not tell what XDP it does (since 6.3)"
        return Check(f"interface {facts.ifname}", True, False, detail, "")
    native = "native XDP" if facts.xdp_native else "no native XDP"
    transmit = (
        "takes redirected frames"
        if facts.xdp_transmit
        else "takes no redirected frames now: XDP hands them to TC"
    )
    return Check(
        name=f"interface {facts.ifname}",
        ok=bool(facts.xdp_native),
        needed=False,
        detail=f"{driver}: {native}, {transmit}",
        fallback=NO_XDP,
    )
