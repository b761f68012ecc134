# SPDX-License-Identifier: Apache-2.0
"""What packets look like: frames of 64 bytes (of TCP over IPv6 80), all alike but for the client's address
and port, which the generator fills in.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import numpy as np
import numpy.typing as npt
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bench.flows.node import (
    BACK,
    BALANCED,
    ENDPOINT_PORT,
    ENDPOINTS,
    FRONT,
    ROUTER,
    SINGLE,
    VIPS,
    device_mac,
    host,
    neighbour_mac,
)

Array = npt.NDArray[Any]

FRAME_BYTES, FRAME_BYTES_MAX = 64, 80
# The first client by family: the last 17 bits are those of flows
CLIENTS = {4: "198.18.0.0", 6: "2001:2::"}
ETHERNET_BYTES, IP_BYTES = 14, {4: 20, 6: 40}
# Offsets in an IP header: the last four bytes of the addresses
SOURCE_AT, DESTINATION_AT = {4: 12, 6: 20}, {4: 16, 6: 36}
IPV4_CHECK_AT = 10
CHECK_AT = {"tcp": 16, "udp": 6}
CLIENT_ISN, SERVER_ISN = 1000, 7_000_000
PORT_BITS = 15


@dataclass(frozen=True)
class Shape:
    """Packets of one kind. `device`: that they arrive on; on the front they come from clients, on the back
    from the endpoint.
    """

    family: int
    protocol: str  # "tcp" or "udp"
    device: str
    frame: bytes

    def offsets(self) -> dict[str, int]:
        """Where the generator writes, as struct stream (bench/flows.bpf.c) has it."""
        layer4 = ETHERNET_BYTES + IP_BYTES[self.family]
        from_client = self.device == FRONT
        return {
            "address_at": ETHERNET_BYTES + (SOURCE_AT if from_client else DESTINATION_AT)[self.family],
            "port_at": layer4 + (0 if from_client else 2),
            "header_check_at": ETHERNET_BYTES + IPV4_CHECK_AT if self.family == 4 else 0,
            "check_at": layer4 + CHECK_AT[self.protocol],
        }


def conversation(family: int) -> tuple[Shape, Shape, Shape]:
    """UDP: a datagram to the service with one endpoint, its answer, and the datagram again."""
    datagram = _request(family, "udp", UDP(sport=0, dport=SINGLE))
    return datagram, _reply(family, "udp", UDP(sport=ENDPOINT_PORT, dport=0)), datagram


def handshake(family: int) -> tuple[Shape, Shape, Shape]:
    """The three packets of TCP to the service with one endpoint. The last one may follow again and again."""
    return (
        opening(family, SINGLE),
        _reply(family, "tcp", _segment(ENDPOINT_PORT, 0, "SA", SERVER_ISN, CLIENT_ISN + 1)),
        _request(family, "tcp", _segment(0, SINGLE, "A", CLIENT_ISN + 1, SERVER_ISN + 1)),
    )


def opening(family: int, port: int = BALANCED) -> Shape:
    """A SYN to a service."""
    return _request(family, "tcp", _segment(0, port, "S", CLIENT_ISN, 0))


def refusal(family: int) -> Shape:
    """A server's answer to a SYN, where nobody listens."""
    return _reply(family, "tcp", _segment(ENDPOINT_PORT, 0, "RA", 0, CLIENT_ISN + 1))


def _segment(sport: int, dport: int, flags: str, seq: int, ack: int) -> Packet:
    return TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack, window=8192)


def _request(family: int, protocol: str, above: Packet) -> Shape:
    return Shape(family, protocol, FRONT, _frame(family, FRONT, ROUTER, CLIENTS[family], VIPS[family], above))


def _reply(family: int, protocol: str, above: Packet) -> Shape:
    number = ENDPOINTS[0]
    frame = _frame(family, BACK, number, host(family, BACK, number), CLIENTS[family], above)
    return Shape(family, protocol, BACK, frame)


def _frame(family: int, device: str, sender: int, src: str, dst: str, above: Packet) -> bytes:
    link = Ether(src=neighbour_mac(device, sender), dst=device_mac(device))
    packet = link / (IPv6(src=src, dst=dst) if family == 6 else IP(src=src, dst=dst)) / above
    missing = FRAME_BYTES - len(bytes(packet))
    if missing < 0:
        missing += FRAME_BYTES_MAX - FRAME_BYTES
    # A datagram is as long as the frame; a segment carries nothing, and the frame's rest pads.
    return bytes(packet / Raw(bytes(missing))) if UDP in packet else bytes(packet) + bytes(missing)


# ---- numbers of flows ----


def numbers_of(slots: Array) -> Array:
    """The numbers of scattered flows whose opening entries are among these rows of struct flow4 or flow6; the
    inverse of what flows.bpf.c makes of a number.
    """
    source = slots["key_src"]
    last = source if source.ndim == 1 else np.ascontiguousarray(source[:, 12:]).view(">u4")[:, 0]
    base = int(ip_address(CLIENTS[4 if source.ndim == 1 else 6])) & 0xFFFFFFFF
    client = last.astype(np.uint32) - np.uint32(base)
    port = slots["flow"]["key_sport"].astype(np.uint32) & np.uint32((1 << PORT_BITS) - 1)
    return _gather(client << np.uint32(PORT_BITS) | port)


def _gather(number: Array) -> Array:
    """The finalizer of MurmurHash3 backwards."""
    number = number ^ number >> np.uint32(16)
    number = number * np.uint32(pow(0xC2B2AE35, -1, 1 << 32))
    number = number ^ number >> np.uint32(13) ^ number >> np.uint32(26)
    number = number * np.uint32(pow(0x85EBCA6B, -1, 1 << 32))
    gathered: Array = number ^ number >> np.uint32(16)
    return gathered
