# SPDX-License-Identifier: Apache-2.0
"""Which hook an interface gets: a decision over facts, without a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clearway.datapath.errors import DatapathError
from clearway.datapath.interfaces import InterfaceFacts

HOOKS = ("auto", "xdp", "xdp-generic", "tc")

# Devices made of software. Several of them can run XDP programs, but their frames come from sockets of this
# machine as skbs with unfinished checksums and segments of 64 KB, which TC takes as they are and XDP
# cannot.
SOFTWARE = {
    "bonding",
    "bridge",
    "dummy",
    "ifb",
    "ip_gre",
    "ipip",
    "ipvlan",
    "loopback",
    "macvlan",
    "macvtap",
    "netkit",
    "team",
    "tun",
    "veth",
    "vrf",
    "vxlan",
    "wireguard",
    "802.1Q VLAN Support",
}


@dataclass(frozen=True)
class Choice:
    """The hook to attach to. `reason` is why, for people; "" if it was asked for by name.

    `tentative`: only attaching shows whether the driver takes XDP; if not, take TC.
    """

    hook: str
    reason: str = ""
    tentative: bool = False


def choose_hooks(asked: Mapping[str, str], facts: Mapping[str, InterfaceFacts]) -> dict[str, Choice]:
    """A hook for each interface in `asked` (name -> auto | xdp | xdp-generic | tc).

    `auto` is native XDP where the driver runs it and every other interface here can send what XDP redirects
    to it; otherwise TC. DatapathError for a hook that does not exist.
    """
    for ifname, hook in asked.items():
        if hook not in HOOKS:
            raise DatapathError(
                f"interface {ifname}: hook {hook!r} does not exist, use one of {', '.join(HOOKS)}"
            )
    return {
        ifname: Choice(hook) if hook != "auto" else _choose(facts[ifname], asked, facts)
        for ifname, hook in asked.items()
    }


def _choose(mine: InterfaceFacts, asked: Mapping[str, str], facts: Mapping[str, InterfaceFacts]) -> Choice:
    unable = _not_native(mine)
    if unable:
        return Choice("tc", unable)
    for ifname, other in facts.items():
        if ifname != mine.ifname and not _can_transmit(other, asked.get(ifname, "tc")):
            return Choice(
                "tc", f"{ifname} ({other.driver or 'no driver'}) cannot send what XDP redirects to it"
            )
    if mine.xdp_native is None:
        return Choice("xdp", f"driver {mine.driver}: native XDP is tried", tentative=True)
    return Choice("xdp", f"driver {mine.driver} has native XDP", tentative=True)


def _not_native(facts: InterfaceFacts) -> str:
    """Why the interface is not for native XDP; "" if it may be."""
    if facts.driver in SOFTWARE:
        return f"{facts.driver} is a software device: TC takes its frames as they are"
    if not facts.driver:
        return "the interface has no driver that could run XDP"
    if facts.xdp_native is False:
        return f"driver {facts.driver} has no native XDP"
    return ""


def _can_transmit(facts: InterfaceFacts, hook: str) -> bool:
    """Whether frames can be redirected to the interface once it has its hook.

    Most drivers set up the queues for that when they get an XDP program, and announce it only then.
    """
    if facts.xdp_transmit:
        return True
    return hook in ("auto", "xdp") and not _not_native(facts)
