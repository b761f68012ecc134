# SPDX-License-Identifier: Apache-2.0
"""Packets that cannot be: dropped under a reason, whatever the header they are wrong in. What is only wrong
above IP is Linux', which forwards it, unless something of clearway's own claims it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet, Raw

from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.checksums import ones_sum
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.firewall import firewall, rule
from tests.packet.frames import echo, ether, frame, icmp_error, ip_packet, l3, tcp, udp
from tests.packet.marks import IPV4, IPV6
from tests.packet.node import Node
from tests.packet.test_fragments import fragments, whole_packet

L3 = 14
DROPPED = ("drop_l4_short", "drop_l4_header", "drop_extension_header")


@pytest.fixture
def busy(node: Node, net: Net) -> Node:
    node.apply(
        [service(net), service(net, protocol="udp")],
        nat=[masquerade(net, source=net.any), masquerade(net, source=net.any, interface=BACK)],
    )
    return node


def patched(sent: bytes, at: int, value: bytes, *, repair: bool = True) -> bytes:
    """The frame with other bytes at an offset of layer 3; an IPv4 header gets its right checksum again."""
    made = bytearray(sent)
    made[L3 + at : L3 + at + len(value)] = value
    if made[L3] >> 4 == 4 and repair:
        made[L3 + 10 : L3 + 12] = b"\0\0"
        made[L3 + 10 : L3 + 12] = (ones_sum(bytes(made[L3 : L3 + 20])) ^ 0xFFFF).to_bytes(2, "big")
    return bytes(made)


def l4(net: Net) -> int:
    """Offset of layer 4 from layer 3."""
    return 20 if net.family == 4 else 40


@IPV4
@pytest.mark.parametrize("first", [0x05, 0x15, 0x35, 0x55, 0x65, 0xF5, 0x40, 0x41, 0x44])
def test_impossible_version_or_length_of_an_ipv4_header(busy: Node, net: Net, first: int) -> None:
    sent = frame(FRONT, net.client, net.vip, udp(40000, 80))
    assert busy.send(patched(sent, 0, bytes([first]), repair=False)).reason == "drop_ip_header"


@IPV6
@pytest.mark.parametrize("first", [0x00, 0x40, 0x45, 0x50, 0x70, 0xF0])
def test_impossible_version_of_an_ipv6_header(busy: Node, net: Net, first: int) -> None:
    sent = frame(FRONT, net.client, net.vip, udp(40000, 80))
    assert busy.send(patched(sent, 0, bytes([first]))).reason == "drop_ip_header"


@IPV4
def test_wrong_header_checksum(busy: Node, net: Net) -> None:
    sent = frame(FRONT, net.client, net.vip, udp(40000, 80))
    for bit in range(16):
        flipped = int.from_bytes(sent[L3 + 10 : L3 + 12], "big") ^ 1 << bit
        out = busy.send(patched(sent, 10, flipped.to_bytes(2, "big"), repair=False))
        assert out.reason == "drop_ip_header"


@IPV4
@pytest.mark.parametrize("length", [0, 1, 19, 34, 35, 1000, 0xFFFF])
def test_total_length_that_the_frame_does_not_hold(busy: Node, net: Net, length: int) -> None:
    sent = frame(FRONT, net.client, net.vip, udp(40000, 80, b"hello"))
    assert len(sent) == L3 + 33
    assert busy.send(patched(sent, 2, length.to_bytes(2, "big"))).reason == "drop_ip_length"


@IPV6
@pytest.mark.parametrize("length", [14, 15, 1000, 0xFFFF])
def test_payload_length_that_the_frame_does_not_hold(busy: Node, net: Net, length: int) -> None:
    sent = frame(FRONT, net.client, net.vip, udp(40000, 80, b"hello"))
    assert busy.send(patched(sent, 4, length.to_bytes(2, "big"))).reason == "drop_ip_length"


@pytest.mark.parametrize("above", ["tcp", "udp", "icmp"])
def test_total_length_that_cuts_the_layer_4_header(busy: Node, net: Net, above: str) -> None:
    """Whatever stands in the frame behind it is padding."""
    header = {
        "tcp": tcp(40000, 80, "S"),
        "udp": udp(40000, 80, b""),
        "icmp": echo(net.family, 7, payload=b""),
    }[above]
    sent = frame(FRONT, net.client, net.vip if above != "icmp" else net.server, header) + bytes(60)
    for there in range(20 if above == "tcp" else 8):
        length = there + (20 if net.family == 4 else 0)
        out = busy.send(patched(sent, 2 if net.family == 4 else 4, length.to_bytes(2, "big")))
        assert out.verdict == "drop", there
    assert busy.flows.entries() == 0


@pytest.mark.parametrize("offset", [0, 1, 4, 6, 15])
def test_impossible_data_offset_of_tcp(busy: Node, net: Net, offset: int) -> None:
    """Smaller than a header, or beyond the end of the packet."""
    sent = frame(FRONT, net.client, net.vip, tcp(40000, 80, "S"))
    out = busy.send(patched(sent, l4(net) + 12, bytes([offset << 4])))
    assert out.reason == "drop_l4_header"


@pytest.mark.parametrize("length", [0, 1, 7, 14, 1000, 0xFFFF])
def test_impossible_length_of_udp(busy: Node, net: Net, length: int) -> None:
    sent = frame(FRONT, net.client, net.vip, udp(40000, 80, b"hello"))
    out = busy.send(patched(sent, l4(net) + 4, length.to_bytes(2, "big")))
    assert out.reason == "drop_l4_header"


def test_udp_shorter_than_its_packet_is_forwarded(busy: Node, net: Net) -> None:
    """RFC 768 lets it: what follows belongs to nobody (UDP options)."""
    sent = frame(FRONT, net.client, net.vip, udp(40000, 80, b"hello"))
    out = busy.send(patched(sent, l4(net) + 4, b"\0\x0a"), checksums_right=False)
    assert out.verdict == "forward"


@IPV6
def test_destination_options_longer_than_the_packet(busy: Node, net: Net) -> None:
    sent = frame(FRONT, net.client, net.vip, IPv6ExtHdrDestOpt() / udp(40000, 80))
    for length in (1, 2, 3, 50, 255):
        assert busy.send(patched(sent, 41, bytes([length]))).verdict == "drop", length


@pytest.mark.parametrize("sent", [b"\xff" * 14, bytes(14), bytes(60), b"\x00" * 12 + b"\x08\x00"])
def test_frame_without_anything_inside(busy: Node, sent: bytes) -> None:
    if not busy.takes(sent):
        sent = sent.ljust(60, b"\0")
    assert busy.send(sent).verdict in ("punt", "drop")


def whole_packets(net: Net) -> dict[str, Packet]:
    about = l3(frame(BACK, net.client, net.endpoint, udp(40000, 8080, bytes(20))))
    packets = {
        "tcp": tcp(40000, 80, "S", options=[("MSS", 1460), ("WScale", 7)]),
        "udp": udp(40000, 80, b"payload"),
        "echo": echo(net.family, 7),
        "error": icmp_error("unreachable", about),
    }
    if net.family == 6:
        packets |= {
            "destination-options": IPv6ExtHdrDestOpt() / udp(40000, 80),
            "fragment": IPv6ExtHdrFragment(nh=17, m=1, id=7) / udp(40000, 80, bytes(24)),
        }
    return packets


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("tags", [0, 1, 2])
def test_packet_cut_at_any_length_is_never_forwarded(busy: Node, net: Net, tags: int, known: bool) -> None:
    """Every prefix of every header: a drop, or Linux sees what came (a tag of an unknown VLAN, for one)."""
    if known:
        Conversation(busy, net).open()
        Conversation(busy, net, proto="udp").open()
    ifindex = busy.world.ifindex[FRONT]
    if tags:
        busy.write(
            "vlan_v1", {"ifindex": ifindex, "outer": 5, "inner": 6 * (tags == 2)}, {"ifindex": ifindex}
        )
    for name, above in whole_packets(net).items():
        layer2 = ether(FRONT)
        for n in range(tags):
            layer2 /= Dot1Q(vlan=5 + n)
        dst = net.server if name == "echo" else net.vip
        whole = bytes(layer2 / ip_packet(net.client, dst, above))
        for length in range(14, len(whole)):
            if busy.takes(whole[:length]):
                assert busy.send(whole[:length]).verdict == "drop", (name, length)


# ---- malformed above IP ----


def first_fragment(net: Net, src: str, dst: str, proto: int, above: bytes) -> Packet:
    if net.family == 4:
        return IP(src=src, dst=dst, proto=proto, id=7, flags="MF") / Raw(above)
    return IPv6(src=src, dst=dst) / IPv6ExtHdrFragment(nh=proto, m=1, id=7) / Raw(above)


def malformed(net: Net, src: str, dst: str, device: str) -> dict[str, bytes]:
    """Frames that Linux forwards, whose ports, if they have any, nobody can tell for sure."""
    segment, datagram = (frame(device, src, dst, above) for above in (tcp(40000, 80, "S"), udp(40000, 80)))
    icmp = 1 if net.family == 4 else 58
    frames = {
        "first fragment of TCP": first_fragment(net, src, dst, 6, l3(segment)[l4(net) :][:8]),
        "nearly all of TCP": first_fragment(net, src, dst, 6, l3(segment)[l4(net) :][:16]),
        "first fragment of UDP": first_fragment(net, src, dst, 17, b""),
        "first fragment of ICMP": first_fragment(net, src, dst, icmp, b"\x08\0"),
        "TCP cut short": ip_packet(src, dst, Raw(bytes(19)), **{"proto" if net.family == 4 else "nh": 6}),
        "UDP cut short": ip_packet(src, dst, Raw(bytes(7)), **{"proto" if net.family == 4 else "nh": 17}),
    }
    made = {name: bytes(ether(device) / packet) for name, packet in frames.items()}
    made["data offset"] = patched(segment, l4(net) + 12, b"\x40")
    made["data offset beyond the end"] = patched(segment, l4(net) + 12, b"\xf0")
    made["length of UDP"] = patched(datagram, l4(net) + 4, b"\0\7")
    if net.family == 6:
        many: Packet = udp(40000, 80)
        for _ in range(7):
            many = IPv6ExtHdrDestOpt() / many
        made["extension headers"] = frame(device, src, dst, many)
        made["extension header cut short"] = patched(
            frame(device, src, dst, IPv6ExtHdrDestOpt() / udp(40000, 80)), 41, b"\xff"
        )
    return made


def test_malformed_packet_that_nothing_claims_is_linux_to_forward(node: Node, net: Net) -> None:
    for name, sent in malformed(net, net.client, net.inside, FRONT).items():
        assert node.send(sent).reason == "punt_malformed", name
    for name, sent in malformed(net, net.client, net.node(FRONT), FRONT).items():
        assert node.send(sent).reason == "punt_malformed", name


CLAIMS: dict[str, Callable[[Net], dict[str, Any]]] = {
    "service": lambda net: {"services": [service(net, net.inside)]},
    "nat": lambda net: {"nat": [masquerade(net)]},
    "firewall": lambda net: {"firewall": firewall(rule(), default="accept")},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_malformed_packet_that_is_claimed_is_dropped(node: Node, net: Net, claim: str) -> None:
    node.apply(**CLAIMS[claim](net))
    for name, sent in malformed(net, net.inside, net.server, BACK).items():
        assert node.send(sent, BACK).reason in DROPPED, name
    assert node.flows.entries() == 0


@pytest.mark.parametrize("claim", ["service", "nat"])
def test_malformed_packet_of_other_addresses_is_linux_to_forward(node: Node, net: Net, claim: str) -> None:
    node.apply(**CLAIMS[claim](net))
    for name, sent in malformed(net, net.client, net.endpoints[1], FRONT).items():
        assert node.send(sent).reason == "punt_malformed", name


@pytest.mark.parametrize("claimed", [False, True], ids=["unclaimed", "claimed"])
def test_fragments_behind_a_malformed_first_one_share_its_fate(node: Node, net: Net, claimed: bool) -> None:
    """Whatever ports a datagram with its identification has left before."""
    if claimed:
        node.apply(nat=[masquerade(net)])
    whole = whole_packet(net.inside, net.server, tcp(40000, 80, "S", payload=bytes(100)))
    first, later = fragments(BACK, whole, number=7)
    node.send(first, BACK)
    tiny = bytes(ether(BACK) / first_fragment(net, net.inside, net.server, 6, bytes(8)))
    reasons = [node.send(sent, BACK).reason for sent in (tiny, later)]
    assert reasons == (
        ["drop_l4_short", "drop_fragment_unknown"] if claimed else ["punt_malformed", "punt_fragment"]
    )


REPAIRS: dict[str, Callable[[bytes], bytes]] = {
    "source": lambda sent: patched(sent, 12, b"\0\0\0\0"),
    "ports": lambda sent: patched(sent, 20, b"\0\0\0\0"),
}


@IPV4
@pytest.mark.parametrize("what", REPAIRS)
def test_zero_addresses_and_ports_do_no_harm(busy: Node, net: Net, what: str) -> None:
    sent = REPAIRS[what](frame(FRONT, net.client, net.vip, udp(40000, 80)))
    assert busy.send(sent, checksums_right=False).verdict in ("forward", "punt", "drop")
