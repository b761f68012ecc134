# SPDX-License-Identifier: Apache-2.0
"""Checksums with a special meaning: no UDP checksum, a UDP checksum that comes out as zero, wrong ones."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.packet import Raw

from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.checksums import ones_sum
from tests.packet.conversation import Conversation, service
from tests.packet.frames import frame, icmp_error, l3, network, udp
from tests.packet.marks import IPV4, IPV6
from tests.packet.node import Node


@pytest.fixture
def talk(node: Node, net: Net) -> Conversation:
    node.apply([service(net, protocol="udp", mode="full-nat")])
    return Conversation(node, net, proto="udp").open()


def without_checksum(talk: Conversation) -> bytes:
    above = udp(talk.arrives.sport, talk.arrives.dport)
    above.chksum = 0
    return frame(FRONT, talk.arrives.src, talk.arrives.dst, above)


@IPV4
def test_udp_without_checksum_stays_without(node: Node, talk: Conversation) -> None:
    out = node.send(without_checksum(talk))
    assert (out.reason, out.packet[UDP].chksum) == ("forward_flow", 0)


@IPV4
def test_first_udp_packet_without_checksum_stays_without(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp", mode="full-nat")])
    out = node.send(without_checksum(Conversation(node, net, proto="udp")))
    assert (out.reason, out.packet[UDP].chksum) == ("forward_new", 0)


@IPV6
def test_udp_over_ipv6_without_checksum_stays_without(node: Node, talk: Conversation) -> None:
    """Tunnels may (RFC 6935); nothing that could be updated is there."""
    out = node.send(without_checksum(talk), checksums_right=False)
    assert (out.reason, out.packet[UDP].chksum) == ("forward_flow", 0)


def zero_sum_payload(net: Net, src: str, dst: str, sport: int, dport: int) -> bytes:
    """Two bytes that make the UDP checksum of such a datagram come out as 0, sent as 0xffff."""
    for first in (b"\0\0", b"\x11\x11"):
        probe = l3(frame(FRONT, src, dst, udp(sport, dport, first)))
        header = 40 if net.family == 6 else 20
        total = 0xFFFF ^ UDP(probe[header:]).chksum
        payload = int((int.from_bytes(first, "big") + 0xFFFF - total) % 0xFFFF).to_bytes(2, "big")
        if UDP(l3(frame(FRONT, src, dst, udp(sport, dport, payload)))[header:]).chksum == 0xFFFF:
            return payload
    raise AssertionError("no payload found")


def test_computed_zero_is_sent_as_ffff(node: Node, net: Net, talk: Conversation) -> None:
    """RFC 768, RFC 8200 8.1: zero would mean that there is no checksum."""
    way = talk.leaves
    payload = zero_sum_payload(net, way.src, way.dst, way.sport, way.dport)
    out = talk.client(payload=payload)
    assert out.packet[UDP].chksum == 0xFFFF


def test_ffff_becomes_what_it_should(node: Node, net: Net, talk: Conversation) -> None:
    way = talk.arrives
    payload = zero_sum_payload(net, way.src, way.dst, way.sport, way.dport)
    out = talk.client(payload=payload)
    assert UDP(l3(out.sent)[40 if net.family == 6 else 20 :]).chksum == 0xFFFF
    assert out.packet[UDP].chksum not in (0, 0xFFFF)


def test_quoted_ffff_is_not_turned_into_none(node: Node, net: Net, talk: Conversation) -> None:
    """The receiver of an ICMP error finds the datagram as it sent it."""
    way = talk.arrives
    went = talk.client(payload=zero_sum_payload(net, way.src, way.dst, way.sport, way.dport))
    error = frame(BACK, net.endpoint, talk.leaves.src, icmp_error("unreachable", l3(went.frame)))
    out = node.send(error, BACK)
    header = 40 if net.family == 6 else 20
    assert UDP(bytes(network(out.packet))[header + 8 + header :]).chksum == 0xFFFF


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_wrong_checksum_stays_wrong(node: Node, net: Net, proto: str) -> None:
    """The difference is applied, nothing is recomputed: its receiver must notice what the way here broke."""
    node.apply([service(net, protocol=proto, mode="full-nat")])
    talk = Conversation(node, net, proto=proto).open()
    good = talk.client_frame("A", payload=b"payload!")
    bad = good[:-1] + bytes([good[-1] ^ 0x40])
    header = 40 if net.family == 6 else 20
    out = node.send(bad, checksums_right=False)
    layer = network(out.packet)
    data = bytes(layer)[header:]
    pseudo = bytes(layer)[8:40] if net.family == 6 else bytes(layer)[12:20]
    total = ones_sum(
        pseudo + (6 if proto == "tcp" else 17).to_bytes(2, "big") + len(data).to_bytes(2, "big") + data
    )
    assert total != 0xFFFF


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_many_payloads_keep_right_checksums(node: Node, net: Net, proto: str) -> None:
    """Every carry of the incremental arithmetic; the harness recomputes each frame's sums."""
    node.apply([service(net, protocol=proto, mode="full-nat")])
    talk = Conversation(node, net, proto=proto).open()
    layer = TCP if proto == "tcp" else UDP
    seen = set()
    for word in range(0, 0x10000, 331):
        out = talk.client(payload=word.to_bytes(2, "big") + b"\xff\xff")
        assert out.packet[layer].haslayer(Raw)
        seen.add(int(out.packet[layer].chksum))
    assert len(seen) > 150
