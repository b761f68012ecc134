# SPDX-License-Identifier: Apache-2.0
"""A connection through the node, driven from both its ends."""

from __future__ import annotations

from typing import Any

from scapy.packet import Packet

from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.flowtable import Tuple
from tests.packet.frames import frame, network, ports, tcp, udp
from tests.packet.node import Node, Outcome

CLIENT_ISN = 1000
SERVER_ISN = 7_000_000


class Conversation:
    """Client and server, each sending what a test tells it to.

    The server's frames are addressed to whatever the first frame left with. Sequence numbers go on by
    themselves; `seq` and `ack` send others.
    """

    def __init__(
        self,
        node: Node,
        net: Net,
        *,
        proto: str = "tcp",
        client: str = "",
        sport: int = 40000,
        to: str = "",
        dport: int = 80,
        inside: bool = False,
        server_device: str = BACK,
    ) -> None:
        """inside: an inside host opens a connection to the internet, instead of a client to the service."""
        self.node, self.net, self.proto = node, net, proto
        self.client_device, self.server_device = (BACK, FRONT) if inside else (FRONT, server_device)
        src = client or (net.inside if inside else net.client)
        dst = to or (net.server if inside else net.vip)
        self.arrives = Tuple(proto, src, sport, dst, dport)
        self.leaves = self.arrives
        self.client_next, self.server_next = CLIENT_ISN, SERVER_ISN

    @property
    def reply(self) -> Tuple:
        """The tuple of the server's packets."""
        return self.leaves.reversed()

    def client_frame(self, flags: str = "A", **segment: Any) -> bytes:
        return self._frame(
            self.client_device, self.arrives, flags, self.client_next, self.server_next, segment
        )

    def server_frame(self, flags: str = "A", **segment: Any) -> bytes:
        return self._frame(self.server_device, self.reply, flags, self.server_next, self.client_next, segment)

    def client(self, flags: str = "A", **segment: Any) -> Outcome:
        """The client sends: for TCP flags, seq, ack, window, payload, options; for UDP payload; ttl."""
        outcome = self.node.send(self.client_frame(flags, **segment), self.client_device)
        if "seq" not in segment:
            self.client_next += _length(flags, segment) if self.proto == "tcp" else 0
        self._learn(outcome)
        return outcome

    def server(self, flags: str = "A", **segment: Any) -> Outcome:
        """The server sends."""
        outcome = self.node.send(self.server_frame(flags, **segment), self.server_device)
        if "seq" not in segment:
            self.server_next += _length(flags, segment) if self.proto == "tcp" else 0
        return outcome

    def first(self, **segment: Any) -> Outcome:
        """The packet that opens: TCP's SYN, or a UDP datagram."""
        return self.client("S", **{"ack": 0, **segment}) if self.proto == "tcp" else self.client(**segment)

    def open(self, **syn: Any) -> Conversation:
        """The handshake of TCP, a packet each way of UDP."""
        if self.proto == "udp":
            self.client()
            self.server()
            return self
        self.first(**syn)
        self.server("SA", **syn)
        self.client("A")
        return self

    def _learn(self, outcome: Outcome) -> None:
        if outcome.verdict != "forward" or self.leaves != self.arrives:
            return
        self.leaves = self.leaves_of(outcome.packet)

    def leaves_of(self, packet: Packet) -> Tuple:
        """The tuple of a frame that left the node."""
        layer = network(packet)
        sport, dport = ports(packet)
        return Tuple(self.proto, str(layer.src), sport, str(layer.dst), dport)

    def _frame(
        self, device: str, way: Tuple, flags: str, seq: int, ack: int, segment: dict[str, Any]
    ) -> bytes:
        fields = dict(segment)
        ip_fields = {name: fields.pop(name) for name in ("ttl",) if name in fields}
        if self.proto == "udp":
            above = udp(way.sport, way.dport, **fields)
        else:
            above = tcp(way.sport, way.dport, flags, **{"seq": seq, "ack": ack, **fields})
        return frame(device, way.src, way.dst, above, **ip_fields)


def _length(flags: str, segment: dict[str, Any]) -> int:
    """How far a segment moves the sequence number."""
    return len(segment.get("payload", b"")) + ("S" in flags) + ("F" in flags)


def service(net: Net, *endpoints: str, **keys: Any) -> dict[str, Any]:
    """Configuration of a service on the network's VIP, port 80, its endpoints on port 8080."""
    return {
        "address": net.vip,
        "port": 80,
        "protocol": "tcp",
        "maglev_size": 251,
        "endpoints": [{"address": address, "port": 8080} for address in (endpoints or (net.endpoint,))],
        **keys,
    }


def masquerade(net: Net, **keys: Any) -> dict[str, Any]:
    """Configuration of masquerade for everything that leaves through the front."""
    return {"source": net.prefix(BACK), "interface": FRONT, "masquerade": True, **keys}
