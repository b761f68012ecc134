# SPDX-License-Identifier: Apache-2.0
"""What packets meet besides netfilter's rules: filters and queues of tc, programs of others, bridges, and
policies of IPsec.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from clearway.datapath import Datapath
from clearway.datapath.others import Lookout, Others
from clearway.linux.mirror import downwards
from clearway.linux.rtnetlink import Link
from clearway.linux.traffic_control import TrafficControl, traffic_control
from clearway.linux.xfrm import Policy
from clearway.proof import Obstacle

LOOK_EVERY = 1.0
"""Seconds; programs of others are announced by nobody."""
ON_WAY = frozenset({"prerouting", "forward", "postrouting"})
"""Hooks of what is forwarded."""

Links = Mapping[int, Link]


class Obstacles:
    """For use by one thread at a time."""

    def __init__(
        self,
        datapath: Datapath,
        ours: Callable[[], frozenset[int]],
        shaped: Callable[[frozenset[int]], None],
    ) -> None:
        """ours: ifindexes of clearway's interfaces. shaped: is called with the devices of which somebody
        looks at what leaves, when they have changed.
        """
        self._datapath, self._ours, self._shaped = datapath, ours, shaped
        self._control = TrafficControl()
        self._controlled: frozenset[int] | None = None  # the devices that it is of; None: to be read
        self._lookout, self._others = Lookout(), Others()
        self._look_at = 0.0  # of time.monotonic()
        self._leaving: frozenset[int] = frozenset()

    def look_again(self) -> None:
        """Something of tc has changed."""
        self._controlled = None

    def of(self, links: Links) -> tuple[Obstacle, ...]:
        """Those that there are now. NetlinkError, OSError."""
        devices = frozenset(links)
        if self._controlled != devices:
            self._control = traffic_control()
        if self._controlled != devices or time.monotonic() >= self._look_at:
            self._others = self._lookout.look(devices, self._datapath.tc_programs())
            self._look_at = time.monotonic() + LOOK_EVERY
        self._controlled = devices
        leaving = self._control.egress | self._others.egress
        if leaving != self._leaving:
            self._leaving = leaving
            self._shaped(leaving)
        return (*self._coming_in(links), *self._at_hooks())

    def _coming_in(self, links: Links) -> Iterator[Obstacle]:
        """By clearway's interfaces, and the VLANs on these: no others does it see."""
        ours = self._ours()
        for ifindex, link in sorted(links.items()):
            if ours.isdisjoint(lower.ifindex for lower in downwards(link, links)):
                continue
            if ifindex in self._control.ingress:
                yield Obstacle(None, link.name, None, f"tc has filters for what comes in by {link.name}")
            if ifindex in self._others.ingress:
                why = f"a program of somebody else (TCX) sees what comes in by {link.name}"
                yield Obstacle(None, link.name, None, why)
            if ifindex in ours and link.master in links:
                bridge = links[link.master].name
                why = f"{link.name} is a port of {bridge}: rules see {bridge}, and it may pass frames by"
                yield Obstacle(None, link.name, None, why)

    def _at_hooks(self) -> Iterator[Obstacle]:
        if self._others.hooks is None:
            why = "whether netfilter runs programs of BPF is not told without CAP_SYS_ADMIN"
            yield Obstacle(None, None, None, why)
            return
        for hook in sorted(self._others.hooks):
            if hook.name in ON_WAY:
                why = f"netfilter runs a program of BPF at {hook.name}, maybe in this network namespace"
                yield Obstacle(hook.family, None, None, why)


def about_policy(policy: Policy) -> Obstacle:
    """Whatever interfaces and marks it speaks of, it is taken to be about all of them."""
    network = policy.source or policy.destination
    return Obstacle(
        family=network.version if network else None,
        inside=None,
        outside=None,
        why=f"a policy of IPsec may be about it: {policy}",
        source=policy.source,
        destination=policy.destination,
        protocol=policy.protocol or None,
        sport=policy.sport,
        dport=policy.dport,
    )
