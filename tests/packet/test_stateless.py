# SPDX-License-Identifier: Apache-2.0
"""No place in the table, and the policy to go on without one: conntrack.when_full: stateless."""

from __future__ import annotations

import pytest

from tests.packet.addresses import BACK, FRONT, NARROW, NARROW_MTU, Net
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import frame, hop_limit, network, ports, tcp
from tests.packet.node import Node

PROTOCOLS = pytest.mark.parametrize("proto", ["tcp", "udp"])


@pytest.fixture
def stateless(node: Node, net: Net) -> Node:
    """A service of several endpoints, and a table full of connections that nobody may evict."""
    node.apply(services(net), when_full="stateless")
    node.flows.fill(net.family)
    return node


def services(net: Net) -> list[dict[str, object]]:
    endpoints = [net.host(BACK, number) for number in (11, 12, 13)]
    return [service(net, *endpoints, protocol=proto, maglev_size=307) for proto in ("tcp", "udp")]


@PROTOCOLS
def test_connection_goes_both_ways_without_an_entry(stateless: Node, net: Net, proto: str) -> None:
    before = stateless.flows.entries()
    talk = Conversation(stateless, net, proto=proto)
    out = talk.first()
    assert out.reason == "forward_stateless"
    assert hop_limit(out.packet) == 63
    back = talk.server("SA")
    assert back.reason == "forward_stateless"
    assert (network(back.packet).src, network(back.packet).dst) == (net.vip, net.client)
    assert ports(back.packet) == (80, 40000)
    again = talk.client("A", payload=b"request")
    assert (again.reason, network(again.packet).dst) == ("forward_stateless", talk.leaves.dst)
    assert talk.client("FA").reason == "forward_stateless"
    assert stateless.flows.entries() == before


@PROTOCOLS
def test_endpoint_is_the_one_that_an_entry_would_name(node: Node, net: Net, proto: str) -> None:
    """So that the connection stays where it is when there is room again."""
    node.apply(services(net), when_full="stateless")
    chosen = {}
    for sport in range(40000, 40020):
        talk = Conversation(node, net, proto=proto, sport=sport)
        assert talk.first().reason == "forward_new"
        chosen[sport] = talk.leaves.dst
    node.flows.clear()
    node.flows.fill(net.family)
    for sport, endpoint in chosen.items():
        talk = Conversation(node, net, proto=proto, sport=sport)
        assert talk.first().reason == "forward_stateless"
        assert talk.leaves.dst == endpoint


def test_connection_gets_an_entry_when_there_is_room_again(stateless: Node, net: Net) -> None:
    talk = Conversation(stateless, net).open()
    endpoint = talk.leaves.dst
    stateless.flows.clear()
    assert talk.client("A", payload=b"x").reason == "forward_new"
    assert talk.leaves.dst == endpoint
    assert talk.client("A", payload=b"y").reason == "forward_flow"
    assert talk.server("A", payload=b"z").verdict == "forward"


@pytest.mark.parametrize(
    "changed",
    [{"mode": "full-nat"}, {"algorithm": "round-robin"}],
    ids=["full-nat", "round-robin"],
)
def test_what_needs_an_entry_is_dropped(node: Node, net: Net, changed: dict[str, str]) -> None:
    node.apply([service(net, **changed)], when_full="stateless")
    node.flows.fill(net.family)
    assert Conversation(node, net).first().reason == "drop_table_full"


def test_endpoints_of_two_services_need_an_entry(node: Node, net: Net) -> None:
    """Nobody could tell which of them an answer comes from."""
    node.apply([service(net), service(net, address=net.other_vip)], when_full="stateless")
    node.flows.fill(net.family)
    assert Conversation(node, net).first().reason == "drop_table_full"


def test_masqueraded_flow_is_dropped(node: Node, net: Net) -> None:
    node.apply(services(net), nat=[masquerade(net)], when_full="stateless")
    node.flows.fill(net.family)
    assert Conversation(node, net, inside=True).first().reason == "drop_table_full"


def test_policy_drop_drops(node: Node, net: Net) -> None:
    node.apply([service(net)])
    node.flows.fill(net.family)
    assert Conversation(node, net).first().reason == "drop_table_full"


def test_endpoints_own_traffic_is_left_to_linux_before_the_table_was_full(node: Node, net: Net) -> None:
    node.apply(services(net), when_full="stateless")
    out = node.send(frame(BACK, net.endpoint, net.client, tcp(8080, 999, "SA")), BACK)
    assert out.verdict == "punt"


def test_answer_to_a_connection_past_the_service_stays_with_linux(stateless: Node, net: Net) -> None:
    """A client that talks to the endpoint itself, through Linux."""
    talk = Conversation(stateless, net)
    assert talk.first().reason == "forward_stateless"
    direct = frame(FRONT, net.client, net.endpoint, tcp(999, 8080, "S"))
    assert stateless.send(direct, FRONT).verdict == "punt"
    out = stateless.send(frame(BACK, net.endpoint, net.client, tcp(8080, 999, "SA")), BACK)
    assert out.verdict == "punt"


def test_too_big_for_the_way_is_answered(node: Node, net: Net) -> None:
    endpoint = net.host(NARROW, 11)
    node.apply([service(net, endpoint, protocol="udp")], when_full="stateless")
    node.flows.fill(net.family)
    talk = Conversation(node, net, proto="udp")
    assert talk.first().reason == "forward_stateless"
    out = talk.client(payload=bytes(NARROW_MTU))
    assert out.reason in ("answer_too_big", node.to_fragment)
    assert out.reason == node.to_fragment or network(out.packet).dst == net.client


@pytest.mark.usefixtures("one_cpu")
def test_next_packet_is_answered_for_what_it_is(node: Node, net: Net) -> None:
    node.apply(services(net), when_full="stateless")
    node.flows.fill(net.family)
    assert Conversation(node, net, proto="udp").first().reason == "forward_stateless"
    node.flows.clear()
    node.apply([service(net)], midstream="reset")
    assert Conversation(node, net).client("A").reason == "answer_reset"


@pytest.mark.usefixtures("one_cpu")
def test_next_packet_is_answered_for_what_it_is_after_one_too_big(node: Node, net: Net) -> None:
    node.apply([service(net, net.host(NARROW, 11), protocol="udp")], when_full="stateless")
    node.flows.fill(net.family)
    out = Conversation(node, net, proto="udp").client(payload=bytes(NARROW_MTU))
    assert out.reason in ("answer_too_big", node.to_fragment)
    node.flows.clear()
    node.apply([service(net)], midstream="reset")
    assert Conversation(node, net).client("A").reason == "answer_reset"
