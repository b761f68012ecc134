# SPDX-License-Identifier: Apache-2.0
"""What XDP cannot do itself it leaves, untouched, to the TC program behind it: ask for a link address, send
through a device without XDP transmit. What then happens is in test_wire.py, with real frames.
"""

from __future__ import annotations

import pytest

from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import frame, icmp_error, l3, network, tcp
from tests.packet.marks import PROTOCOLS
from tests.packet.node import HANDED_OVER, Node

XDP = pytest.mark.parametrize("hook", ["xdp"], indirect=True)
TC = pytest.mark.parametrize("hook", ["tc"], indirect=True)


@XDP
def test_first_packet_to_an_unresolved_neighbour_is_handed_over(node: Node, net: Net) -> None:
    node.apply([service(net, net.unresolved)])
    talk = Conversation(node, net)
    assert talk.first().reason == HANDED_OVER
    (flow,) = node.flows.connections()
    assert (flow.leaves[2], flow.packets) == (net.unresolved, 0)


@TC
def test_first_packet_to_an_unresolved_neighbour_is_left_to_the_neighbour_table(node: Node, net: Net) -> None:
    node.apply([service(net, net.unresolved)])
    talk = Conversation(node, net)
    out = talk.first()
    assert (out.reason, network(out.packet).dst) == ("forward_neighbour", net.unresolved)
    assert node.flows.connection().packets == 1


@TC
def test_flow_is_resolved_when_the_neighbour_is(node: Node, net: Net) -> None:
    node.apply([service(net, net.unresolved)])
    talk = Conversation(node, net)
    talk.first()
    assert talk.client("A").reason == "forward_neighbour"
    neighbour = ("neigh", "replace", net.unresolved, "dev", BACK)
    node.world.node.ip(*neighbour, "lladdr", "02:00:00:00:11:63", "nud", "permanent")
    try:
        out = talk.client("A")
        assert (out.reason, out.packet.dst) == ("forward_resolved", "02:00:00:00:11:63")
        assert talk.client("A").reason == "forward_flow"
    finally:
        node.world.node.ip("neigh", "del", net.unresolved, "dev", BACK)


@XDP
def test_packet_for_a_device_without_xdp_transmit_is_handed_over(node: Node, net: Net) -> None:
    node.device(BACK, xdp_transmit=0)
    node.apply([service(net)])
    talk = Conversation(node, net)
    for sent in (talk.client_frame("S", ack=0), talk.client_frame("A"), talk.client_frame("FA")):
        assert node.send(sent).reason == HANDED_OVER
    assert node.flows.connection().packets == 0


@XDP
def test_packet_for_a_device_that_the_mirror_does_not_know_is_handed_over(node: Node, net: Net) -> None:
    node.datapath.table("device_v1").delete([node.world.ifindex[BACK]])
    node.apply([service(net)])
    assert Conversation(node, net).first().reason == HANDED_OVER


@XDP
def test_masqueraded_packet_is_handed_over_with_its_port_kept_for_it(node: Node, net: Net) -> None:
    node.device(FRONT, xdp_transmit=0)
    node.apply(nat=[masquerade(net, ports="2000-2999")])
    talk = Conversation(node, net, inside=True)
    assert talk.first().reason == HANDED_OVER
    port = node.flows.connection().leaves[1]
    assert 2000 <= port <= 2999
    other = Node(node.world, "tc")
    out = other.send(talk.client_frame("S", ack=0, seq=1000), BACK)
    assert (out.reason, node.flows.connection().leaves[1]) == ("forward_state", port)


@XDP
def test_icmp_error_for_a_device_without_xdp_transmit_is_handed_over(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    talk = Conversation(node, net, proto="udp").open()
    went = talk.client()
    node.device(FRONT, xdp_transmit=0)
    node.datapath.bump_mirror()
    error = frame(BACK, net.endpoint, net.client, icmp_error("unreachable", l3(went.frame)))
    assert node.send(error, BACK).reason == HANDED_OVER


@XDP
def test_device_that_learns_to_transmit_gets_xdp_after_a_bump(node: Node, net: Net) -> None:
    node.device(BACK, xdp_transmit=0)
    node.apply([service(net)])
    talk = Conversation(node, net)
    assert talk.first().reason == HANDED_OVER
    node.device(BACK)
    node.datapath.bump_mirror()
    assert talk.client("A").reason == "forward_resolved"


@TC
def test_tc_sends_through_any_device(node: Node, net: Net) -> None:
    node.device(BACK, xdp_transmit=0)
    node.apply([service(net)])
    talk = Conversation(node, net).open()
    assert talk.client("A").reason == "forward_flow"


@XDP
def test_connection_that_is_handed_over_is_opened_once(node: Node, net: Net) -> None:
    """Counted for its endpoint when XDP opens it, not again when TC forwards it."""
    node.device(BACK, xdp_transmit=0)
    tables = node.apply([service(net)])
    sent = Conversation(node, net).client_frame("S", ack=0)
    assert node.send(sent).reason == HANDED_OVER
    assert Node(node.world, "tc").send(sent).reason == "forward_state"
    _, opened = node.datapath.table("opened_v1").items()
    assert opened["connections"].sum(axis=0)[tables.endpoints[0].id] == 1
    assert node.flows.connection().packets == 1


@TC
@pytest.mark.parametrize("flags", ["S", "A"])
def test_tc_behind_xdp_leaves_alone_what_was_not_handed_over(node: Node, net: Net, flags: str) -> None:
    """XDP has counted those and given them to Linux."""
    node.apply([service(net)])
    sent = frame(FRONT, net.client, net.vip, tcp(40000, 80, flags))
    before = node.datapath.counters()
    run = node.run(sent, program="cw_tc_behind")
    assert (run.verdict, run.packet) == ("TC_ACT_UNSPEC", sent)
    assert node.datapath.counters() == before
    assert node.flows.entries() == 0


@PROTOCOLS
@pytest.mark.parametrize("mode", ["nat", "full-nat"])
@XDP
def test_connection_may_come_in_through_xdp_and_back_through_tc(
    node: Node, net: Net, proto: str, mode: str
) -> None:
    """Each interface has the hook that suits it; they share the flows."""
    node.apply([service(net, protocol=proto, mode=mode)])
    talk = Conversation(node, net, proto=proto)
    other = Node(node.world, "tc")
    assert talk.first().reason == "forward_new"
    back = other.send(talk.server_frame("SA"), BACK)
    assert (back.verdict, network(back.packet).src) == ("forward", net.vip)
    assert talk.client("A", payload=b"x").reason == ("forward_state" if proto == "tcp" else "forward_flow")
    assert other.send(talk.server_frame("A", payload=b"x"), BACK).reason == "forward_flow"
    assert node.flows.connection().state == ("tcp_established" if proto == "tcp" else "udp_stream")


@XDP
def test_connection_may_move_from_xdp_to_tc(node: Node, net: Net) -> None:
    """An interface that is given another hook loses no connection."""
    node.apply([service(net)])
    talk = Conversation(node, net).open()
    assert talk.client("A", payload=b"x").reason == "forward_flow"
    talk.node = Node(node.world, "tc")
    assert talk.client("A", payload=b"x").reason == "forward_flow"
    assert talk.server("A", payload=b"x").reason == "forward_flow"
    talk.node = node
    assert talk.client("A", payload=b"x").reason == "forward_flow"
