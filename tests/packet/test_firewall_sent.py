# SPDX-License-Identifier: Apache-2.0
"""What the node sends opens connections: their answers come in although all else is dropped. Seen at TC's
egress, for both hooks; what is sent is never changed or held up.
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.l2 import GRE, Ether
from scapy.packet import Packet, Raw

from clearway.datapath.test_run import run_tc
from tests.packet.addresses import BACK, FRONT, Net, device_mac, neighbour_mac
from tests.packet.firewall import DEFAULT, ended, firewall, judged, rule
from tests.packet.flowtable import Tuple
from tests.packet.frames import echo, frame, icmp_error, ip_packet, l3, tcp, udp
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node
from tests.packet.test_fragments import datagram, fragments, whole_packet

pytestmark = pytest.mark.parametrize("hook", ["tc"], indirect=True)


@pytest.fixture
def closed(node: Node, net: Net) -> Node:
    """Nothing is let in."""
    node.apply(firewall=firewall())
    return node


def leaving(net: Net, above: Packet, src: str = "", dst: str = "", **fields: Any) -> bytes:
    """From the node to a server."""
    layer2 = Ether(src=device_mac(FRONT), dst=neighbour_mac(FRONT, 60))
    return bytes(layer2 / ip_packet(src or net.node(FRONT), dst or net.server, above, **fields))


def send(node: Node, data: bytes, device: str = FRONT) -> None:
    """What leaves is as it was, and goes on."""
    before = node.datapath.counters().received.packets
    run = node.run(data, device, program="cw_tc_out")
    assert (run.verdict, run.packet) == ("TC_ACT_UNSPEC", data)
    assert node.datapath.counters().received.packets == before


def answer(node: Node, net: Net, above: Packet, **fields: Any) -> str:
    return node.send(frame(FRONT, net.server, net.node(FRONT), above, **fields)).reason


def key(net: Net, proto: str, sport: int = 5000, dport: int = 443) -> Tuple:
    return Tuple(proto, net.node(FRONT), sport, net.server, dport)


def test_answer_to_what_the_node_has_asked_comes_in(closed: Node, net: Net) -> None:
    assert answer(closed, net, udp(443, 5000)) == "drop_firewall"
    send(closed, leaving(net, udp(5000, 443)))
    assert closed.flows.flags(key(net, "udp")) == {"linux"}
    for _ in range(3):
        assert answer(closed, net, udp(443, 5000)) == "punt_local"
    assert answer(closed, net, udp(444, 5000)) == "drop_firewall"
    assert answer(closed, net, udp(443, 5001)) == "drop_firewall"


def test_connection_of_the_node_goes_through_its_states(closed: Node, net: Net) -> None:
    send(closed, leaving(net, tcp(5000, 443, "S", 100)))
    assert closed.flows.connection().state == "tcp_syn_sent"
    assert answer(closed, net, tcp(443, 5000, "SA", 900, 101)) == "punt_local"
    assert closed.flows.connection().state == "tcp_syn_received"
    send(closed, leaving(net, tcp(5000, 443, "A", 101, 901)))
    assert closed.flows.connection().state == "tcp_established"
    send(closed, leaving(net, tcp(5000, 443, "PA", 101, 901, payload=b"question")))
    assert answer(closed, net, tcp(443, 5000, "PA", 901, 109, payload=b"answer")) == "punt_local"
    connection = closed.flows.connection()
    assert (connection.packets, connection.reply_packets) == (3, 2)
    send(closed, leaving(net, tcp(5000, 443, "FA", 109, 907)))
    assert closed.flows.connection().state == "tcp_half_closed"
    assert answer(closed, net, tcp(443, 5000, "FA", 907, 110)) == "punt_local"
    assert closed.flows.connection().state == "tcp_time_wait"
    assert judged(closed, DEFAULT).packets == 0


def test_new_connection_in_the_place_of_a_closed_one(closed: Node, net: Net) -> None:
    send(closed, leaving(net, tcp(5000, 443, "S", 100)))
    answer(closed, net, tcp(443, 5000, "RA", 0, 101))
    assert closed.flows.connection().state == "tcp_closed"
    send(closed, leaving(net, tcp(5000, 443, "S", 7000)))
    assert closed.flows.connection().state == "tcp_syn_sent"
    assert answer(closed, net, tcp(443, 5000, "SA", 900, 7001)) == "punt_local"


def test_answering_syn_of_the_node_counts(node: Node, net: Net) -> None:
    """A connection that came in: its other direction is seen here alone."""
    node.apply(firewall=firewall(rule(destination_ports=443, protocol="tcp")))
    arriving = frame(FRONT, net.server, net.node(FRONT), tcp(5000, 443, "S", 100))
    assert node.send(arriving).reason == "punt_local"
    send(node, leaving(net, tcp(443, 5000, "SA", 900, 101)))
    assert node.flows.connection().state == "tcp_syn_received"
    assert answer(node, net, tcp(5000, 443, "A", 101, 901)) == "punt_local"
    connection = node.flows.connection()
    assert (connection.state, connection.reply_packets) == ("tcp_established", 1)
    assert node.flows.entries() == 2


def test_echo_of_the_node_lets_the_reply_in(closed: Node, net: Net) -> None:
    assert answer(closed, net, echo(net.family, 7, reply=True)) == "drop_firewall"
    send(closed, leaving(net, echo(net.family, 7)))
    assert answer(closed, net, echo(net.family, 7, reply=True)) == "punt_local"
    assert answer(closed, net, echo(net.family, 8, reply=True)) == "drop_firewall"
    assert answer(closed, net, echo(net.family, 7)) == "drop_firewall"


def test_error_about_what_the_node_has_sent_comes_in(closed: Node, net: Net) -> None:
    data = leaving(net, udp(5000, 443, bytes(40)))
    about = icmp_error("unreachable", l3(data))
    assert answer(closed, net, about) == "drop_firewall"
    send(closed, data)
    assert answer(closed, net, about) == "punt_icmp"


def test_another_protocol_of_the_node_lets_the_answer_in(closed: Node, net: Net) -> None:
    assert answer(closed, net, GRE() / Raw(bytes(20))) == "drop_firewall"
    send(closed, leaving(net, GRE() / Raw(bytes(20))))
    for _ in range(2):
        assert answer(closed, net, GRE() / Raw(bytes(20))) == "punt_protocol"


@PROTOCOLS
def test_fragments_of_the_answer_come_in(closed: Node, net: Net, proto: str) -> None:
    send(closed, leaving(net, tcp(5000, 443, "S") if proto == "tcp" else udp(5000, 443)))
    whole = whole_packet(net.server, net.node(FRONT), datagram(proto, 443, 5000))
    for piece in fragments(FRONT, whole):
        assert closed.send(piece).reason == "punt_local"


def test_first_fragment_that_the_node_sends_opens(closed: Node, net: Net) -> None:
    whole = whole_packet(net.node(FRONT), net.server, datagram("udp", 5000, 443))
    first, *later = fragments(FRONT, whole)
    for piece in later:
        send(closed, piece)
    assert closed.flows.entries() == 0
    send(closed, first)
    assert answer(closed, net, udp(443, 5000)) == "punt_local"


# ---- what opens nothing ----


def nothing(net: Net) -> dict[str, bytes]:
    about = l3(frame(FRONT, net.server, net.node(FRONT), udp(443, 5000)))
    group = "224.0.0.251" if net.family == 4 else "ff02::fb"
    return {
        "reset": leaving(net, tcp(5000, 443, "R")),
        "reset of a segment": leaving(net, tcp(5000, 443, "RA")),
        "echo reply": leaving(net, echo(net.family, 7, reply=True)),
        "error": leaving(net, icmp_error("unreachable", about)),
        "multicast": leaving(net, udp(5353, 5353), dst=group),
        "broadcast": bytes.fromhex("ffffffffffff") + leaving(net, udp(68, 67))[6:],
        "short": leaving(net, udp(5000, 443))[:-9],
    }


@pytest.mark.parametrize(
    "kind", ["reset", "reset of a segment", "echo reply", "error", "multicast", "broadcast", "short"]
)
def test_packet_that_opens_nothing(closed: Node, net: Net, kind: str) -> None:
    send(closed, nothing(net)[kind])
    assert closed.flows.entries() == 0


@pytest.mark.parametrize("above", [udp(5000, 443), tcp(5000, 443, "S")], ids=["udp", "tcp"])
def test_nothing_is_opened_without_a_firewall(node: Node, net: Net, above: Packet) -> None:
    node.apply()
    send(node, leaving(net, above.copy()))
    assert node.flows.entries() == 0


def test_what_came_in_by_clearways_interfaces_opens_nothing(closed: Node, net: Net) -> None:
    """Linux forwards it: it was judged when it came."""
    data = leaving(net, udp(5000, 443), src=net.inside)
    fd, ifindex = closed.datapath.program_fd("cw_tc_out"), closed.world.ifindex
    with closed.world.node.entered():
        for came, entries in ((BACK, 0), ("lo", 2)):
            run_tc(fd, data, ifindex=ifindex[FRONT], ingress_ifindex=ifindex[came])
            assert closed.flows.entries() == entries


def test_segment_in_the_middle_is_picked_up(closed: Node, net: Net) -> None:
    """Of a connection that is older than the firewall."""
    send(closed, leaving(net, tcp(5000, 443, "A", 100, 200, payload=b"x")))
    assert closed.flows.flags(key(net, "tcp")) == {"linux", "picked_up"}
    assert answer(closed, net, tcp(443, 5000, "A", 200, 101)) == "punt_local"


# ---- rules that change ----


def test_rules_do_not_end_what_the_node_has_opened(closed: Node, net: Net) -> None:
    send(closed, leaving(net, udp(5000, 443)))
    closed.apply(firewall=firewall(rule("no", "drop")))
    for _ in range(2):
        assert answer(closed, net, udp(443, 5000)) == "punt_local"
    assert judged(closed, "no").packets == 0
    send(closed, leaving(net, udp(5000, 443)))
    assert closed.flows.entries() == 2


def test_without_a_firewall_what_the_node_has_opened_is_forgotten(closed: Node, net: Net) -> None:
    send(closed, leaving(net, udp(5000, 443)))
    before = ended(closed, "released")
    closed.apply()
    assert answer(closed, net, udp(443, 5000)) == "punt_local"
    assert closed.flows.entries() == 0
    assert ended(closed, "released") == before + 1


def test_full_table_holds_nothing_up(closed: Node, net: Net) -> None:
    closed.flows.fill(net.family)
    before = closed.flows.entries()
    send(closed, leaving(net, tcp(5000, 443, "S")))
    assert closed.flows.entries() == before
