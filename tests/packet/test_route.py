# SPDX-License-Identifier: Apache-2.0
"""The kernel's routing decides where a packet goes: gateways, policy, what is forbidden."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.packet.addresses import BACK, FRONT, NETS, SPARE, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import network, ports
from tests.packet.marks import IPV4
from tests.packet.node import HANDED_OVER, Node


def test_packet_to_an_endpoint_behind_a_router_goes_to_the_router(node: Node, net: Net) -> None:
    node.apply([service(net, net.remote_host(5))])
    out = Conversation(node, net).first()
    assert (network(out.packet).dst, out.packet.dst) == (net.remote_host(5), neighbour_mac(BACK, 254))


def test_reply_takes_the_way_of_its_own_destination(node: Node, net: Net) -> None:
    """Not back where the request came from: the client is routed elsewhere."""
    node.apply([service(net)])
    with node.world.route("add", net.far_client(9), "via", net.router(SPARE), "dev", SPARE):
        talk = Conversation(node, net, client=net.far_client(9))
        talk.first()
        out = talk.server("SA")
    assert (out.packet.src, out.packet.dst) == (device_mac(SPARE), neighbour_mac(SPARE, 254))


def test_service_may_be_used_from_the_endpoints_own_network(node: Node, net: Net) -> None:
    """In and out through one device; full-nat brings the answers back."""
    node.apply([service(net, mode="full-nat")])
    talk = Conversation(node, net, inside=True, to=net.vip, server_device=BACK)
    talk.server_device = BACK
    out = talk.first()
    assert (out.reason, network(out.packet).src, network(out.packet).dst) == (
        "forward_new",
        net.node(BACK),
        net.endpoint,
    )
    assert (out.packet.src, out.packet.dst) == (device_mac(BACK), neighbour_mac(BACK, 11))
    back = talk.server("SA")
    assert (network(back.packet).src, network(back.packet).dst) == (net.vip, net.inside)
    assert (back.packet.src, back.packet.dst) == (device_mac(BACK), neighbour_mac(BACK, 50))


@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit"])
def test_forbidden_destination_of_a_service_drops(node: Node, net: Net, kind: str) -> None:
    node.apply([service(net, net.remote_host(6))])
    with node.world.route("add", kind, net.remote_host(6)):
        assert Conversation(node, net).first().reason == "drop_no_route"
    assert node.flows.entries() == 0


def test_rule_may_send_a_source_another_way(node: Node, net: Net) -> None:
    """Policy routing sees the packet as it leaves: the client is still the source."""
    node.apply([service(net, net.remote_host(5))])
    family, run = f"-{net.family}", node.world.node.run
    run("ip", family, "route", "add", "default", "via", net.router(SPARE), "dev", SPARE, "table", "78")
    rule = ("from", net.client, "iif", FRONT, "lookup", "78")
    run("ip", family, "rule", "add", *rule)
    try:
        here = Conversation(node, net).first()
        other = Conversation(node, net, client=net.host(FRONT, 51)).first()
    finally:
        run("ip", family, "rule", "del", *rule)
        run("ip", family, "route", "flush", "table", "78")
    assert here.packet.dst == neighbour_mac(SPARE, 254)
    assert other.packet.dst == neighbour_mac(BACK, 254)


@pytest.fixture
def ipv4_behind_ipv6(node: Node) -> Iterator[str]:
    """An IPv4 host whose gateway has an IPv6 address (RFC 8950)."""
    host = "10.77.0.5"
    with node.world.route("add", host, "via", "inet6", NETS[6].router(BACK), "dev", BACK):
        yield host


@IPV4
def test_ipv4_leaves_through_an_ipv6_gateway(node: Node, net: Net, ipv4_behind_ipv6: str) -> None:
    node.apply([service(net, ipv4_behind_ipv6)])
    out = Conversation(node, net).first()
    assert (out.reason, network(out.packet).dst) == ("forward_new", ipv4_behind_ipv6)
    assert (out.packet.src, out.packet.dst) == (device_mac(BACK), neighbour_mac(BACK, 254))


@IPV4
def test_ipv4_waits_for_an_ipv6_gateway_that_is_not_resolved(node: Node, net: Net) -> None:
    host = "10.77.0.6"
    node.apply([service(net, host)])
    with node.world.route("add", host, "via", "inet6", NETS[6].unresolved, "dev", BACK):
        out = Conversation(node, net).first()
    assert out.reason == (HANDED_OVER if node.hook == "xdp" else "forward_neighbour")


def test_masquerade_follows_the_device_that_routing_chose(node: Node, net: Net) -> None:
    """Each device has its own rule and its own address."""
    node.apply(nat=[masquerade(net, ports="2000-2999"), masquerade(net, interface=SPARE, ports="3000-3999")])
    target = net.far_client(9)
    first = Conversation(node, net, inside=True, to=target).first()
    with node.world.route("add", target, "via", net.router(SPARE), "dev", SPARE):
        second = Conversation(node, net, inside=True, to=target, sport=41000).first()
    assert (network(first.packet).src, 2000 <= ports(first.packet)[0] <= 2999) == (net.node(FRONT), True)
    assert (network(second.packet).src, 3000 <= ports(second.packet)[0] <= 3999) == (net.node(SPARE), True)


def test_node_that_does_not_forward_translates_nothing(node: Node, net: Net) -> None:
    """net.ipv4.ip_forward, net.ipv6.conf.*.forwarding: the administrator's word counts."""
    node.apply([service(net)])
    name = f"ipv{net.family}/conf/{FRONT}/forwarding"
    node.world.node.sysctl({name: 0})
    try:
        assert Conversation(node, net).first().reason == "drop_no_route"
    finally:
        node.world.node.sysctl({name: 1})
    assert node.flows.entries() == 0
