# SPDX-License-Identifier: Apache-2.0
"""Fragments: the first carries the ports, the others follow it. IPv4's in its header, IPv6's in a header of
their own.
"""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.checksums import ones_sum, wrong_in_packet
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import echo, ether, frame, identifier, l3, network, ports, tcp, udp
from tests.packet.marks import IPV4, IPV6, PROTOCOLS
from tests.packet.node import Node

FIRST = 64
"""Bytes of layer 4 in the first fragment."""


def fragments(
    device: str, whole: Packet, *, number: int = 4711, size: int = FIRST, ttl: int = 64
) -> list[bytes]:
    """Frames with the fragments of an IP packet, `size` bytes of layer 4 each."""
    data = bytes(whole)
    header = 40 if isinstance(whole, IPv6) else 20
    above, proto = data[header:], whole.nh if isinstance(whole, IPv6) else whole.proto
    made = []
    for at in range(0, len(above), size):
        part, more = above[at : at + size], at + size < len(above)
        if isinstance(whole, IPv6):
            piece: Packet = IPv6(src=whole.src, dst=whole.dst, hlim=ttl, nh=44)
            piece /= IPv6ExtHdrFragment(nh=proto, offset=at // 8, m=more, id=number)
        else:
            flags = "MF" if more else 0
            piece = IP(
                src=whole.src, dst=whole.dst, ttl=ttl, proto=proto, id=number, frag=at // 8, flags=flags
            )
        made.append(bytes(ether(device) / piece / Raw(part)))
    return made


def whole_packet(src: str, dst: str, above: Packet) -> Packet:
    packet = IPv6(src=src, dst=dst) / above if ":" in dst else IP(src=src, dst=dst) / above
    return type(packet)(bytes(packet))


def reassembled(frames: list[bytes]) -> bytes:
    """The IP packet that its receiver makes of the fragments."""
    first = l3(frames[0])
    if first[0] >> 4 == 6:
        above = b"".join(l3(piece)[48:] for piece in frames)
        return first[:4] + len(above).to_bytes(2, "big") + first[40:41] + first[7:40] + above
    above = b"".join(l3(piece)[20:] for piece in frames)
    header = (
        first[:2]
        + (20 + len(above)).to_bytes(2, "big")
        + first[4:6]
        + b"\0\0"
        + first[8:10]
        + b"\0\0"
        + first[12:20]
    )
    return header[:10] + (ones_sum(header) ^ 0xFFFF).to_bytes(2, "big") + header[12:] + above


def datagram(proto: str, sport: int, dport: int, size: int = 200) -> Packet:
    payload = bytes(n * 3 & 255 for n in range(size))
    return tcp(sport, dport, "A", payload=payload) if proto == "tcp" else udp(sport, dport, payload)


@PROTOCOLS
def test_fragments_to_a_service_arrive_whole(node: Node, net: Net, proto: str) -> None:
    node.apply([service(net, protocol=proto, mode="full-nat")])
    Conversation(node, net, proto=proto).open()
    outcomes = [
        node.send(piece)
        for piece in fragments(FRONT, whole_packet(net.client, net.vip, datagram(proto, 40000, 80)))
    ]
    assert [out.reason for out in outcomes] == ["forward_state"] + ["forward_fragment"] * (len(outcomes) - 1)
    packet = reassembled([out.frame for out in outcomes])
    assert wrong_in_packet(packet) == []
    first = network(outcomes[0].packet)
    assert (first.src, first.dst) == (net.node(BACK), net.endpoint)
    assert packet[-100:] == bytes(whole_packet(net.client, net.vip, datagram(proto, 40000, 80)))[-100:]


def test_first_fragment_opens_a_flow(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    first, later, *_ = fragments(FRONT, whole_packet(net.client, net.vip, datagram("udp", 40000, 80)))
    assert node.send(first).reason == "forward_new"
    out = node.send(later)
    assert (out.reason, network(out.packet).dst) == ("forward_fragment", net.endpoint)
    assert node.flows.connection().packets == 2


def test_fragments_of_a_reply_come_from_the_service(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    Conversation(node, net, proto="udp").open()
    outcomes = [
        node.send(piece, BACK)
        for piece in fragments(BACK, whole_packet(net.endpoint, net.client, datagram("udp", 8080, 40000)))
    ]
    assert {network(out.packet).src for out in outcomes} == {net.vip}
    assert wrong_in_packet(reassembled([out.frame for out in outcomes])) == []


def test_fragments_are_masqueraded(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2999")])
    outcomes = [
        node.send(piece, BACK)
        for piece in fragments(BACK, whole_packet(net.inside, net.server, datagram("udp", 40000, 53)))
    ]
    assert {network(out.packet).src for out in outcomes} == {net.node(FRONT)}
    assert wrong_in_packet(reassembled([out.frame for out in outcomes])) == []


def test_fragments_of_a_large_ping_are_masqueraded(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2999")])
    whole = whole_packet(net.inside, net.server, echo(net.family, 7, payload=bytes(200)))
    outcomes = [node.send(piece, BACK) for piece in fragments(BACK, whole)]
    assert [out.verdict for out in outcomes] == ["forward"] * len(outcomes)
    packet = reassembled([out.frame for out in outcomes])
    assert wrong_in_packet(packet) == []
    assert 2000 <= identifier(outcomes[0].packet) <= 2999


def test_later_fragments_in_any_order_follow_the_first(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    first, *later = fragments(FRONT, whole_packet(net.client, net.vip, datagram("udp", 40000, 80)))
    node.send(first)
    for piece in reversed(later):
        assert node.send(piece).reason == "forward_fragment"
    assert node.send(later[0]).reason == "forward_fragment"


def test_two_datagrams_do_not_mix(node: Node, net: Net) -> None:
    """Same addresses, other identification: other ports, other endpoints."""
    node.apply([service(net, *net.endpoints[:2], protocol="udp", algorithm="round-robin")])
    one = fragments(FRONT, whole_packet(net.client, net.vip, datagram("udp", 40000, 80)), number=1)
    two = fragments(FRONT, whole_packet(net.client, net.vip, datagram("udp", 40001, 80)), number=2)
    firsts = [network(node.send(pieces[0]).packet).dst for pieces in (one, two)]
    laters = [network(node.send(pieces[1]).packet).dst for pieces in (one, two)]
    assert firsts == laters and firsts[0] != firsts[1]


def test_later_fragment_of_an_unknown_datagram_goes_to_linux(node: Node, net: Net) -> None:
    _, later, *_ = fragments(FRONT, whole_packet(net.client, net.server, datagram("udp", 40000, 80)))
    assert node.send(later).reason == "punt_fragment"


def test_later_fragment_before_its_first_is_not_sent_with_a_private_source(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    first, later, *_ = fragments(BACK, whole_packet(net.inside, net.server, datagram("udp", 40000, 53)))
    assert node.send(later, BACK).reason == "drop_fragment_unknown"
    assert node.send(first, BACK).reason == "forward_new"
    assert node.send(later, BACK).reason == "forward_fragment"


def test_later_fragment_before_its_first_is_not_sent_with_the_service_address(node: Node, net: Net) -> None:
    """Linux would route it to whoever has the address, or answer that nobody has."""
    node.apply([service(net, protocol="udp")])
    _, later, *_ = fragments(FRONT, whole_packet(net.client, net.vip, datagram("udp", 40000, 80)))
    assert node.send(later).reason == "drop_fragment_unknown"


def test_later_fragment_of_a_reply_before_its_first_does_not_show_the_endpoint(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    Conversation(node, net, proto="udp").open()
    _, later, *_ = fragments(BACK, whole_packet(net.endpoint, net.client, datagram("udp", 8080, 40000)))
    assert node.send(later, BACK).reason == "drop_fragment_unknown"


def test_ports_of_an_old_datagram_are_not_believed(node: Node, net: Net) -> None:
    """Identifications come again; 30 seconds as in Linux."""
    node.apply(nat=[masquerade(net)])
    first, later, *_ = fragments(BACK, whole_packet(net.inside, net.server, datagram("udp", 40000, 53)))
    node.send(first, BACK)
    table = node.datapath.table("fragment_v1")
    keys, rows = table.items()
    clock = node.datapath.clock()
    rows["seen"] = (clock.jiffies - 31 * clock.hz) & 0xFFFFFFFF
    table.update(keys, rows)
    assert node.send(later, BACK).reason == "drop_fragment_unknown"


def test_whole_datagram_is_no_fragment(node: Node, net: Net) -> None:
    """IPv4 with DF set; IPv6 with a fragment header that has nothing more (RFC 6946)."""
    node.apply([service(net, protocol="udp")])
    talk = Conversation(node, net, proto="udp").open()
    above = udp(40000, 80)
    if net.family == 4:
        whole = frame(FRONT, net.client, net.vip, above, flags="DF")
    else:
        whole = frame(FRONT, net.client, net.vip, IPv6ExtHdrFragment(nh=17, id=9) / above)
    out = node.send(whole)
    assert (out.reason, network(out.packet).dst) == ("forward_flow", talk.leaves.dst)


def test_first_fragment_too_short_for_its_ports_is_dropped(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    if net.family == 4:
        piece: Packet = IP(src=net.client, dst=net.vip, proto=17, id=1, flags="MF")
    else:
        piece = IPv6(src=net.client, dst=net.vip) / IPv6ExtHdrFragment(nh=17, m=1, id=1)
    for there in range(8):
        assert node.send(bytes(ether(FRONT) / piece / Raw(bytes(there)))).reason == "drop_l4_short"
        padded = bytes(ether(FRONT) / piece / Raw(bytes(there))) + bytes(40)
        assert node.send(padded).verdict == "drop"


@PROTOCOLS
def test_dont_fragment_bit_of_a_fragment_is_kept(node: Node, net: Net, proto: str) -> None:
    """DF on fragments is legal (RFC 6864 4.1) and passes."""
    node.apply([service(net, protocol=proto)])
    Conversation(node, net, proto=proto).open()
    if net.family == 6:
        piece: Packet = IPv6(src=net.client, dst=net.vip) / IPv6ExtHdrFragment(
            nh=17 if proto == "udp" else 6, m=1, id=3
        )
    else:
        piece = IP(src=net.client, dst=net.vip, proto=17 if proto == "udp" else 6, id=3, flags="MF+DF")
    out = node.send(bytes(ether(FRONT) / piece / Raw(bytes(datagram(proto, 40000, 80))[:64])))
    assert out.reason == "forward_state"
    if net.family == 4:
        assert str(network(out.packet).flags) == "MF+DF"


@IPV6
def test_destination_options_inside_the_fragments_are_followed(node: Node, net: Net) -> None:
    """The fragment header of later fragments names the destination options, not UDP (RFC 8200 4.5)."""
    node.apply([service(net, protocol="udp")])
    whole = IPv6(bytes(IPv6(src=net.client, dst=net.vip) / IPv6ExtHdrDestOpt() / datagram("udp", 40000, 80)))
    first, later, *_ = fragments(FRONT, whole)
    assert node.send(first).reason == "forward_new"
    assert node.send(later).reason == "forward_fragment"


@IPV6
def test_ports_behind_destination_options_are_found(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    above = IPv6ExtHdrDestOpt(options=[]) / udp(40000, 80)
    out = node.send(frame(FRONT, net.client, net.vip, above))
    assert (out.reason, ports(out.packet), out.packet[UDP].payload.load) == (
        "forward_new",
        (40000, 8080),
        b"hello",
    )


def test_expired_first_fragment_is_answered_and_later_ones_are_not(node: Node, net: Net) -> None:
    """RFC 1122 3.2.2: no error about a fragment that is not the first."""
    node.apply([service(net, protocol="udp")])
    pieces = fragments(FRONT, whole_packet(net.client, net.vip, datagram("udp", 40000, 80)))
    node.send(pieces[0])
    expired = fragments(FRONT, whole_packet(net.client, net.vip, datagram("udp", 40000, 80)), ttl=1)
    assert node.send(expired[0]).reason == "answer_ttl_exceeded"
    assert node.send(expired[1]).reason == "drop_no_answer"


@IPV4
def test_fragments_over_the_mtu_are_translated_and_left_to_linux(node: Node, net: Net) -> None:
    node.apply([service(net, net.narrow_endpoint, protocol="udp")])
    whole = whole_packet(net.client, net.vip, datagram("udp", 40000, 80, size=2900))
    outcomes = [node.send(piece) for piece in fragments(FRONT, whole, size=1440)]
    assert [out.reason for out in outcomes] == [node.to_fragment, node.to_fragment, "forward_fragment"]
    if node.hook == "xdp":  # and TC goes on with what XDP has left to it
        behind = Node(node.world, "tc")
        outcomes[:2] = [behind.send(out.frame) for out in outcomes[:2]]
    assert {network(out.packet).dst for out in outcomes} == {net.narrow_endpoint}
    assert wrong_in_packet(reassembled([out.frame for out in outcomes])) == []


@IPV4
def test_first_fragment_of_icmp_that_is_no_echo_is_of_no_flow(node: Node, net: Net) -> None:
    """It has no identifier of its own, and an echo may have that of nobody, 0."""
    node.apply(nat=[masquerade(net)])
    assert node.send(frame(BACK, net.inside, net.server, echo(4, 0)), BACK).reason == "forward_new"
    timestamp = ICMP(type=13, id=0, seq=0) / Raw(bytes(12))
    first = frame(BACK, net.inside, net.server, timestamp, flags="MF", id=77)
    assert node.send(first, BACK).reason == "punt_icmp"


def test_fragments_behind_one_that_expires_are_not_sent_with_a_private_source(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    whole = whole_packet(net.inside, net.server, datagram("udp", 40000, 80))
    first, *later = fragments(BACK, whole, ttl=1)[:1] + fragments(BACK, whole)[1:]
    assert node.send(first, BACK).reason == "punt_ttl"
    assert {node.send(piece, BACK).reason for piece in later} == {"drop_fragment_unknown"}


def test_fragments_behind_one_that_is_dropped_are_dropped(node: Node, net: Net) -> None:
    node.apply([service(net)], midstream="drop")
    above = tcp(40000, 80, "A", payload=bytes(200))
    first, *later = fragments(FRONT, whole_packet(net.client, net.vip, above))
    assert node.send(first).reason == "drop_midstream"
    assert {node.send(piece).reason for piece in later} == {"drop_fragment_unknown"}
