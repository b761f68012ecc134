# SPDX-License-Identifier: Apache-2.0
"""Recomputes every checksum of a frame from its bytes alone, without scapy and without the data path's
arithmetic (RFC 1071, RFC 768, RFC 9293, RFC 792, RFC 4443).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
TAGS = (0x8100, 0x88A8)
IPV4, IPV6 = 0x0800, 0x86DD
EXTENSIONS = (0, 43, 60)
FRAGMENT = 44
ICMP_ERRORS = {ICMP: (3, 11, 12), ICMPV6: (1, 2, 3, 4)}


def ones_sum(data: bytes) -> int:
    """Ones' complement sum of 16-bit words, an odd byte padded with zero."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Datagram:
    """An IP packet taken apart. `payload`: what the protocol's checksum covers, as far as it is there."""

    proto: int
    pseudo: bytes
    payload: bytes
    length: int
    fragmented: bool


def wrong_checksums(frame: bytes) -> list[str]:
    """What is wrong with an Ethernet frame's checksums and lengths; empty when all is right."""
    at, kind = 12, int.from_bytes(frame[12:14], "big")
    while kind in TAGS:
        at += 4
        kind = int.from_bytes(frame[at : at + 2], "big")
    if kind not in (IPV4, IPV6):
        return []
    return wrong_in_packet(frame[at + 2 :])


def wrong_in_packet(packet: bytes, *, quoted: bool = False) -> list[str]:
    """What is wrong with an IP packet. `quoted`: it stands in an ICMP error and may be cut short."""
    wrong = []
    if packet[0] >> 4 == 4:
        header = (packet[0] & 15) * 4
        if ones_sum(packet[:header]) != 0xFFFF:
            wrong.append("IPv4 header checksum")
        datagram = _ipv4(packet, header)
    else:
        datagram = _ipv6(packet)
    if len(datagram.payload) < datagram.length and not quoted:
        wrong.append(f"length: {datagram.length} promised, {len(datagram.payload)} there")
    if datagram.fragmented or len(datagram.payload) < datagram.length:
        return wrong
    return wrong + _wrong_payload(datagram)


def _ipv4(packet: bytes, header: int) -> Datagram:
    length = int.from_bytes(packet[2:4], "big") - header
    flags = int.from_bytes(packet[6:8], "big")
    payload = packet[header : header + length]
    pseudo = packet[12:20] + struct.pack(">BBH", 0, packet[9], length)
    return Datagram(packet[9], pseudo, payload, length, bool(flags & 0x3FFF))


def _ipv6(packet: bytes) -> Datagram:
    proto, at, end = packet[6], 40, 40 + int.from_bytes(packet[4:6], "big")
    fragmented = False
    while (proto in EXTENSIONS or proto == FRAGMENT) and len(packet) >= at + 8 and not fragmented:
        if proto == FRAGMENT:
            fragmented = bool(int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF9)
        size = 8 if proto == FRAGMENT else 8 + packet[at + 1] * 8
        proto, at = packet[at], at + size
    length = end - at
    pseudo = packet[8:40] + struct.pack(">IHBB", length, 0, 0, proto)
    return Datagram(proto, pseudo, packet[at:end], length, fragmented)


def _wrong_payload(datagram: Datagram) -> list[str]:
    proto, payload = datagram.proto, datagram.payload
    if len(payload) < (20 if proto == TCP else 8 if proto in (UDP, ICMP, ICMPV6) else 0):
        return [f"header of protocol {proto} cut short"]
    if proto == UDP and payload[6:8] == b"\0\0":
        return [] if len(datagram.pseudo) == 12 else ["UDP checksum 0 over IPv6"]
    if proto in (TCP, UDP, ICMPV6):
        right = ones_sum(datagram.pseudo + payload) == 0xFFFF
    elif proto == ICMP:
        right = ones_sum(payload) == 0xFFFF
    else:
        return []
    wrong = [] if right else [f"checksum of protocol {proto}"]
    if proto in ICMP_ERRORS and payload[0] in ICMP_ERRORS[proto] and len(payload) >= 28:
        wrong += [f"quoted: {what}" for what in wrong_in_packet(payload[8:], quoted=True)]
    return wrong
