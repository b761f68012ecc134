# SPDX-License-Identifier: Apache-2.0
"""Building and reading frames."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.packet.addresses import device_mac, neighbour_mac

SENDER = 0xFE
"""Host number of whoever put the frame on the link: a router, for most."""


def family_of(address: str) -> int:
    return 6 if ":" in address else 4


def ip_packet(src: str, dst: str, above: Packet, ttl: int = 64, **fields: Any) -> Packet:
    """An IP packet of the addresses' family. `fields`: of scapy's IP or IPv6."""
    if family_of(dst) == 6:
        return IPv6(src=src, dst=dst, hlim=ttl, **fields) / above
    return IP(src=src, dst=dst, ttl=ttl, **fields) / above


def ether(device: str) -> Packet:
    """Layer 2 of a frame that arrives on the node's device."""
    return Ether(src=neighbour_mac(device, SENDER), dst=device_mac(device))


def frame(device: str, src: str, dst: str, above: Packet, ttl: int = 64, **fields: Any) -> bytes:
    """A frame as it arrives on the node's device."""
    return bytes(ether(device) / ip_packet(src, dst, above, ttl, **fields))


def tcp(
    sport: int,
    dport: int,
    flags: str = "A",
    seq: int = 0,
    ack: int = 0,
    *,
    window: int = 8192,
    payload: bytes = b"",
    options: list[tuple[str, Any]] | None = None,
) -> Packet:
    segment = TCP(
        sport=sport,
        dport=dport,
        flags=flags,
        seq=seq & 0xFFFFFFFF,
        ack=ack & 0xFFFFFFFF,
        window=window,
        options=options or [],
    )
    return segment / Raw(payload) if payload else segment


def udp(sport: int, dport: int, payload: bytes = b"hello") -> Packet:
    return UDP(sport=sport, dport=dport) / Raw(payload)


def echo(
    family: int, identifier: int, *, reply: bool = False, sequence: int = 1, payload: bytes = b"ping"
) -> Packet:
    if family == 6:
        request: Packet = ICMPv6EchoRequest(id=identifier, seq=sequence, data=payload)
        return ICMPv6EchoReply(id=identifier, seq=sequence, data=payload) if reply else request
    return ICMP(type=0 if reply else 8, id=identifier, seq=sequence) / Raw(payload)


def icmp_error(kind: str, quoted: bytes, *, mtu: int = 1400) -> Packet:
    """An ICMP error that quotes `quoted`, an IP packet from its first byte.

    kind: unreachable | too-big | time-exceeded | parameter-problem
    """
    if quoted[0] >> 4 == 6:
        header: Packet = {
            "unreachable": ICMPv6DestUnreach(code=4),
            "too-big": ICMPv6PacketTooBig(mtu=mtu),
            "time-exceeded": ICMPv6TimeExceeded(code=0),
            "parameter-problem": ICMPv6ParamProblem(code=0, ptr=6),
        }[kind]
    else:
        header = {
            "unreachable": ICMP(type=3, code=3),
            "too-big": ICMP(type=3, code=4, nexthopmtu=mtu),
            "time-exceeded": ICMP(type=11, code=0),
            "parameter-problem": ICMP(type=12, code=0, ptr=8),
        }[kind]
    return header / Raw(quoted)


def l3(frame_bytes: bytes) -> bytes:
    """The IP packet in an untagged frame."""
    return frame_bytes[14:]


def network(packet: Packet) -> Packet:
    """The IP layer of a frame taken apart by scapy."""
    layer: Packet = packet[IPv6] if packet.haslayer(IPv6) else packet[IP]
    return layer


def hop_limit(packet: Packet) -> int:
    layer = network(packet)
    return int(layer.hlim if isinstance(layer, IPv6) else layer.ttl)


def ports(packet: Packet) -> tuple[int, int]:
    """Source and destination port of a TCP or UDP frame taken apart by scapy."""
    layer = packet[TCP] if packet.haslayer(TCP) else packet[UDP]
    return int(layer.sport), int(layer.dport)


def identifier(packet: Packet) -> int:
    """Identifier of an echo frame taken apart by scapy."""
    for layer in (ICMP, ICMPv6EchoRequest, ICMPv6EchoReply):
        if packet.haslayer(layer):
            return int(packet[layer].id)
    raise AssertionError(f"no echo in {packet.summary()}")


def tags(packet: Packet) -> list[tuple[int, int]]:
    """Ethernet type and VID of each tag, outermost first."""
    found = []
    kind, layer = packet.type, packet[Ether].payload
    while isinstance(layer, Dot1Q | Dot1AD):
        found.append((kind, int(layer.vlan)))
        kind, layer = layer.type, layer.payload
    return found
