# SPDX-License-Identifier: Apache-2.0
"""TC and what devices do for the stack: finish checksums (CHECKSUM_PARTIAL), cut large segments (GSO). Frames
are sent for real, as a local sender or a virtual machine hands them to the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet

from tests.packet.addresses import BACK, FRONT, NARROW, NARROW_MTU, Net
from tests.packet.checksums import ones_sum, wrong_checksums, wrong_in_packet
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import hop_limit, l3, network, ports
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node
from tests.packet.wire import GSO_TCPV4, GSO_TCPV6, Arrived, Offload, Reasons, Wire, unicast
from tests.packet.world import World


@pytest.fixture(scope="module", params=["tc"])
def hook(request: pytest.FixtureRequest, world: World) -> Iterator[str]:
    with world.attached(request.param):
        yield str(request.param)


def l4_offset(net: Net) -> int:
    return 34 if net.family == 4 else 54


def partial(net: Net, frame: bytes, proto: str) -> tuple[bytes, Offload]:
    """The frame with its layer 4 checksum left to the device: the sum of the pseudo header in its place."""
    start, offset = l4_offset(net), 16 if proto == "tcp" else 6
    packet = l3(frame)
    addresses = packet[12:20] if net.family == 4 else packet[8:40]
    pseudo = (
        addresses + (6 if proto == "tcp" else 17).to_bytes(2, "big") + (len(frame) - start).to_bytes(2, "big")
    )
    at = start + offset
    return frame[:at] + ones_sum(pseudo).to_bytes(2, "big") + frame[at + 2 :], Offload(start, offset)


def send_partial(wire: Wire, talk: Conversation, device: str, frame: bytes) -> None:
    made, offload = partial(talk.net, frame, talk.proto)
    wire.send(device, made, offload)


@PROTOCOLS
@pytest.mark.parametrize("mode", ["nat", "full-nat"])
def test_partial_checksum_stays_partial_and_comes_out_right(
    node: Node, net: Net, wire: Wire, proto: str, mode: str
) -> None:
    """expect() puts in what the device would, and recomputes everything."""
    node.apply([service(net, protocol=proto, mode=mode)])
    talk = Conversation(node, net, proto=proto)
    send_partial(wire, talk, FRONT, talk.client_frame("S"))
    out = wire.expect(BACK, unicast)
    assert out.offload.csum_start == l4_offset(net)
    assert network(out.packet).dst == net.endpoint
    talk.leaves = talk.leaves_of(out.packet)
    send_partial(wire, talk, BACK, talk.server_frame("SA", payload=b"odd"))
    back = wire.expect(FRONT, unicast)
    assert back.offload.csum_start == l4_offset(net)
    assert (network(back.packet).src, ports(back.packet)) == (net.vip, (80, 40000))


@PROTOCOLS
def test_partial_checksum_is_masqueraded(node: Node, net: Net, wire: Wire, proto: str) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2999")])
    talk = Conversation(node, net, proto=proto, inside=True)
    send_partial(wire, talk, BACK, talk.client_frame("S"))
    out = wire.expect(FRONT, unicast)
    assert out.offload.csum_start and network(out.packet).src == net.node(FRONT)


@PROTOCOLS
@pytest.mark.parametrize("size", [0, 3, 4, 10, 100, 1000])
def test_answer_quotes_the_checksum_that_the_device_would_have_sent(
    node: Node, net: Net, wire: Wire, proto: str, size: int
) -> None:
    """Time exceeded about a packet whose checksum is not finished: the ICMP checksum has to be right on the
    wire, where the quoted one is finished.
    """
    node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto)
    send_partial(wire, talk, FRONT, talk.client_frame("S", ttl=1, payload=bytes(size)))
    out = wire.expect(FRONT, unicast)
    assert (network(out.packet).src, network(out.packet).dst) == (net.node(FRONT), net.client)
    assert wrong_checksums(out.finished) == []


@PROTOCOLS
def test_reset_answers_a_partial_segment(node: Node, net: Net, wire: Wire, proto: str) -> None:
    node.apply([service(net)], midstream="reset")
    talk = Conversation(node, net)
    send_partial(wire, talk, FRONT, talk.client_frame("A" if proto == "tcp" else "PA", payload=b"x" * 101))
    out = wire.expect(FRONT, unicast)
    assert str(out.packet[TCP].flags) == "R"
    assert (network(out.packet).src, network(out.packet).dst) == (net.vip, net.client)


# ---- segments to be cut ----


def large(
    talk: Conversation, net: Net, size: int, segment: int, *, dont_fragment: bool = True
) -> tuple[bytes, Offload]:
    """A TCP segment of `size` bytes of payload, to be cut into segments of `segment` bytes."""
    payload = bytes(n * 13 & 255 for n in range(size))
    frame = talk.client_frame("A", payload=payload)
    if net.family == 4 and dont_fragment:
        packet = IP(l3(frame))
        packet.flags, packet.chksum = "DF", None
        frame = frame[:14] + bytes(packet)
    made, offload = partial(net, frame, "tcp")
    kind = GSO_TCPV4 if net.family == 4 else GSO_TCPV6
    return made, Offload(offload.csum_start, offload.csum_offset, kind, segment)


def cut(net: Net, arrived: Arrived) -> list[bytes]:
    """The IP packets that a device would send of a captured large segment, checksums computed."""
    start = l4_offset(net)
    segment: Packet = TCP(arrived.frame[start:])
    payload, layer = bytes(segment.payload), network(arrived.packet)
    pieces = []
    for at in range(0, len(payload), arrived.offload.gso_size):
        head = TCP(bytes(segment)[: segment.dataofs * 4])
        head.seq, head.chksum = segment.seq + at, None
        above = head / payload[at : at + arrived.offload.gso_size]
        if net.family == 4:
            whole: Packet = IP(src=layer.src, dst=layer.dst, ttl=layer.ttl) / above
        else:
            whole = type(layer)(src=layer.src, dst=layer.dst, hlim=layer.hlim) / above
        pieces.append(bytes(whole))
    return pieces


def test_large_segment_stays_large(node: Node, net: Net, wire: Wire) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net).open()
    reasons = Reasons(node.world)
    sent, offload = large(talk, net, 10_000, 1400)
    wire.send(FRONT, sent, offload)
    out = wire.expect(BACK, unicast)
    assert (out.offload.gso_size, out.offload.gso_type) == (1400, offload.gso_type)
    assert (network(out.packet).dst, ports(out.packet), hop_limit(out.packet)) == (
        net.endpoint,
        (40000, 8080),
        63,
    )
    assert bytes(out.packet[TCP].payload) == sent[-10_000:]
    assert reasons.counted() == {"forward_flow": 1}


def test_large_segment_has_the_right_pseudo_header_sum(node: Node, net: Net, wire: Wire) -> None:
    """What the device cuts gets right checksums only if that sum is right."""
    node.apply([service(net, mode="full-nat")])
    talk = Conversation(node, net).open()
    wire.send(FRONT, *large(talk, net, 5000, 1000))
    out = wire.expect(BACK, unicast)
    expected, _ = partial(net, out.frame, "tcp")
    assert out.frame == expected
    assert all(wrong_in_packet(piece) == [] for piece in cut(net, out))


def test_large_segment_may_be_larger_than_the_mtu(node: Node, net: Net, wire: Wire) -> None:
    """Each of its segments fits."""
    node.apply([service(net, net.narrow_endpoint)])
    talk = Conversation(node, net, server_device=NARROW).open()
    header = 40 if net.family == 4 else 60
    wire.send(FRONT, *large(talk, net, 8000, NARROW_MTU - header))
    out = wire.expect(NARROW, unicast)
    assert network(out.packet).dst == net.narrow_endpoint


def test_large_segment_whose_segments_do_not_fit_is_answered(node: Node, net: Net, wire: Wire) -> None:
    node.apply([service(net, net.narrow_endpoint)])
    talk = Conversation(node, net, server_device=NARROW).open()
    header = 40 if net.family == 4 else 60
    reasons = Reasons(node.world)
    sent, offload = large(talk, net, 8000, NARROW_MTU - header + 1)
    wire.send(FRONT, sent, offload)
    out = wire.expect(FRONT, unicast)
    assert reasons.counted() == {"answer_too_big": 1}
    assert wire.nothing(NARROW)
    told = bytes(network(out.packet))[28 if net.family == 4 else 48 :]
    sender, receiver = told[12:20] if net.family == 4 else told[8:40], l3(sent)
    assert sender == (receiver[12:20] if net.family == 4 else receiver[8:40])


def test_flow_counts_a_large_segment_once(node: Node, net: Net, wire: Wire) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net).open()
    before = node.flows.connection()
    sent, offload = large(talk, net, 10_000, 1400)
    wire.send(FRONT, sent, offload)
    wire.expect(BACK, unicast)
    after = node.flows.connection()
    assert (after.packets - before.packets, after.bytes - before.bytes) == (1, len(sent))


def test_partial_udp_never_leaves_without_a_checksum(node: Node, net: Net, wire: Wire) -> None:
    node.apply([service(net, protocol="udp", mode="full-nat")])
    talk = Conversation(node, net, proto="udp")
    for number in range(50):
        send_partial(wire, talk, FRONT, talk.client_frame(payload=number.to_bytes(2, "big")))
        out = wire.expect(BACK, unicast)
        assert out.offload.csum_start
        assert UDP(out.finished[l4_offset(net) :]).chksum != 0
