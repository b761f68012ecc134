# SPDX-License-Identifier: Apache-2.0
"""Builds and reads packets, bytes only, because scapy is slow (RFC 791, 8200, 9293, 768, 792, 4443)."""

from __future__ import annotations

import functools
import socket
import struct
from dataclasses import dataclass

ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
TCP, UDP, ICMP, ICMP6, FRAGMENT = 6, 17, 1, 58, 44
HOP_BY_HOP = 0
MORE_FRAGMENTS, DONT_FRAGMENT = 0x2000, 0x4000
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128}
NUMBERS = {"tcp": TCP, "udp": UDP}
ECHO = {4: (8, 0), 6: (128, 129)}  # request, reply
FIRST_FRAGMENT = 8  # bytes, at least: ports, and of TCP no flags
NOP_OPTIONS = bytes([1, 1, 1, 0])  # of IPv4: three times nothing, end
PAD_OPTIONS = bytes([1, 4, 0, 0, 0, 0])  # of IPv6: PadN


@functools.cache
def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def unpacked(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def checksum(*pieces: bytes) -> int:
    """RFC 1071, over pieces of which only the last may be of odd length."""
    content = b"".join(pieces)
    total = sum(struct.unpack(f"!{len(content) // 2}H", content[: len(content) & ~1]))
    total += content[-1] << 8 if len(content) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


@dataclass(frozen=True)
class Header:
    """What an IP header is to say. `ident`: of IPv4 always, of IPv6 where it is fragmented."""

    source: str
    destination: str
    ttl: int = 64
    tos: int = 0
    ident: int = 0
    df: bool = False
    options: bool = False

    @property
    def family(self) -> int:
        return 6 if ":" in self.destination else 4

    @property
    def icmp(self) -> int:
        return ICMP6 if self.family == 6 else ICMP

    def pseudo(self, protocol: int, length: int) -> bytes:
        """What TCP's, UDP's and ICMPv6's checksums cover of it."""
        both = packed(self.source) + packed(self.destination)
        return both + (
            struct.pack("!II", length, protocol) if self.family == 6 else struct.pack("!HH", protocol, length)
        )


def ip(header: Header, protocol: int, above: bytes, fragment: int = 0) -> bytes:
    """A packet; `fragment` are the fragment offset in units of 8 bytes and MORE_FRAGMENTS."""
    return (_ipv6 if header.family == 6 else _ipv4)(header, protocol, above, fragment)


def _ipv4(header: Header, protocol: int, above: bytes, fragment: int) -> bytes:
    options = NOP_OPTIONS if header.options else b""
    words = 5 + len(options) // 4
    flags = fragment | (DONT_FRAGMENT if header.df else 0)
    first = [0x40 + words, header.tos, words * 4 + len(above), header.ident, flags, header.ttl, protocol]
    both = packed(header.source) + packed(header.destination)
    check = checksum(struct.pack("!BBHHHBBH", *first, 0), both, options)
    return struct.pack("!BBHHHBBH", *first, check) + both + options + above


def _ipv6(header: Header, protocol: int, above: bytes, fragment: int) -> bytes:
    if fragment:
        where = (fragment & 0x1FFF) << 3 | bool(fragment & MORE_FRAGMENTS)
        above = struct.pack("!BBHI", protocol, 0, where, header.ident) + above
        protocol = FRAGMENT
    if header.options:
        above = bytes([protocol, 0]) + PAD_OPTIONS + above
        protocol = HOP_BY_HOP
    first = struct.pack("!IHBB", 6 << 28 | header.tos << 20, len(above), protocol, header.ttl)
    return first + packed(header.source) + packed(header.destination) + above


def fragments(header: Header, protocol: int, above: bytes) -> list[bytes]:
    """Two fragments, the first one half of it; of a short segment, less than its header (RFC 1858)."""
    cut = max(FIRST_FRAGMENT, len(above) // 2 & ~7)
    return [
        ip(header, protocol, above[:cut], MORE_FRAGMENTS),
        ip(header, protocol, above[cut:], cut // 8),
    ]


def tcp(
    header: Header, ports: tuple[int, int], flags: str, seq: int, ack: int, payload: bytes = b""
) -> bytes:
    bits = sum(FLAGS[letter] for letter in set(flags))
    mss = struct.pack("!BBH", 2, 4, 1460) if "S" in flags else b""
    start = struct.pack("!HHII", *ports, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF)
    start += struct.pack("!BBH", (20 + len(mss)) * 4, bits, 0xFFFF)
    rest = struct.pack("!H", 0) + mss + payload
    length = len(start) + 2 + len(rest)
    return start + struct.pack("!H", checksum(header.pseudo(TCP, length), start, rest)) + rest


def udp(header: Header, ports: tuple[int, int], payload: bytes) -> bytes:
    start = struct.pack("!HHH", *ports, 8 + len(payload))
    check = checksum(header.pseudo(UDP, 8 + len(payload)), start, payload) or 0xFFFF
    return start + struct.pack("!H", check) + payload


def icmp(header: Header, kind: int, code: int, word: int, content: bytes) -> bytes:
    """`word` is the header's second one: identifier and sequence number, or the MTU."""
    rest = struct.pack("!I", word) + content
    pseudo = header.pseudo(ICMP6, 4 + len(rest)) if header.family == 6 else b""
    return struct.pack("!BBH", kind, code, checksum(pseudo, bytes([kind, code]), rest)) + rest


@dataclass(frozen=True)
class Seen:
    """What of a packet tells whose it is. `ports`: of ICMP its identifier, twice; None: a later fragment.

    `numbered`: an IPv6 fragment, whose number Linux' conntrack makes up anew.
    """

    source: str
    destination: str
    protocol: int
    ports: tuple[int, int] | None
    numbered: bool


def read(packet: bytes) -> Seen:
    """Takes an IP packet apart as far as it goes."""
    if packet[0] >> 4 == 4:
        protocol, at = packet[9], (packet[0] & 15) * 4
        source, destination = packet[12:16], packet[16:20]
        later, numbered = bool(struct.unpack_from("!H", packet, 6)[0] & 0x1FFF), False
    else:
        protocol, at = packet[6], 40
        source, destination = packet[8:24], packet[24:40]
        later = numbered = False
        while protocol in (HOP_BY_HOP, FRAGMENT):
            numbered = numbered or protocol == FRAGMENT
            later = later or (protocol == FRAGMENT and packet[at + 2 : at + 4] > b"\0\7")
            protocol, at = packet[at], at + 8 + packet[at + 1] * 8 * (protocol == HOP_BY_HOP)
    ports = None
    if not later and protocol in (TCP, UDP) and len(packet) >= at + 4:
        ports = struct.unpack_from("!HH", packet, at)
    elif not later and protocol in (ICMP, ICMP6) and len(packet) >= at + 6:
        ports = struct.unpack_from("!H", packet, at + 4) * 2
    return Seen(unpacked(source), unpacked(destination), protocol, ports, numbered)
