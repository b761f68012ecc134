# SPDX-License-Identifier: Apache-2.0
"""A flow of an older generation is resolved again, never flushed: the next packet takes the new way with the
same translation.
"""

from __future__ import annotations

import pytest

from tests.packet.addresses import BACK, SPARE, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, service
from tests.packet.frames import network, ports
from tests.packet.node import Node, Outcome


@pytest.fixture
def talk(node: Node, net: Net) -> Conversation:
    """A connection to an endpoint behind the back's router."""
    node.apply([service(net, net.remote_host(5))])
    made = Conversation(node, net).open()
    assert made.client(payload=b"x").reason == "forward_flow"
    assert made.server(payload=b"x").reason == "forward_flow"
    return made


def hop(out: Outcome) -> tuple[str, str]:
    return out.packet.src, out.packet.dst


def needs_kernel_context(node: Node) -> None:
    if not node.datapath.kernel_context:
        pytest.skip(
            "this kernel does not show a program its packet's context: the daemon bumps the mirror instead"
        )


def test_route_change_takes_the_next_packet_another_way(node: Node, net: Net, talk: Conversation) -> None:
    before = talk.client(payload=b"x")
    assert hop(before) == (device_mac(BACK), neighbour_mac(BACK, 254))
    translation = (network(before.packet).dst, ports(before.packet))
    opened = node.flows.connection()
    with node.world.route("add", net.remote_host(5), "via", net.router(SPARE), "dev", SPARE):
        if not node.datapath.kernel_context:
            node.datapath.bump_mirror()
        after = talk.client(payload=b"x")
        assert (after.reason, hop(after)) == (
            "forward_resolved",
            (device_mac(SPARE), neighbour_mac(SPARE, 254)),
        )
        assert (network(after.packet).dst, ports(after.packet)) == translation
        again = talk.client(payload=b"x")
        assert (again.reason, hop(again)) == ("forward_flow", hop(after))
    connection = node.flows.connection()
    assert (connection.state, connection.leaves) == ("tcp_established", opened.leaves)
    assert connection.packets == opened.packets + 2
    assert connection.ifindex == node.world.ifindex[SPARE]


def test_families_have_stamps_of_their_own(node: Node, net: Net) -> None:
    """By the same devices: the routes and next hops of one do not make the other's connections ask again."""
    nets = (net, net.other_family)
    node.apply([service(one, one.remote_host(5), name=f"ipv{one.family}") for one in nets])
    ours, others = (Conversation(node, one).open() for one in nets)
    both = [talk.client(payload=b"x").reason for _ in range(2) for talk in (ours, others)]
    assert both == ["forward_flow"] * 4
    needs_kernel_context(node)
    with node.world.route("add", net.remote_host(9), "via", net.router(SPARE), "dev", SPARE):
        reasons = [talk.client(payload=b"x").reason for _ in range(2) for talk in (ours, others)]
        assert reasons == ["forward_resolved", "forward_flow", "forward_flow", "forward_flow"]


def test_route_that_goes_away_drops_and_keeps_the_flow(node: Node, net: Net, talk: Conversation) -> None:
    with node.world.route("add", "unreachable", net.remote_host(5)):
        node.datapath.bump_mirror()
        assert talk.client(payload=b"x").reason == "drop_no_route"
        assert node.flows.entries() == 2
    node.datapath.bump_mirror()
    assert talk.client(payload=b"x").reason == "forward_resolved"


def test_mirror_bump_resolves_again(node: Node, talk: Conversation) -> None:
    """Neighbours, links and addresses: what only netlink tells."""
    node.datapath.bump_mirror()
    assert [talk.client(payload=b"x").reason for _ in range(2)] == ["forward_resolved", "forward_flow"]
    assert [talk.server(payload=b"x").reason for _ in range(2)] == ["forward_resolved", "forward_flow"]


def test_changed_neighbour_is_used_after_a_bump(node: Node, net: Net, talk: Conversation) -> None:
    mac = "02:00:00:00:77:77"
    neighbour = ("neigh", "replace", net.router(BACK), "dev", BACK, "nud", "permanent", "lladdr")
    node.world.node.ip(*neighbour, mac)
    try:
        node.datapath.bump_mirror()
        assert talk.client(payload=b"x").packet.dst == mac
    finally:
        node.world.node.ip(*neighbour, neighbour_mac(BACK, 254))


def test_new_configuration_resolves_again(node: Node, net: Net, talk: Conversation) -> None:
    node.apply([service(net, net.remote_host(5)), service(net, address=net.other_vip)])
    out = talk.client(payload=b"x")
    assert (out.reason, network(out.packet).dst) == ("forward_resolved", net.remote_host(5))
    assert talk.client(payload=b"x").reason == "forward_flow"


def test_apply_of_the_same_configuration_changes_nothing(node: Node, net: Net, talk: Conversation) -> None:
    node.apply([service(net, net.remote_host(5))])
    assert talk.client(payload=b"x").reason == "forward_flow"


def test_nftables_commit_resolves_again(node: Node, talk: Conversation) -> None:
    needs_kernel_context(node)
    node.world.node.run("nft", "add", "table", "inet", "generation")
    try:
        assert [talk.client(payload=b"x").reason for _ in range(2)] == ["forward_resolved", "forward_flow"]
    finally:
        node.world.node.run("nft", "delete", "table", "inet", "generation")
    assert talk.client(payload=b"x").reason == "forward_resolved"


def test_unrelated_route_change_keeps_the_way(node: Node, net: Net, talk: Conversation) -> None:
    needs_kernel_context(node)
    unrelated = "10.77.0.0/24" if net.family == 4 else "fd00:77::/64"
    with node.world.route("add", unrelated, "via", net.router(SPARE), "dev", SPARE):
        out = talk.client(payload=b"x")
        assert (out.reason, hop(out)) == ("forward_resolved", (device_mac(BACK), neighbour_mac(BACK, 254)))


def test_segment_that_changes_the_state_counts_as_such_when_stale(node: Node, talk: Conversation) -> None:
    node.datapath.bump_mirror()
    assert talk.client("FA").reason == "forward_state"
    assert node.flows.connection().state == "tcp_half_closed"


def test_stale_flow_over_the_new_routes_mtu_is_answered(node: Node, net: Net, talk: Conversation) -> None:
    """The new way is narrower: path MTU discovery has to hear of it at once."""
    route = (net.remote_host(5), "via", net.router(SPARE), "dev", SPARE, "mtu", "lock", "1300")
    with node.world.route("add", *route):
        node.datapath.bump_mirror()
        out = talk.client(payload=bytes(1290))
        assert out.reason == (node.to_fragment if net.family == 4 else "answer_too_big")


def test_policy_rule_decides_the_way(node: Node, net: Net, talk: Conversation) -> None:
    """ip rule: the lookup is the kernel's whole routing, from the packet's own source."""
    family = f"-{net.family}"
    node.world.node.run(
        "ip", family, "route", "add", "default", "via", net.router(SPARE), "dev", SPARE, "table", "77"
    )
    rule = ("to", net.remote_host(5), "lookup", "77")
    node.world.node.run("ip", family, "rule", "add", *rule)
    try:
        node.datapath.bump_mirror()
        assert hop(talk.client(payload=b"x")) == (device_mac(SPARE), neighbour_mac(SPARE, 254))
    finally:
        node.world.node.run("ip", family, "rule", "del", *rule)
        node.world.node.run("ip", family, "route", "flush", "table", "77")
