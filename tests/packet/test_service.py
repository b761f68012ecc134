# SPDX-License-Identifier: Apache-2.0
"""Services in both modes: what leaves, what comes back, which endpoint takes a connection."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.packet.addresses import BACK, FRONT, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, service
from tests.packet.flowtable import packed
from tests.packet.frames import echo, frame, hop_limit, network, ports, tcp, udp
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node


@PROTOCOLS
def test_first_packet_goes_to_an_endpoint(node: Node, net: Net, proto: str) -> None:
    node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto)
    out = talk.first()
    assert out.reason == "forward_new"
    layer = network(out.packet)
    assert (layer.src, layer.dst, ports(out.packet)) == (net.client, net.endpoint, (40000, 8080))
    assert (out.packet.src, out.packet.dst) == (device_mac(BACK), neighbour_mac(BACK, 11))
    assert hop_limit(out.packet) == 63


@PROTOCOLS
def test_first_packet_makes_both_entries(node: Node, net: Net, proto: str) -> None:
    tables = node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto)
    out = talk.first()
    entry, reply = node.flows.entry(talk.arrives), node.flows.entry(talk.reply)
    assert node.flows.entries() == 2
    assert node.flows.flags(talk.arrives) == {"dest_nat", "has_service"}
    assert (entry["packets"], entry["bytes"]) == (1, len(out.sent))
    assert entry["endpoint"] == tables.endpoints[0].id
    assert node.datapath.flows()["service"].tolist() == [tables.services[0].id]
    assert node.flows.flags(talk.reply) == {"reply", "source_nat", "has_service"}
    assert reply["packets"] == 0
    assert node.flows.connection().ifindex == node.world.ifindex[BACK]


@PROTOCOLS
def test_reply_comes_from_the_service(node: Node, net: Net, proto: str) -> None:
    node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto)
    talk.first()
    out = talk.server("SA")
    assert out.reason == ("forward_state" if proto == "tcp" else "forward_resolved")
    layer = network(out.packet)
    assert (layer.src, layer.dst, ports(out.packet)) == (net.vip, net.client, (80, 40000))
    assert (out.packet.src, out.packet.dst) == (device_mac(FRONT), neighbour_mac(FRONT, 50))
    assert hop_limit(out.packet) == 63
    assert node.flows.connection().reply_ifindex == node.world.ifindex[FRONT]


@PROTOCOLS
def test_established_flow_takes_one_lookup(node: Node, net: Net, proto: str) -> None:
    node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto).open()
    before = node.flows.connection()
    out, back = talk.client(payload=b"x" * 100), talk.server(payload=b"x" * 101)
    assert (out.reason, back.reason) == ("forward_flow", "forward_flow")
    after = node.flows.connection()
    assert (after.packets - before.packets, after.bytes - before.bytes) == (1, len(out.sent))
    assert (after.reply_packets - before.reply_packets, after.reply_bytes - before.reply_bytes) == (
        1,
        len(back.sent),
    )


@PROTOCOLS
def test_ttl_is_decremented(node: Node, net: Net, proto: str) -> None:
    """In both directions, by first packets and by those of known flows."""
    node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto)
    assert hop_limit(talk.first(ttl=200).packet) == 199
    assert hop_limit(talk.server("SA", ttl=128).packet) == 127
    for ttl in (255, 64, 2):
        assert hop_limit(talk.client("A", ttl=ttl).packet) == ttl - 1
        assert hop_limit(talk.server("A", ttl=ttl).packet) == ttl - 1


@PROTOCOLS
@pytest.mark.parametrize("size", [0, 1, 2, 3, 99, 1000])
def test_payload_arrives_unchanged(node: Node, net: Net, proto: str, size: int) -> None:
    node.apply([service(net, protocol=proto, mode="full-nat")])
    talk = Conversation(node, net, proto=proto).open()
    payload = bytes(n * 7 & 255 for n in range(size))
    assert talk.client(payload=payload).frame.endswith(payload)
    assert talk.server(payload=payload).frame.endswith(payload)


@PROTOCOLS
def test_full_nat_hides_the_client(node: Node, net: Net, proto: str) -> None:
    node.apply([service(net, protocol=proto, mode="full-nat", ports="2000-2999")])
    talk = Conversation(node, net, proto=proto)
    out = talk.first()
    layer = network(out.packet)
    assert (layer.src, layer.dst) == (net.node(BACK), net.endpoint)
    sport, dport = ports(out.packet)
    assert 2000 <= sport <= 2999 and dport == 8080
    assert node.flows.flags(talk.arrives) == {"source_nat", "dest_nat", "full_nat", "has_service"}


@PROTOCOLS
def test_full_nat_reply_finds_the_client(node: Node, net: Net, proto: str) -> None:
    node.apply([service(net, protocol=proto, mode="full-nat", ports="2000-2999")])
    talk = Conversation(node, net, proto=proto)
    talk.first()
    out = talk.server("SA")
    layer = network(out.packet)
    assert (layer.src, layer.dst, ports(out.packet)) == (net.vip, net.client, (80, 40000))


def test_full_nat_without_an_address_drops(node: Node, net: Net) -> None:
    node.apply([service(net, mode="full-nat")])
    node.device(BACK, address4=0, address6=[0] * 16)
    assert Conversation(node, net).first().reason == "drop_no_address"
    assert node.flows.entries() == 0


def test_service_of_another_protocol_is_not_meant(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="tcp")])
    assert Conversation(node, net, proto="udp").client().reason == "punt_not_ours"
    assert node.flows.entries() == 0


def test_service_of_another_port_is_not_meant(node: Node, net: Net) -> None:
    node.apply([service(net)])
    assert Conversation(node, net, dport=81).first().reason == "punt_not_ours"


def test_ping_of_the_service_address_goes_to_linux(node: Node, net: Net) -> None:
    node.apply([service(net)])
    out = node.send(frame(FRONT, net.client, net.vip, echo(net.family, 77)))
    assert out.reason == "punt_not_ours"
    assert node.flows.entries() == 0


def test_round_robin_takes_turns_exactly(node: Node, net: Net) -> None:
    node.apply([service(net, *net.endpoints[:3], algorithm="round-robin")])
    took = [
        str(network(Conversation(node, net, sport=port).first().packet).dst) for port in range(5000, 5012)
    ]
    assert took[:3] * 4 == took
    assert set(took) == set(net.endpoints[:3])


def test_round_robin_respects_weights(node: Node, net: Net) -> None:
    endpoints = [
        {"address": address, "port": 8080, "weight": weight}
        for address, weight in zip(net.endpoints, (1, 2, 5), strict=False)
    ]
    node.apply([service(net, algorithm="round-robin", endpoints=endpoints)])
    took = Counter(
        str(network(Conversation(node, net, sport=port).first().packet).dst) for port in range(5000, 5016)
    )
    assert took == {net.endpoints[0]: 2, net.endpoints[1]: 4, net.endpoints[2]: 10}


def test_maglev_leads_the_same_connection_to_the_same_endpoint(node: Node, net: Net) -> None:
    node.apply([service(net, *net.endpoints[:4], maglev_size=1021)])
    first = [
        str(network(Conversation(node, net, sport=port).first().packet).dst) for port in range(5000, 5020)
    ]
    node.reset()
    node.apply([service(net, *net.endpoints[:4], maglev_size=1021)])
    again = [
        str(network(Conversation(node, net, sport=port).first().packet).dst) for port in range(5000, 5020)
    ]
    assert again == first


def test_maglev_agrees_between_hooks(node: Node, net: Net) -> None:
    node.apply([service(net, *net.endpoints[:4], maglev_size=1021)])
    other = Node(node.world, "tc" if node.hook == "xdp" else "xdp")
    for port in range(5000, 5010):
        here = network(Conversation(node, net, sport=port).first().packet).dst
        node.flows.clear()
        assert network(Conversation(other, net, sport=port).first().packet).dst == here


def test_maglev_spreads_clients(node: Node, net: Net) -> None:
    node.apply([service(net, *net.endpoints[:4], maglev_size=1021)])
    took = Counter(
        str(network(Conversation(node, net, client=net.far_client(n)).first().packet).dst)
        for n in range(1, 401)
    )
    # 400 throws at 4 boxes: 100 each with a deviation of 8.7
    assert set(took) == set(net.endpoints[:4])
    assert all(55 < count < 145 for count in took.values())


def test_maglev_respects_weights(node: Node, net: Net) -> None:
    endpoints = [
        {"address": address, "port": 8080, "weight": weight}
        for address, weight in zip(net.endpoints, (1, 3), strict=False)
    ]
    node.apply([service(net, maglev_size=1021, endpoints=endpoints)])
    took = Counter(
        str(network(Conversation(node, net, client=net.far_client(n)).first().packet).dst)
        for n in range(1, 401)
    )
    assert 60 < took[net.endpoints[0]] < 140
    assert 260 < took[net.endpoints[1]] < 340


def test_service_without_endpoints_drops(node: Node, net: Net) -> None:
    node.apply([service(net, endpoints=[])])
    assert Conversation(node, net).first().reason == "drop_no_endpoint"
    assert node.flows.entries() == 0


def test_connection_is_counted_for_its_endpoint(node: Node, net: Net) -> None:
    tables = node.apply([service(net)])
    talk = Conversation(node, net).open()
    talk.client("A", payload=b"GET /")
    _, opened = node.datapath.table("opened_v1").items()
    assert opened["connections"].sum(axis=0)[tables.endpoints[0].id] == 1


def test_two_services_on_one_endpoint_keep_one_client_apart(node: Node, net: Net) -> None:
    """Both connections of the client would look the same to the endpoint: the second one's port changes."""
    node.apply([service(net), service(net, address=net.other_vip)])
    first, second = Conversation(node, net), Conversation(node, net, to=net.other_vip)
    assert ports(first.first().packet) == (40000, 8080)
    sport, dport = ports(second.first().packet)
    assert sport != 40000 and dport == 8080
    out = second.server("SA")
    assert (network(out.packet).src, ports(out.packet)) == (net.other_vip, (80, 40000))
    out = first.server("SA")
    assert (network(out.packet).src, ports(out.packet)) == (net.vip, (80, 40000))


def test_endpoint_that_was_removed_ends_its_flow_and_a_new_connection_goes_elsewhere(
    node: Node, net: Net
) -> None:
    node.apply([service(net, net.endpoints[0])], midstream="drop")
    talk = Conversation(node, net).open()
    node.apply([service(net, net.endpoints[1])], midstream="drop")
    assert talk.client("A", payload=b"more").reason == "drop_midstream"
    assert node.flows.entries() == 0
    out = Conversation(node, net).first()
    assert (out.reason, network(out.packet).dst) == ("forward_new", net.endpoints[1])


def test_reply_of_an_endpoint_that_was_removed_is_dropped(node: Node, net: Net) -> None:
    node.apply([service(net, net.endpoints[0])])
    talk = Conversation(node, net).open()
    node.apply([service(net, net.endpoints[1])])
    assert talk.server("A", payload=b"late").reason == "drop_endpoint_gone"
    assert node.flows.entries() == 0


def test_removing_one_endpoint_leaves_the_flows_of_the_others(node: Node, net: Net) -> None:
    node.apply([service(net, *net.endpoints[:2], algorithm="round-robin")])
    talks = [Conversation(node, net, sport=port).open() for port in (5000, 5001)]
    gone, stays = sorted(talks, key=lambda talk: talk.leaves.dst)
    node.apply([service(net, stays.leaves.dst, algorithm="round-robin")])
    out = stays.client("A", payload=b"on")
    assert (out.reason, network(out.packet).dst) == ("forward_resolved", stays.leaves.dst)
    assert stays.server("A", payload=b"on").reason == "forward_resolved"
    out = Conversation(node, net, sport=gone.arrives.sport).first()
    assert network(out.packet).dst == stays.leaves.dst


def test_draining_endpoint_keeps_its_flows_and_gets_no_new_ones(node: Node, net: Net) -> None:
    node.apply([service(net, *net.endpoints[:2], algorithm="round-robin")])
    talks = [Conversation(node, net, sport=port).open() for port in (5000, 5001)]
    draining = net.endpoints[0]
    endpoints = [
        {"address": address, "port": 8080, "drain": address == draining} for address in net.endpoints[:2]
    ]
    node.apply([service(net, algorithm="round-robin", endpoints=endpoints)])
    (kept,) = (talk for talk in talks if talk.leaves.dst == draining)
    assert network(kept.client("A", payload=b"on").packet).dst == draining
    assert kept.server("A", payload=b"on").verdict == "forward"
    new = {network(Conversation(node, net, sport=port).first().packet).dst for port in range(6000, 6006)}
    assert new == {net.endpoints[1]}


def test_service_that_was_removed_ends_its_flows(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net).open()
    node.apply()
    assert talk.server("A", payload=b"late").reason == "drop_endpoint_gone"
    assert talk.client("A", payload=b"late").reason == "punt_not_ours"
    assert node.flows.entries() == 0


def test_endpoint_id_given_to_another_server_does_not_get_old_flows(node: Node, net: Net) -> None:
    """Ids are given out again: what counts is that the row still says what the flow does."""
    tables = node.apply([service(net, net.endpoints[0])], midstream="drop")
    talk = Conversation(node, net).open()
    row = {
        "port": 8080,
        "family": net.family,
        "state": node.datapath.enum("endpoint_state")["ENDPOINT_ACTIVE"],
        "service": tables.services[0].id,
    }
    node.write("endpoint_v1", tables.endpoints[0].id, {**row, "address": packed(net.endpoints[1])})
    node.datapath.bump_mirror()
    assert talk.client("A", payload=b"more").reason == "drop_midstream"


def test_unroutable_endpoint_drops(node: Node, net: Net) -> None:
    unreachable = "192.0.2.200" if net.family == 4 else "2001:db8:dead::1"
    node.apply([service(net, unreachable)])
    with node.world.route("add", "unreachable", unreachable):
        out = node.send(frame(FRONT, net.client, net.vip, tcp(4000, 80, "S")))
    assert out.reason == "drop_no_route"
    assert node.flows.entries() == 0


NOBODY = {
    4: ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.2.3", "255.255.255.255"],
    6: ["::", "::1", "ff02::1", "fe80::1"],
}


@pytest.mark.parametrize("ttl", [64, 1])
@pytest.mark.parametrize("number", range(6))
def test_packet_from_nobody_is_left_to_linux(node: Node, net: Net, number: int, ttl: int) -> None:
    """Neither balanced nor, expired, answered (RFC 1122 3.2.2)."""
    source = NOBODY[net.family][number % len(NOBODY[net.family])]
    node.apply([service(net, protocol="udp")])
    assert node.send(frame(FRONT, source, net.vip, udp(40000, 80), ttl=ttl)).reason == "punt_multicast"
    assert node.flows.entries() == 0
