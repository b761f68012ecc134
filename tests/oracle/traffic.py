# SPDX-License-Identifier: Apache-2.0
"""Both ends of all connections of a case: says what they put on the wire next, and learns from what arrives.

A server knows a connection by the addresses its packets arrive with; so it answers to the translation of the
lab that it is in. Sequence numbers go by the script: as if everything had arrived. Once an end has reset a
connection, what would open or close it is a reset, too: whether Linux has believed the first depends on
packets that it has not seen (docs/transparent.md), and so does what it makes of those.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.oracle import frames, network
from tests.oracle.case import Flow, Send, What
from tests.oracle.frames import Header, Seen

GSO_SEGMENT = 1200  # bytes
OUTSIDE = 0x20000000
TCP_FLAGS: Mapping[What, str] = {
    "syn": "S",
    "syn-ack": "SA",
    "ack": "A",
    "data": "A",
    "again": "A",
    "outside": "A",
    "fin": "FA",
    "rst": "RA",
}
OPENS_OR_CLOSES = ("syn", "syn-ack", "fin")
ERRORS: Mapping[What, Mapping[int, tuple[int, int, int]]] = {  # type, code, second word
    "unreachable": {4: (3, 3, 0), 6: (1, 4, 0)},
    "too-big": {4: (3, 4, 1300), 6: (2, 0, 1300)},
    "expired": {4: (11, 0, 0), 6: (3, 0, 0)},
}
QUOTED = {4: 128, 6: 512}  # bytes of a packet that an error quotes


@dataclass(frozen=True)
class Injection:
    """A packet to put on a segment. `gso` > 0: one of TCP, to be cut into segments of that many bytes, its
    checksum still that of the pseudo header alone."""

    segment: str
    packet: bytes
    gso: int = 0


@dataclass
class _End:
    """One end of a flow: where its packets are put, to whom it sends, and the last packet that it got."""

    segment: str
    source: str
    destination: str
    ports: tuple[int, int]
    next: int
    last: bytes = b""  # the last data
    got: bytes = b""


@dataclass
class _Talk:
    flow: Flow
    near: _End = field(init=False)
    far: _End = field(init=False)
    reset: bool = False

    def __post_init__(self) -> None:
        flow = self.flow
        client = network.address(flow.segment, network.HOSTS[flow.client], flow.family)
        server = network.server(flow.server, flow.family)
        ports = (flow.sport, flow.sport if flow.protocol == "icmp" else flow.dport)
        self.near = _End(flow.segment, client, server, ports, 1_000_000)
        self.far = _End(network.SERVERS[flow.server], server, client, ports[::-1], 5_000_000)

    @property
    def number(self) -> int:
        """The protocol's."""
        if self.flow.protocol == "icmp":
            return frames.ICMP if self.flow.family == 4 else frames.ICMP6
        return frames.NUMBERS[self.flow.protocol]

    def ends(self, back: bool) -> tuple[_End, _End]:
        """Who sends, who is to get it."""
        return (self.far, self.near) if back else (self.near, self.far)


class Conversation:
    """The flows of a case in one lab. `ident` numbers packets (IPv4's identification)."""

    def __init__(self, flows: Sequence[Flow], ident: int) -> None:
        self._talks = [_Talk(flow) for flow in flows]
        self._ident = ident

    def say(self, send: Send) -> list[Injection]:
        """What `send` puts on the wire."""
        talk = self._talks[send.flow]
        if talk.reset and send.what in OPENS_OR_CLOSES:
            send = replace(send, what="rst")
        talk.reset |= send.what == "rst"
        sender, other = talk.ends(send.back)
        self._ident = (self._ident + 1) & 0xFFFF
        header = Header(
            sender.source,
            sender.destination,
            send.ttl,
            send.tos,
            self._ident,
            df=send.shape in ("df", "gso"),
            options=send.shape == "options",
        )
        if send.what in ERRORS:
            error = _error(send.what, header, sender.got)
            packets = [frames.ip(header, header.icmp, error)] if sender.got else []
            return [Injection(sender.segment, packet) for packet in packets]
        above = _transport(talk, send, header, sender, other)
        return list(_shaped(send, header, talk.number, above, sender.segment))

    def learn(self, send: Send, arrived: Mapping[str, Sequence[bytes]]) -> None:
        """Take what has arrived after `send`: packets by segment."""
        talk = self._talks[send.flow]
        if send.what in ERRORS:
            return
        sender, other = talk.ends(send.back)
        for segment, packets in arrived.items():
            for packet in packets:
                seen = frames.read(packet)
                if seen.protocol == talk.number and seen.ports and seen.destination != sender.source:
                    other.got = b"" if seen.numbered else packet
                    if not send.back:
                        _turn(other, segment, seen)


def _turn(far: _End, segment: str, seen: Seen) -> None:
    """The server answers to where the packet seems to come from."""
    assert seen.ports is not None
    far.segment, far.source, far.destination = segment, seen.destination, seen.source
    far.ports = seen.ports[::-1]


def _payload(send: Send, sender: _End) -> bytes:
    if send.what == "again" and sender.last:
        return sender.last
    return bytes((send.flow + place) & 0xFF for place in range(send.size))


def _transport(talk: _Talk, send: Send, header: Header, sender: _End, other: _End) -> bytes:
    payload = _payload(send, sender)
    if talk.flow.protocol == "udp":
        return frames.udp(header, sender.ports, payload)
    if talk.flow.protocol == "icmp":
        return frames.icmp(
            header, frames.ECHO[header.family][send.back], 0, sender.ports[0] << 16 | 1, payload
        )
    flags = TCP_FLAGS[send.what] + send.flags
    carries = send.what in ("data", "again", "outside")
    segment = payload if carries else b""
    seq = sender.next
    if send.what == "again":
        seq -= len(segment)
    elif send.what == "outside":
        seq += OUTSIDE
    else:
        sender.next += len(segment) + ("S" in flags) + ("F" in flags)
    if send.what == "data":
        sender.last = payload[-GSO_SEGMENT:]
    return frames.tcp(header, sender.ports, flags, seq, other.next if "A" in flags else 0, segment)


def _shaped(send: Send, header: Header, number: int, above: bytes, segment: str) -> Iterator[Injection]:
    if send.shape in ("fragments", "backwards") and len(above) > frames.FIRST_FRAGMENT:
        cut = frames.fragments(header, number, above)
        for packet in cut if send.shape == "fragments" else cut[::-1]:
            yield Injection(segment, packet)
    elif send.shape == "gso" and number == frames.TCP and send.what == "data" and send.size > GSO_SEGMENT:
        partial = ~frames.checksum(header.pseudo(number, len(above))) & 0xFFFF
        above = above[:16] + struct.pack("!H", partial) + above[18:]
        yield Injection(segment, frames.ip(header, number, above), GSO_SEGMENT)
    else:
        yield Injection(segment, frames.ip(header, number, above))


def _error(what: What, header: Header, about: bytes) -> bytes:
    kind, code, word = ERRORS[what][header.family]
    return frames.icmp(header, kind, code, word, about[: QUOTED[header.family]])
