# SPDX-License-Identifier: Apache-2.0
"""What is rejected is told so: TCP by a reset (RFC 9293 3.10.7), UDP by "port unreachable", the rest by
"administratively prohibited" (RFC 1812 5.2.7.1, RFC 4443 3.1). The harness recomputes all checksums.
"""

from __future__ import annotations

import time

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.packet.addresses import BACK, FRONT, SPARE, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.firewall import DEFAULT, firewall, judged, rule, syn, through, to_node
from tests.packet.frames import SENDER, echo, ether, frame, icmp_error, ip_packet, l3, network, tags, tcp, udp
from tests.packet.marks import IPV4, IPV6, PROTOCOLS
from tests.packet.node import Node, Outcome
from tests.packet.test_fragments import datagram, fragments, whole_packet
from tests.packet.test_vlan import ONLY_XDP, vlan_device

BURST, PER_SECOND = 50, 1000
SEQ, ACK = 3_000_000_000, 1_234_567


@pytest.fixture
def rejecting(node: Node, net: Net) -> Node:
    node.apply([service(net)], firewall=firewall(default="reject"))
    return node


def unreachable(out: Outcome) -> tuple[int, int]:
    """Type and code of an ICMP error."""
    assert out.reason == "answer_rejected"
    layer = out.packet[ICMPv6DestUnreach if out.packet.haslayer(ICMPv6DestUnreach) else ICMP]
    return int(layer.type), int(layer.code)


def port_unreachable(net: Net) -> tuple[int, int]:
    return (3, 3) if net.family == 4 else (1, 4)


def prohibited(net: Net) -> tuple[int, int]:
    return (3, 13) if net.family == 4 else (1, 1)


def quoted(out: Outcome) -> bytes:
    return out.frame[14 + (20 if isinstance(network(out.packet), IP) else 40) + 8 :]


# ---- resets ----


@pytest.mark.parametrize("to", ["inside", "node", "vip"])
def test_syn_is_answered_with_a_reset_that_acknowledges_it(rejecting: Node, net: Net, to: str) -> None:
    dst = {"inside": net.inside, "node": net.node(FRONT), "vip": net.vip}[to]
    out = rejecting.send(frame(FRONT, net.client, dst, tcp(40000, 80, "S", SEQ)))
    assert out.reason == "answer_rejected"
    layer, segment = network(out.packet), out.packet[TCP]
    assert (out.packet.dst, out.packet.src) == (neighbour_mac(FRONT, SENDER), device_mac(FRONT))
    assert (layer.src, layer.dst, segment.sport, segment.dport) == (dst, net.client, 80, 40000)
    assert (str(segment.flags), segment.seq, segment.ack, segment.window) == ("RA", 0, SEQ + 1, 0)
    assert segment.dataofs == 5 and not segment.payload
    assert rejecting.flows.entries() == 0


@pytest.mark.parametrize(
    ("flags", "size", "expected"),
    [
        ("A", 0, ("R", ACK, 0)),
        ("PA", 100, ("R", ACK, 0)),
        ("SA", 0, ("R", ACK, 0)),
        ("FA", 7, ("R", ACK, 0)),
        ("S", 9, ("RA", 0, SEQ + 10)),  # TCP Fast Open carries data
        ("F", 3, ("RA", 0, SEQ + 4)),
        ("SF", 3, ("RA", 0, SEQ + 5)),
        ("", 3, ("RA", 0, SEQ + 3)),
    ],
)
def test_numbers_of_a_reset(
    rejecting: Node, net: Net, flags: str, size: int, expected: tuple[str, int, int]
) -> None:
    """RFC 9293 3.10.7.1: the sender takes it."""
    above = tcp(40000, 80, flags, SEQ, ACK if "A" in flags else 0, payload=bytes(size))
    segment = rejecting.send(to_node(net, above)).packet[TCP]
    assert (str(segment.flags), segment.seq, segment.ack) == expected


def test_reset_of_a_syn_with_options_is_a_plain_header(rejecting: Node, net: Net) -> None:
    options = [("MSS", 1460), ("SAckOK", b""), ("WScale", 7)]
    out = rejecting.send(through(net, tcp(40000, 80, "S", SEQ, options=options)))
    assert out.packet[TCP].ack == SEQ + 1
    assert len(out.frame) == 14 + (20 if net.family == 4 else 40) + 20


@pytest.mark.parametrize("flags", ["R", "RA", "SR"])
def test_reset_is_not_answered(rejecting: Node, net: Net, flags: str) -> None:
    assert rejecting.send(to_node(net, tcp(40000, 80, flags))).reason == "drop_firewall"


def test_reset_of_a_known_connection_ends_it_for_the_sender(node: Node, net: Net) -> None:
    """The numbers are those that the client expects next."""
    node.apply([service(net)], firewall=firewall(rule()))
    talk = Conversation(node, net).open()
    node.apply([service(net)], firewall=firewall(default="reject"))
    out = talk.client("PA", payload=b"request")
    segment = out.packet[TCP]
    assert (out.reason, str(segment.flags), segment.seq) == ("answer_rejected", "R", talk.server_next)
    assert (network(out.packet).src, segment.sport) == (net.vip, 80)


def test_reset_of_a_known_connections_reply(node: Node, net: Net) -> None:
    node.apply([service(net)], firewall=firewall(rule()))
    talk = Conversation(node, net).open()
    node.apply([service(net)], firewall=firewall(default="reject"))
    out = talk.server("PA", payload=b"answer")
    segment = out.packet[TCP]
    assert (out.reason, str(segment.flags), segment.seq) == ("answer_rejected", "R", talk.client_next)
    assert (network(out.packet).src, network(out.packet).dst) == (net.client, net.endpoint)


@pytest.mark.parametrize("hook", ["tc"], indirect=True)  # XDP sees no large segments
def test_large_segment_is_answered_with_one_reset(rejecting: Node, net: Net) -> None:
    large = through(net, tcp(40000, 80, "A", SEQ, ACK, payload=bytes(3000)))
    out = rejecting.send(large, gso_size=1000)
    assert (out.reason, out.packet[TCP].seq) == ("answer_rejected", ACK)


# ---- ICMP errors ----


def test_datagram_is_answered_with_port_unreachable(rejecting: Node, net: Net) -> None:
    out = rejecting.send(through(net, udp(40000, 80, bytes(range(100)))))
    assert unreachable(out) == port_unreachable(net)
    layer = network(out.packet)
    assert (layer.src, layer.dst) == (net.node(FRONT), net.client)
    assert (out.packet.dst, out.packet.src) == (neighbour_mac(FRONT, SENDER), device_mac(FRONT))
    assert rejecting.flows.entries() == 0


@pytest.mark.parametrize("size", [0, 1, 7, 8, 12, 20, 21, 100, 470, 480, 1400])
def test_error_quotes_the_packet_as_it_was_sent(rejecting: Node, net: Net, size: int) -> None:
    out = rejecting.send(through(net, udp(40000, 80, bytes(n & 255 for n in range(size))), ttl=9))
    quote = quoted(out)
    assert l3(out.sent).startswith(quote)
    assert len(quote) >= (28 if net.family == 4 else 48)
    assert len(l3(out.frame)) <= (576 if net.family == 4 else 1280)


def test_echo_is_answered_with_prohibited(rejecting: Node, net: Net) -> None:
    assert unreachable(rejecting.send(through(net, echo(net.family, 7)))) == prohibited(net)
    assert unreachable(rejecting.send(to_node(net, echo(net.family, 7)))) == prohibited(net)


@pytest.mark.parametrize("where", [FRONT, BACK, SPARE])
def test_error_about_a_packet_to_the_node_comes_from_the_address_it_went_to(
    rejecting: Node, net: Net, where: str
) -> None:
    """Connected sockets take errors from there alone."""
    out = rejecting.send(frame(FRONT, net.client, net.node(where), udp(40000, 53)))
    assert unreachable(out) == port_unreachable(net)
    assert (network(out.packet).src, network(out.packet).dst) == (net.node(where), net.client)


@pytest.mark.parametrize("to", ["inside", "node"])
@pytest.mark.parametrize(("size", "answered"), [(7, False), (8, True), (100, True)])
def test_other_protocol_is_answered_with_prohibited(
    rejecting: Node, net: Net, to: str, size: int, answered: bool
) -> None:
    """As far as there is enough of it to quote."""
    packet = Raw(bytes(range(size)))
    number = {"proto": 253} if net.family == 4 else {"nh": 253}
    made = frame(FRONT, net.client, net.inside if to == "inside" else net.node(FRONT), packet, **number)
    out = rejecting.send(made)
    if answered:
        assert unreachable(out) == prohibited(net)
        assert quoted(out).startswith(l3(made)[:28])
    else:
        assert out.reason == "drop_firewall"


def test_error_about_a_packet_without_a_way_comes_from_the_node(rejecting: Node, net: Net) -> None:
    with rejecting.world.route("add", "unreachable", net.remote_host(5)):
        out = rejecting.send(frame(FRONT, net.client, net.remote_host(5), udp(40000, 53)))
    assert unreachable(out) == port_unreachable(net)
    assert network(out.packet).src == net.node(FRONT)


def test_error_about_a_reply_comes_from_the_device_that_received_it(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")], firewall=firewall(rule()))
    talk = Conversation(node, net, proto="udp").open()
    node.apply([service(net, protocol="udp")], firewall=firewall(default="reject"))
    out = talk.server()
    assert unreachable(out) == port_unreachable(net)
    assert (network(out.packet).src, network(out.packet).dst) == (net.node(BACK), net.endpoint)


def test_error_about_a_masqueraded_packet_goes_inside(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)], firewall=firewall(default="reject"))
    out = Conversation(node, net, proto="udp", inside=True).first()
    assert unreachable(out) == port_unreachable(net)
    assert (network(out.packet).src, network(out.packet).dst) == (net.node(BACK), net.inside)


def test_error_without_an_address_to_send_from(rejecting: Node, net: Net) -> None:
    rejecting.device(FRONT, address4=0, address6=[0] * 16)
    assert rejecting.send(through(net)).reason == "drop_answer_failed"
    assert rejecting.send(to_node(net)).reason == "answer_rejected"


@ONLY_XDP
@PROTOCOLS
def test_answer_goes_back_into_its_vlan(rejecting: Node, net: Net, proto: str) -> None:
    vlan_device(rejecting, 10)
    above = syn() if proto == "tcp" else udp(40000, 80)
    out = rejecting.send(bytes(ether(FRONT) / Dot1Q(vlan=10) / ip_packet(net.client, net.inside, above)))
    assert (out.reason, tags(out.packet)) == ("answer_rejected", [(0x8100, 10)])


# ---- who gets no answer ----


@pytest.mark.parametrize("kind", ["unreachable", "too-big", "time-exceeded", "parameter-problem"])
@pytest.mark.parametrize("to", ["inside", "node"])
def test_error_is_not_answered(rejecting: Node, net: Net, kind: str, to: str) -> None:
    """RFC 1122 3.2.2."""
    dst = net.inside if to == "inside" else net.node(FRONT)
    about = l3(frame(FRONT, dst, net.client, udp(5, 6)))
    assert rejecting.send(frame(FRONT, net.client, dst, icmp_error(kind, about))).reason == "drop_firewall"
    assert judged(rejecting, DEFAULT).packets == 1


def test_echo_reply_is_not_answered(rejecting: Node, net: Net) -> None:
    assert rejecting.send(to_node(net, echo(net.family, 7, reply=True))).reason == "drop_firewall"


@PROTOCOLS
def test_link_layer_broadcast_is_not_answered(rejecting: Node, net: Net, proto: str) -> None:
    sent = to_node(net, syn() if proto == "tcp" else udp(1, 2))
    for mac in ("ffffffffffff", "01005e000001", "333300000001"):
        assert rejecting.send(bytes.fromhex(mac) + sent[6:]).reason == "drop_firewall"


@PROTOCOLS
def test_multicast_is_not_answered(rejecting: Node, net: Net, proto: str) -> None:
    group = "224.0.0.251" if net.family == 4 else "ff02::fb"
    above: Packet = syn() if proto == "tcp" else udp(1, 2)
    assert rejecting.send(frame(FRONT, net.client, group, above)).reason == "drop_firewall"


@pytest.mark.parametrize("four", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"])
def test_nobody_is_not_answered(rejecting: Node, net: Net, four: str) -> None:
    six = {"0.0.0.0": "::", "127.0.0.1": "::1", "224.0.0.1": "ff02::1", "255.255.255.255": "fe80::1"}
    source = four if net.family == 4 else six[four]
    for above in (syn(), udp(1, 2)):
        assert rejecting.send(frame(FRONT, source, net.node(FRONT), above)).reason == "drop_firewall"


@PROTOCOLS
def test_only_the_first_fragment_is_answered(rejecting: Node, net: Net, proto: str) -> None:
    """RFC 1122 3.2.2; and a reset is of a whole segment alone."""
    first, *later = fragments(FRONT, whole_packet(net.client, net.inside, datagram(proto, 40000, 80)))
    out = rejecting.send(first)
    assert unreachable(out) == (port_unreachable(net) if proto == "udp" else prohibited(net))
    for piece in later:
        assert rejecting.send(piece).verdict == "drop"


# ---- options and extension headers ----


@IPV4
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_packet_with_ip_options_is_answered(rejecting: Node, net: Net, proto: str) -> None:
    above = syn() if proto == "tcp" else udp(40000, 80, bytes(60))
    options = IPOption_RR(routers=["0.0.0.0"] * 3)
    out = rejecting.send(through(net, above, options=options))
    assert unreachable(out) == (prohibited(net) if proto == "tcp" else port_unreachable(net))
    assert l3(out.sent).startswith(quoted(out))
    assert network(out.packet).ihl == 5


@IPV4
@pytest.mark.parametrize("routers", range(1, 10))
def test_error_about_a_packet_with_options_quotes_its_ports(rejecting: Node, net: Net, routers: int) -> None:
    """Eight bytes of layer 4 at least (RFC 792), or nobody knows what it speaks of."""
    options = IPOption_RR(routers=["0.0.0.0"] * routers)
    out = rejecting.send(through(net, udp(40000, 80, b""), options=options))
    assert unreachable(out) == port_unreachable(net)
    header = (l3(out.sent)[0] & 15) * 4
    assert len(quoted(out)) >= header + 8


@IPV6
@pytest.mark.parametrize(
    "extension",
    [IPv6ExtHdrDestOpt(), IPv6ExtHdrHopByHop(), IPv6ExtHdrRouting(addresses=["2001:db8::9"], segleft=1)],
    ids=["destination", "hop-by-hop", "routing"],
)
def test_answer_has_none_of_the_extension_headers(rejecting: Node, net: Net, extension: Packet) -> None:
    """Least of all a routing header (RFC 8200 8.4)."""
    for above in (syn(), udp(40000, 80)):
        out = rejecting.send(to_node(net, extension.copy() / above))
        assert out.reason == "answer_rejected"
        assert out.frame[14 + 6] in (6, 58)


# ---- how many ----


@PROTOCOLS
@pytest.mark.usefixtures("one_cpu")
def test_answers_are_limited(rejecting: Node, net: Net, proto: str) -> None:
    sent = through(net, syn() if proto == "tcp" else udp(40000, 80))
    before, began = rejecting.datapath.counters().reasons, time.monotonic()
    for _ in range(400):
        rejecting.run(sent)
    elapsed = time.monotonic() - began
    after = rejecting.datapath.counters().reasons
    answered, limited = (
        after[name].packets - before[name].packets for name in ("answer_rejected", "drop_rate_limited")
    )
    assert answered + limited == 400
    assert BURST <= answered <= BURST + PER_SECOND * (elapsed + 0.02)
    assert judged(rejecting, DEFAULT).packets == 400


def test_drop_says_nothing(node: Node, net: Net) -> None:
    node.apply([service(net)], firewall=firewall(rule("no", "drop"), default="reject"), midstream="reset")
    for above in (syn(), tcp(40000, 80, "A"), udp(40000, 80), echo(net.family, 1)):
        for dst in (net.vip, net.inside, net.node(FRONT)):
            assert node.send(frame(FRONT, net.client, dst, above)).verdict == "drop"


def test_answer_is_a_frame_of_its_own(rejecting: Node, net: Net) -> None:
    """IPv4: nothing of the packet's identification, TOS or fragment bits; a TTL of its own."""
    out = rejecting.send(through(net, syn(), ttl=3, **({"flags": "DF"} if net.family == 4 else {})))
    layer = network(Ether(out.frame))
    assert (layer.hlim if isinstance(layer, IPv6) else layer.ttl) == 64
