# SPDX-License-Identifier: Apache-2.0
"""Source NAT: which address and port a connection leaves with, and that nobody else has them."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

import pytest

from tests.packet.addresses import BACK, FRONT, SPARE, Net
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.flowtable import Tuple, packed
from tests.packet.frames import echo, frame, hop_limit, identifier, network, ports, tcp, udp
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node
from tests.packet.world import LOCAL_PORTS


def inside_talk(node: Node, net: Net, proto: str = "tcp", **keys: Any) -> Conversation:
    return Conversation(node, net, proto=proto, inside=True, **keys)


@PROTOCOLS
def test_masquerade_leaves_with_the_address_of_the_device(node: Node, net: Net, proto: str) -> None:
    tables = node.apply(nat=[masquerade(net)])
    talk = inside_talk(node, net, proto, sport=2500)
    out = talk.first()
    assert out.reason == "forward_new"
    layer = network(out.packet)
    assert (layer.src, layer.dst, ports(out.packet)) == (net.node(FRONT), net.server, (2500, 80))
    assert hop_limit(out.packet) == 63
    entry = node.flows.entry(talk.arrives)
    assert node.flows.flags(talk.arrives) == {"source_nat", "has_nat"}
    assert entry["nat"] == tables.nats[0].id
    assert node.flows.flags(talk.reply) == {"reply", "dest_nat", "has_nat"}


@PROTOCOLS
def test_masqueraded_reply_finds_the_inside_host(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net)])
    talk = inside_talk(node, net, proto)
    talk.first()
    out = talk.server("SA")
    layer = network(out.packet)
    assert (layer.src, layer.dst, ports(out.packet)) == (net.server, net.inside, (80, 40000))
    assert talk.client("A", payload=b"GET /").verdict == "forward"
    assert talk.server("A", payload=b"200").reason == "forward_flow"


@PROTOCOLS
def test_port_outside_the_range_is_replaced_by_one_inside(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2009")])
    sport, _ = ports(inside_talk(node, net, proto, sport=40000).first().packet)
    assert 2000 <= sport <= 2009


@PROTOCOLS
@pytest.mark.parametrize("port", [2000, 2009])
def test_port_in_the_range_is_kept(node: Node, net: Net, proto: str, port: int) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2009")])
    assert ports(inside_talk(node, net, proto, sport=port).first().packet)[0] == port


@PROTOCOLS
def test_many_clients_with_one_port_never_collide(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net, source=net.any)])
    seen = {}
    for number in range(300):
        talk = inside_talk(node, net, proto, client=net.far_client(number + 1), sport=5000)
        talk.first()
        seen[talk.leaves] = talk.arrives
    assert len(seen) == 300
    assert all(1024 <= leaves.sport <= 32767 for leaves in seen)
    assert node.flows.entries() == 600
    for leaves, arrives in list(seen.items())[::50]:
        entry = node.flows.entry(leaves.reversed())
        assert entry["dport"] == arrives.sport
        assert list(entry["dst"]) == packed(arrives.src)


def test_port_stays_clear_of_the_hosts_local_port_range(node: Node, net: Net) -> None:
    """A connection of the host's own might want it at any time."""
    node.apply(nat=[masquerade(net, source=net.any)])
    first, last = LOCAL_PORTS
    for sport in (first, 40000, last):
        chosen = {
            ports(inside_talk(node, net, client=net.far_client(n), sport=sport).first().packet)[0]
            for n in range(1, 20)
        }
        assert all(not first <= port <= last for port in chosen)


def test_both_keys_of_a_translated_flow_are_born_and_die_together(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    talk = inside_talk(node, net)
    talk.first()
    assert node.flows.entry(talk.arrives) is not None and node.flows.entry(talk.reply) is not None
    node.flows.let_time_pass(talk, seconds=1000)
    node.datapath.sweep()
    assert node.flows.entry(talk.arrives) is None and node.flows.entry(talk.reply) is None


def test_one_port_serves_many_destinations(node: Node, net: Net) -> None:
    """RFC 4787: only the whole tuple has to be unique."""
    node.apply(nat=[masquerade(net, ports="2000-2000")])
    for dport in range(80, 90):
        assert ports(inside_talk(node, net, dport=dport).first().packet) == (2000, dport)


def test_every_port_of_a_small_range_is_used_before_a_connection_is_refused(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2031")])
    taken = {ports(inside_talk(node, net, sport=40000 + n).first().packet)[0] for n in range(32)}
    assert taken == set(range(2000, 2032))
    out = inside_talk(node, net, sport=50000).first()
    assert out.reason == "drop_no_port"
    assert node.flows.entries() == 64


def test_every_port_of_a_range_of_hundreds_is_used(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2399")])
    outcomes = [inside_talk(node, net, sport=40000 + n).first() for n in range(400)]
    assert {out.reason for out in outcomes} == {"forward_new"}
    assert {ports(out.packet)[0] for out in outcomes} == set(range(2000, 2400))


def test_port_is_free_again_when_the_connection_has_expired(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2000")])
    first = inside_talk(node, net, sport=40000)
    first.first()
    assert inside_talk(node, net, sport=40001).first().reason == "drop_no_port"
    node.flows.let_time_pass(first, seconds=1000)
    assert node.datapath.sweep().expired == 1
    assert node.flows.entries() == 0
    assert inside_talk(node, net, sport=40001).first().reason == "forward_new"


@PROTOCOLS
def test_port_of_the_hosts_own_socket_is_not_taken(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2001")])
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    with node.world.node.listen(("::" if net.family == 6 else "0.0.0.0", 2000), kind=kind):
        assert ports(inside_talk(node, net, proto, sport=2000).first().packet)[0] == 2001
        assert inside_talk(node, net, proto, sport=40000).first().reason == "drop_no_port"
    assert ports(inside_talk(node, net, proto, sport=40000).first().packet)[0] == 2000


def test_port_of_the_hosts_own_connection_is_not_taken(node: Node, net: Net) -> None:
    """A UDP socket that is connected to the very server; another server may see the port."""
    node.apply(nat=[masquerade(net, ports="2000-2000")])
    with node.world.node.open_socket(
        socket.AF_INET6 if net.family == 6 else socket.AF_INET, socket.SOCK_DGRAM
    ) as own:
        own.bind((net.node(FRONT), 2000))
        own.connect((net.server, 80))
        assert inside_talk(node, net, "udp").first().reason == "drop_no_port"
        assert inside_talk(node, net, "udp", to=net.host(FRONT, 61)).first().reason == "forward_new"


@PROTOCOLS
def test_port_of_a_socket_on_another_address_may_be_taken(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2001")])
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    with node.world.node.listen((net.node(SPARE), 2000), kind=kind):
        assert ports(inside_talk(node, net, proto, sport=2000).first().packet)[0] == 2000


def test_full_nat_does_not_take_the_hosts_own_port(node: Node, net: Net) -> None:
    node.apply([service(net, mode="full-nat", ports="2000-2001")])
    with node.world.node.listen((net.node(BACK), 2000)):
        assert ports(Conversation(node, net, sport=2000).first().packet)[0] == 2001


def test_echo_is_masqueraded_by_its_identifier(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    out = node.send(frame(BACK, net.inside, net.server, echo(net.family, 1234)), BACK)
    assert out.reason == "forward_new"
    assert (network(out.packet).src, identifier(out.packet)) == (net.node(FRONT), 1234)
    back = node.send(frame(FRONT, net.server, net.node(FRONT), echo(net.family, 1234, reply=True)))
    assert (network(back.packet).dst, identifier(back.packet)) == (net.inside, 1234)
    assert node.flows.connection().state == "icmp"


@pytest.mark.parametrize("number", [0, 1, 0xFFFF])
def test_echo_identifier_outside_the_range_is_translated_both_ways(node: Node, net: Net, number: int) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2999")])
    out = node.send(frame(BACK, net.inside, net.server, echo(net.family, number)), BACK)
    chosen = identifier(out.packet)
    assert 2000 <= chosen <= 2999
    back = node.send(frame(FRONT, net.server, net.node(FRONT), echo(net.family, chosen, reply=True)))
    assert (network(back.packet).dst, identifier(back.packet)) == (net.inside, number)


def test_two_hosts_pinging_with_one_identifier_get_their_own_replies(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    hosts = [net.host(BACK, 50), net.host(BACK, 51)]
    chosen = [
        identifier(node.send(frame(BACK, host, net.server, echo(net.family, 1234)), BACK).packet)
        for host in hosts
    ]
    assert chosen[0] != chosen[1]
    for host, number in zip(hosts, chosen, strict=True):
        back = node.send(frame(FRONT, net.server, net.node(FRONT), echo(net.family, number, reply=True)))
        assert (network(back.packet).dst, identifier(back.packet)) == (host, 1234)


def test_echo_reply_that_nobody_asked_for_is_not_translated(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    out = node.send(frame(BACK, net.inside, net.server, echo(net.family, 1234, reply=True)), BACK)
    assert out.reason == "punt_icmp"
    assert node.flows.entries() == 0


@PROTOCOLS
def test_pool_gives_an_address_of_the_pool(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net, masquerade=False, pool=net.pool)])
    talk = inside_talk(node, net, proto)
    out = talk.first()
    first, last = (int(ip_address(text)) for text in net.pool.split("-"))
    assert first <= int(ip_address(network(out.packet).src)) <= last
    back = talk.server("SA")
    assert (network(back.packet).dst, ports(back.packet)) == (net.inside, (80, 40000))


def test_pool_pairs_a_host_with_one_address(node: Node, net: Net) -> None:
    """RFC 4787 REQ-2: all connections of a host seem to come from the same address."""
    node.apply(nat=[masquerade(net, masquerade=False, pool=net.pool)])
    sources = {network(inside_talk(node, net, sport=port).first().packet).src for port in range(4000, 4010)}
    assert len(sources) == 1


def test_pool_uses_all_of_its_addresses_and_no_other(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net, source=net.any, masquerade=False, pool=net.pool)])
    sources = {
        network(inside_talk(node, net, client=net.far_client(n)).first().packet).src for n in range(1, 100)
    }
    first, last = (int(ip_address(text)) for text in net.pool.split("-"))
    assert {int(ip_address(source)) for source in sources} == set(range(first, last + 1))


def test_longest_prefix_decides_which_rule_translates(node: Node, net: Net) -> None:
    host = f"{net.inside}/{128 if net.family == 6 else 32}"
    tables = node.apply(
        nat=[
            masquerade(net, source=net.any, ports="2000-2999"),
            masquerade(net, source=host, ports="3000-3999"),
            masquerade(net, ports="4000-4999"),
        ]
    )
    first, other = inside_talk(node, net), inside_talk(node, net, client=net.host(BACK, 51))
    assert 3000 <= ports(first.first().packet)[0] <= 3999
    assert 4000 <= ports(other.first().packet)[0] <= 4999
    ids = {str(row.source): row.id for row in tables.nats}
    assert node.flows.entry(first.arrives)["nat"] == ids[host]


def test_rule_of_another_interface_does_not_translate(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net, interface=SPARE)])
    assert inside_talk(node, net).first().reason == "punt_not_ours"


def test_source_that_no_rule_names_is_not_translated(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    assert inside_talk(node, net, client=net.host(SPARE, 9)).first().reason == "punt_not_ours"


def test_masquerade_through_a_device_without_address_drops(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    node.device(FRONT, address4=0, address6=[0] * 16)
    assert inside_talk(node, net).first().reason == "drop_no_address"
    assert node.flows.entries() == 0


@PROTOCOLS
def test_service_and_masquerade_translate_one_connection(node: Node, net: Net, proto: str) -> None:
    """An inside host uses a service whose endpoint is in the internet."""
    node.apply([service(net, net.server, protocol=proto)], nat=[masquerade(net)])
    talk = inside_talk(node, net, proto, to=net.vip, sport=2500)
    out = talk.first()
    layer = network(out.packet)
    assert (layer.src, layer.dst, ports(out.packet)) == (net.node(FRONT), net.server, (2500, 8080))
    assert node.flows.flags(talk.arrives) == {"source_nat", "dest_nat", "has_nat", "has_service"}
    back = talk.server("SA")
    layer = network(back.packet)
    assert (layer.src, layer.dst, ports(back.packet)) == (net.vip, net.inside, (80, 2500))


def test_expired_ttl_of_a_first_packet_is_left_to_linux(node: Node, net: Net) -> None:
    """Nothing is translated yet: Linux knows the addresses and answers."""
    node.apply(nat=[masquerade(net)])
    assert inside_talk(node, net).first(ttl=1).reason == "punt_ttl"
    assert node.flows.entries() == 0


@PROTOCOLS
def test_unsolicited_packet_to_a_masquerade_address_goes_to_linux(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net)])
    above = tcp(80, 2500, "SA") if proto == "tcp" else udp(80, 2500)
    out = node.send(frame(FRONT, net.server, net.node(FRONT), above))
    assert out.reason == "punt_local"
    assert node.flows.entries() == 0


def test_reply_key_belongs_to_the_translated_address_only(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    talk = inside_talk(node, net, sport=2500)
    talk.first()
    assert node.flows.entry(Tuple("tcp", net.server, 80, net.node(FRONT), 2500)) is not None
    assert node.flows.entry(Tuple("tcp", net.server, 80, net.inside, 2500)) is None
