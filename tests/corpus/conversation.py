# SPDX-License-Identifier: Apache-2.0
"""A first packet and its answer through the machine of a ruleset, as frames on its wires."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address
from socket import AF_PACKET, IPPROTO_TCP, SOCK_RAW, htons, socket

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.corpus.router import ROUTER_MAC, Router
from tests.corpus.rulesets import Address, Traffic, Tuple

ETH_P_ALL = 0x0003  # linux/if_ether.h
FAR_MAC = "02:00:00:00:00:fe"
PATIENCE_S = 3.0
QUIET_S = 0.15
"""How long is waited for what should not come."""
TRIES = 60
"""Of what the rules balance over three endpoints: one run in 10^10 misses the one that is written down."""


@dataclass(frozen=True)
class Conversation:
    """Of one kind of traffic, on the wires of both its sides."""

    router: Router
    traffic: Traffic
    inside: socket
    outside: socket

    def passes(self) -> bool:
        """Whether a first packet and its answer come through, translated and marked as described. What is
        balanced is tried again until it is."""
        for attempt in range(TRIES if self.traffic.balanced else 1):
            arrives = self.traffic.original.arrives
            fresh = replace(arrives, sport=arrives.sport + 100 * attempt)
            if self._forwarded(fresh) and self._mark(fresh) == self.traffic.mark:
                return True
        return False

    def _forwarded(self, fresh: Tuple) -> bool:
        leaves = self.traffic.original.leaves

        def leaves_so(found: Tuple) -> bool:
            # Masquerade may take any source port (--random-fully).
            sport = fresh.sport if leaves.source == fresh.source else found.sport
            return found == replace(leaves, sport=sport)

        hurried = self.traffic.balanced or not self.traffic.forwarded
        self._send(self.inside, fresh, "S")
        left = self._receive(self.outside, leaves_so, QUIET_S if hurried else PATIENCE_S)
        if left is None:
            return False
        self._send(self.outside, left.back(), "SA")
        return self._receive(self.inside, fresh.back().__eq__, PATIENCE_S) is not None

    def _mark(self, fresh: Tuple) -> int:
        """What conntrack holds as the mark of that connection."""
        listed = self.router.node.run(
            *("conntrack", "-L", "-f", f"ipv{self.traffic.family}", "-p", str(self.traffic.protocol)),
            *("--orig-src", str(fresh.source), "--sport", str(fresh.sport)),
        ).stdout
        words = (word.partition("=") for word in listed.split())
        return next((int(value) for key, _, value in words if key == "mark"), 0)

    def _send(self, wire: socket, packet: Tuple, flags: str) -> None:
        transport = (
            TCP(sport=packet.sport, dport=packet.dport, flags=flags, seq=1, ack=2 if "A" in flags else 0)
            if self.traffic.protocol == IPPROTO_TCP
            else UDP(sport=packet.sport, dport=packet.dport) / b"clearway"
        )
        network = IP if self.traffic.family == 4 else IPv6
        frame = Ether(src=FAR_MAC, dst=ROUTER_MAC) / network(
            src=str(packet.source), dst=str(packet.destination)
        )
        wire.send(bytes(frame / transport))

    def _receive(self, wire: socket, wanted: Callable[[Tuple], bool], seconds: float) -> Tuple | None:
        """The first packet that is wanted, within that time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            wire.settimeout(left)
            try:
                found = self._parsed(wire.recv(2048))
            except TimeoutError:
                return None
            if found is not None and wanted(found):
                return found
        return None

    def _parsed(self, frame: bytes) -> Tuple | None:
        network = Ether(frame).getlayer(IP if self.traffic.family == 4 else IPv6)
        kind = TCP if self.traffic.protocol == IPPROTO_TCP else UDP
        if network is None or not isinstance(network.payload, kind):
            return None
        ports = network.payload
        return Tuple(ip_address(network.src), ports.sport, ip_address(network.dst), ports.dport)


def converse(router: Router, traffic: Traffic, closing: ExitStack) -> Conversation:
    """Tells the machine where both ends are, and opens the wires to them until `closing` ends."""
    original = traffic.original
    _reach(router, original.arrives.source, original.inside)
    _reach(router, original.leaves.destination, original.outside)
    wires = {name: closing.enter_context(_wire(router, name)) for name in {original.inside, original.outside}}
    return Conversation(router, traffic, wires[original.inside], wires[original.outside])


def _reach(router: Router, address: Address, interface: str) -> None:
    router.node.ip("route", "replace", f"{address}/{address.max_prefixlen}", "dev", interface)
    router.node.ip(
        "neighbour", "replace", str(address), "lladdr", FAR_MAC, "dev", interface, "nud", "permanent"
    )


def _wire(router: Router, interface: str) -> socket:
    wire = router.wire.open_socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL))
    wire.bind((router.far_end(interface), ETH_P_ALL))
    return wire
