# SPDX-License-Identifier: Apache-2.0
"""What the data path answers itself because Linux does not know the translated addresses: time exceeded and
packet too big. And what is left to Linux: fragmenting.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, ICMPv6TimeExceeded
from scapy.packet import Packet

from tests.packet.addresses import (
    BACK,
    FRONT,
    NARROW,
    NARROW_MTU,
    Net,
    device_mac,
    neighbour_mac,
)
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import SENDER, echo, frame, hop_limit, l3, network, ports, udp
from tests.packet.marks import IPV4, IPV6, PROTOCOLS
from tests.packet.node import HANDED_OVER, Node, Outcome

BURST, PER_SECOND = 50, 1000


def quoted(out: Outcome) -> bytes:
    """The packet that an ICMP error quotes."""
    return out.frame[14 + (20 if isinstance(network(out.packet), IP) else 40) + 8 :]


def is_time_exceeded(packet: Packet) -> bool:
    if packet.haslayer(ICMPv6TimeExceeded):
        return int(packet[ICMPv6TimeExceeded].code) == 0
    return (int(packet[ICMP].type), int(packet[ICMP].code)) == (11, 0)


def too_big_mtu(packet: Packet) -> int:
    if packet.haslayer(ICMPv6PacketTooBig):
        return int(packet[ICMPv6PacketTooBig].mtu)
    assert (packet[ICMP].type, packet[ICMP].code) == (3, 4)
    return int(packet[ICMP].nexthopmtu)


# ---- time exceeded ----


@PROTOCOLS
def test_expired_packet_to_a_service_is_answered(node: Node, net: Net, proto: str) -> None:
    node.apply([service(net, protocol=proto)])
    out = Conversation(node, net, proto=proto).first(ttl=1)
    assert out.reason == "answer_ttl_exceeded"
    assert is_time_exceeded(out.packet)
    layer = network(out.packet)
    assert (layer.src, layer.dst) == (net.node(FRONT), net.client)
    assert (out.packet.dst, out.packet.src) == (neighbour_mac(FRONT, SENDER), device_mac(FRONT))
    assert node.flows.entries() == 0


@PROTOCOLS
def test_expired_packet_of_a_known_flow_is_answered(node: Node, net: Net, proto: str) -> None:
    node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto).open()
    out = talk.client(ttl=1, payload=b"x" * 50)
    assert (out.reason, network(out.packet).dst) == ("answer_ttl_exceeded", net.client)
    out = talk.server(ttl=1, payload=b"x" * 50)
    assert (out.reason, network(out.packet).dst) == ("answer_ttl_exceeded", net.endpoint)
    assert network(out.packet).src == net.node(BACK)


@PROTOCOLS
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 21, 100, 1000])
def test_time_exceeded_quotes_the_senders_packet(node: Node, net: Net, proto: str, size: int) -> None:
    """As it was sent: addresses, TTL and checksums untouched; at least eight bytes of layer 4."""
    node.apply([service(net, protocol=proto)])
    out = Conversation(node, net, proto=proto).first(ttl=1, payload=bytes(n & 255 for n in range(size)))
    quote = quoted(out)
    assert l3(out.sent).startswith(quote)
    assert len(quote) >= (28 if net.family == 4 else 48)
    assert len(l3(out.frame)) <= (576 if net.family == 4 else 1280)


def test_ttl_2_is_forwarded(node: Node, net: Net) -> None:
    node.apply([service(net)])
    out = Conversation(node, net).first(ttl=2)
    assert (out.reason, hop_limit(out.packet)) == ("forward_new", 1)


def test_ttl_0_is_answered(node: Node, net: Net) -> None:
    node.apply([service(net)])
    assert Conversation(node, net).first(ttl=0).reason == "answer_ttl_exceeded"


def test_expired_echo_of_a_masqueraded_flow_is_answered(node: Node, net: Net) -> None:
    """As traceroute -I sends it, once a flow is there."""
    node.apply(nat=[masquerade(net)])
    node.send(frame(BACK, net.inside, net.server, echo(net.family, 1234)), BACK)
    out = node.send(frame(BACK, net.inside, net.server, echo(net.family, 1234), ttl=1), BACK)
    assert (out.reason, network(out.packet).dst) == ("answer_ttl_exceeded", net.inside)


def test_answer_does_not_count_as_traffic_of_the_flow(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net).open()
    before = node.flows.connection().packets
    talk.client(ttl=1)
    assert node.flows.connection().packets == before


def test_answer_without_an_address_to_send_from_drops(node: Node, net: Net) -> None:
    node.apply([service(net)])
    node.device(FRONT, address4=0, address6=[0] * 16)
    assert Conversation(node, net).first(ttl=1).reason == "drop_answer_failed"


@pytest.mark.usefixtures("one_cpu")
def test_answers_are_limited(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net)
    before, began = node.datapath.counters().reasons, time.monotonic()
    for _ in range(400):
        node.run(talk.client_frame("S", ack=0, ttl=1))
    elapsed = time.monotonic() - began
    after = node.datapath.counters().reasons
    answered, limited = (
        after[name].packets - before[name].packets for name in ("answer_ttl_exceeded", "drop_rate_limited")
    )
    assert answered + limited == 400
    assert BURST <= answered <= BURST + PER_SECOND * (elapsed + 0.02)


@pytest.mark.usefixtures("one_cpu")
def test_answers_begin_again_after_a_pause(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net)
    for _ in range(200):
        node.run(talk.client_frame("S", ack=0, ttl=1))
    time.sleep(0.06)
    assert talk.first(ttl=1).reason == "answer_ttl_exceeded"


# ---- too big ----


@pytest.fixture
def narrow(node: Node, net: Net) -> Conversation:
    """A UDP conversation with an endpoint behind a small MTU."""
    node.apply([service(net, net.narrow_endpoint, protocol="udp")])
    talk = Conversation(node, net, proto="udp", server_device=NARROW)
    return talk.open()


def udp_frame(talk: Conversation, size: int, *, dont_fragment: bool = True) -> bytes:
    """A datagram of the client whose IP packet has `size` bytes."""
    net, way = talk.net, talk.arrives
    above = udp(way.sport, way.dport, bytes(size - 28 - (20 if net.family == 6 else 0)))
    fields: dict[str, Any] = {"flags": "DF" if dont_fragment else 0} if net.family == 4 else {}
    return frame(FRONT, way.src, way.dst, above, **fields)


def test_packet_of_exactly_the_mtu_is_forwarded(node: Node, narrow: Conversation) -> None:
    assert node.send(udp_frame(narrow, NARROW_MTU)).reason == "forward_flow"


def test_packet_over_the_mtu_is_answered_with_the_mtu(node: Node, net: Net, narrow: Conversation) -> None:
    out = node.send(udp_frame(narrow, NARROW_MTU + 1))
    assert (out.reason, too_big_mtu(out.packet)) == ("answer_too_big", NARROW_MTU)
    layer = network(out.packet)
    assert (layer.src, layer.dst) == (net.node(FRONT), net.client)
    assert l3(out.sent).startswith(quoted(out))


def test_packet_of_exactly_the_mtu_with_padding_is_forwarded(node: Node, narrow: Conversation) -> None:
    assert node.send(udp_frame(narrow, NARROW_MTU) + bytes(4)).reason == "forward_flow"


def test_first_packet_over_the_mtu_is_answered(node: Node, net: Net) -> None:
    node.apply([service(net, net.narrow_endpoint, protocol="udp")])
    out = Conversation(node, net, proto="udp", server_device=NARROW).client(payload=bytes(1440))
    # scapy sets no DF: over IPv4 that packet may be fragmented
    assert out.reason == ("answer_too_big" if net.family == 6 else node.to_fragment)
    assert node.flows.connection().packets == (0 if out.reason == HANDED_OVER else 1)


def test_answer_has_the_mtu_of_the_route(node: Node, net: Net) -> None:
    """A route may have a smaller MTU than its device. bpf_fib_lookup sees it if it is locked."""
    node.apply([service(net, net.remote_host(5), protocol="udp")])
    with node.world.route(
        "add", f"{net.remote_host(5)}", "via", net.router(BACK), "dev", BACK, "mtu", "lock", "1300"
    ):
        talk = Conversation(node, net, proto="udp").open()
        out = node.send(udp_frame(talk, 1301))
        assert (out.reason, too_big_mtu(out.packet)) == ("answer_too_big", 1300)
        assert node.send(udp_frame(talk, 1300)).reason == "forward_flow"


def test_too_big_quotes_enough_for_path_mtu_discovery(node: Node, net: Net) -> None:
    node.apply([service(net, net.narrow_endpoint)])
    talk = Conversation(node, net, server_device=NARROW).open()
    size = NARROW_MTU + 1 - (40 if net.family == 4 else 60)
    fields = {"flags": "DF"} if net.family == 4 else {}
    ethernet = talk.client_frame("A", payload=bytes(size))
    if fields:
        packet = IP(l3(ethernet))
        packet.flags, packet.chksum = "DF", None
        ethernet = ethernet[:14] + bytes(packet)
    out = node.send(ethernet)
    assert (out.reason, too_big_mtu(out.packet)) == ("answer_too_big", NARROW_MTU)
    assert l3(ethernet).startswith(quoted(out)) and len(quoted(out)) >= 128


@IPV6
def test_mtu_below_the_minimum_of_ipv6_is_reported_as_the_minimum(node: Node, net: Net) -> None:
    """RFC 8200 5."""
    node.apply([service(net, net.remote_host(5), protocol="udp")])
    talk = Conversation(node, net, proto="udp").open()
    node.flows.write_entry(talk.arrives, mtu=1000)
    assert too_big_mtu(node.send(udp_frame(talk, 1200)).packet) == 1280


# ---- over MTU and may be fragmented ----


@IPV4
@pytest.mark.parametrize("hook", ["tc"], indirect=True)
def test_packet_that_may_be_fragmented_is_translated_and_left_to_linux(
    node: Node, net: Net, narrow: Conversation
) -> None:
    """By the loopback device, whose link address is nobody's. Linux takes a hop off."""
    out = node.send(udp_frame(narrow, NARROW_MTU + 1, dont_fragment=False))
    assert out.reason == "punt_to_fragment"
    layer = network(out.packet)
    assert (layer.src, layer.dst, ports(out.packet)) == (net.client, net.narrow_endpoint, (40000, 8080))
    assert (out.packet.dst, hop_limit(out.packet)) == ("00:00:00:00:00:00", 64)
    assert narrow.node.flows.entry(narrow.arrives)["packets"] == 2


@IPV4
@pytest.mark.parametrize("hook", ["xdp"], indirect=True)
def test_packet_that_may_be_fragmented_is_left_to_tc(node: Node, narrow: Conversation) -> None:
    assert node.send(udp_frame(narrow, NARROW_MTU + 1, dont_fragment=False)).reason == HANDED_OVER
    assert narrow.node.flows.entry(narrow.arrives)["packets"] == 1


@pytest.mark.parametrize("hook", ["tc"], indirect=True)
def test_large_segment_is_measured_by_what_it_is_cut_into(node: Node, net: Net) -> None:
    """GSO: 3,000 bytes to be sent as segments that fit the MTU, or do not."""
    node.apply([service(net, net.narrow_endpoint)])
    talk = Conversation(node, net, server_device=NARROW).open()
    fits = NARROW_MTU - (40 if net.family == 4 else 60)
    large = talk.client_frame("A", payload=bytes(3000))
    assert node.send(large, gso_size=fits).reason == "forward_flow"
    reason = node.send(large, gso_size=fits + 1).reason
    assert reason == (node.to_fragment if net.family == 4 else "answer_too_big")
