# SPDX-License-Identifier: Apache-2.0
"""TCP without a flow and without SYN, as after a restart of the machine: a policy decides."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt

from tests.packet.addresses import FRONT, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import SENDER, frame, network, tcp
from tests.packet.marks import IPV6
from tests.packet.node import Node

SEQ, ACK = 3_000_000_000, 1_234_567


def test_pick_up_leads_to_the_endpoint_that_has_the_connection(node: Node, net: Net) -> None:
    node.apply([service(net, *net.endpoints[:4], maglev_size=1021)], midstream="pick-up")
    opened = Conversation(node, net).open()
    node.reset()
    node.apply([service(net, *net.endpoints[:4], maglev_size=1021)], midstream="pick-up")
    talk = Conversation(node, net)
    out = talk.client("A", seq=SEQ, ack=ACK, payload=b"going on")
    assert (out.reason, network(out.packet).dst) == ("forward_new", opened.leaves.dst)
    assert "picked_up" in node.flows.flags(talk.arrives)


def test_picked_up_connection_is_established_when_both_sides_have_spoken(node: Node, net: Net) -> None:
    node.apply([service(net)], midstream="pick-up")
    talk = Conversation(node, net)
    talk.client("A", payload=b"going on")
    assert node.flows.connection().state == "tcp_syn_sent"
    assert talk.server("A", payload=b"yes").verdict == "forward"
    assert node.flows.connection().state == "tcp_established"


def test_picked_up_connection_closes_by_fins(node: Node, net: Net) -> None:
    node.apply([service(net)], midstream="pick-up")
    talk = Conversation(node, net)
    talk.client("A", payload=b"going on")
    talk.server("A")
    talk.client("FA")
    assert node.flows.connection().state == "tcp_half_closed"
    talk.server("FA")
    assert node.flows.connection().state == "tcp_time_wait"


def test_fin_that_is_picked_up_half_closes(node: Node, net: Net) -> None:
    node.apply([service(net)], midstream="pick-up")
    talk = Conversation(node, net)
    assert talk.client("FA").reason == "forward_new"
    assert node.flows.connection().state == "tcp_half_closed"


def test_masqueraded_connection_is_picked_up(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)], midstream="pick-up")
    talk = Conversation(node, net, inside=True, sport=2500)
    assert talk.client("A", payload=b"going on").reason == "forward_new"
    assert talk.leaves.sport == 2500


@pytest.mark.parametrize("inside", [False, True], ids=["service", "nat"])
def test_drop_drops(node: Node, net: Net, inside: bool) -> None:
    node.apply([service(net)], nat=[masquerade(net)], midstream="drop")
    assert Conversation(node, net, inside=inside).client("A", payload=b"x").reason == "drop_midstream"
    assert node.flows.entries() == 0


@pytest.mark.parametrize("policy", ["pick-up", "drop", "reset"])
@pytest.mark.parametrize("flags", ["R", "RA", "SA", "SF", "SR", "SFRA"])
def test_segments_that_open_nothing_are_dropped(node: Node, net: Net, policy: str, flags: str) -> None:
    """A RST is never answered with a RST; nobody asked for a SYN/ACK; the rest means nothing."""
    node.apply([service(net)], midstream=policy)
    assert Conversation(node, net).client(flags).reason == "drop_midstream"
    assert node.flows.entries() == 0


@pytest.mark.parametrize("policy", ["pick-up", "drop", "reset"])
def test_segment_that_is_nobodys_goes_to_linux(node: Node, net: Net, policy: str) -> None:
    node.apply([service(net)], midstream=policy)
    assert Conversation(node, net, dport=81).client("A").reason == "punt_not_ours"


def test_reset_answers_an_ack_with_a_rst(node: Node, net: Net) -> None:
    """RFC 9293 3.10.7.1: the RST has the sequence number that was acknowledged."""
    node.apply([service(net)], midstream="reset")
    out = Conversation(node, net).client("A", seq=SEQ, ack=ACK, payload=b"x" * 100)
    assert out.reason == "answer_reset"
    layer, segment = network(out.packet), out.packet[TCP]
    assert (out.packet.dst, out.packet.src) == (neighbour_mac(FRONT, SENDER), device_mac(FRONT))
    assert (layer.src, layer.dst, segment.sport, segment.dport) == (net.vip, net.client, 80, 40000)
    assert (str(segment.flags), segment.seq, segment.ack, segment.window) == ("R", ACK, 0, 0)
    assert segment.dataofs == 5 and not segment.payload
    assert node.flows.entries() == 0


def test_reset_of_a_segment_without_ack_acknowledges_it(node: Node, net: Net) -> None:
    node.apply([service(net)], midstream="reset")
    out = Conversation(node, net).client("F", seq=SEQ, ack=0, payload=b"x" * 100)
    segment = out.packet[TCP]
    assert (str(segment.flags), segment.seq, segment.ack) == ("RA", 0, SEQ + 101)


def test_reset_drops_options_and_payload(node: Node, net: Net) -> None:
    node.apply([service(net)], midstream="reset")
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    out = Conversation(node, net).client("PA", options=options, payload=b"x" * 1000)
    assert out.reason == "answer_reset"
    assert len(out.frame) == 14 + (20 if net.family == 4 else 40) + 20


@IPV6
def test_reset_of_a_segment_with_destination_options_is_right(node: Node, net: Net) -> None:
    node.apply([service(net)], midstream="reset")
    above = IPv6ExtHdrDestOpt() / tcp(40000, 80, "A", SEQ, ACK, payload=b"x" * 9)
    out = node.send(frame(FRONT, net.client, net.vip, above))
    assert (out.reason, out.packet[TCP].seq, str(out.packet[TCP].flags)) == ("answer_reset", ACK, "R")


def test_reset_has_a_header_of_its_own(node: Node, net: Net) -> None:
    """Hop limit, type of service, identification and fragment bits are not those of the segment."""
    node.apply([service(net)], midstream="reset")
    out = Conversation(node, net).client("A", ttl=3)
    layer = network(out.packet)
    if isinstance(layer, IPv6):
        assert (layer.hlim, layer.plen) == (64, 20)
    else:
        assert isinstance(layer, IP)
        assert (layer.ttl, layer.len, layer.ihl, int(layer.frag)) == (64, 40, 5, 0)


def test_reset_answers_masqueraded_connections_too(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)], midstream="reset")
    out = Conversation(node, net, inside=True).client("A", payload=b"x")
    assert out.reason == "answer_reset"
    assert (network(out.packet).src, network(out.packet).dst) == (net.server, net.inside)
