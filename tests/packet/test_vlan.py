# SPDX-License-Identifier: Apache-2.0
"""VLAN tags in and out. The kernel need not have VLAN devices: `spare` stands for one, rows of vlan_v1 and
device_v1 say which tags it is.

On TC the kernel takes the outer tag out of the frame before a program sees it, which a test run cannot show:
test_wire.py sends such frames for real.
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.l2 import Dot1AD, Dot1Q
from scapy.packet import Packet

from tests.packet.addresses import BACK, FRONT, SPARE, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, service
from tests.packet.frames import ether, ip_packet, network, ports, tags, tcp, udp
from tests.packet.node import Node

ONLY_XDP = pytest.mark.parametrize("hook", ["xdp"], indirect=True)


def tagged(net: Net, *vids: int, device: str = FRONT, above: Packet | None = None, **fields: Any) -> bytes:
    """A frame to the service with these tags, outermost first."""
    layer2 = ether(device)
    for n, vid in enumerate(vids):
        layer2 /= Dot1AD(vlan=vid, **fields) if n < len(vids) - 1 else Dot1Q(vlan=vid, **fields)
    return bytes(layer2 / ip_packet(net.client, net.vip, above or udp(40000, 80)))


def vlan_device(node: Node, outer: int, inner: int = 0) -> None:
    """Frames on the front with those tags belong to the device `spare`."""
    key = {"ifindex": node.world.ifindex[FRONT], "outer": outer, "inner": inner}
    node.write("vlan_v1", key, {"ifindex": node.world.ifindex[SPARE]})


def egress_vlan(node: Node, outer: int, inner: int = 0) -> None:
    """The back is a VLAN device: frames for it leave through `spare` with those tags."""
    node.device(BACK, lower=node.world.ifindex[SPARE], vlan_outer=outer, vlan_inner=inner)


@pytest.fixture
def served(node: Node, net: Net) -> Node:
    node.apply([service(net, protocol="udp"), service(net)])
    return node


def test_frame_of_a_known_vlan_takes_the_fast_path(served: Node, net: Net) -> None:
    vlan_device(served, 10)
    out = served.send(tagged(net, 10))
    assert (out.reason, network(out.packet).dst, ports(out.packet)) == (
        "forward_new",
        net.endpoint,
        (40000, 8080),
    )
    assert tags(out.packet) == []
    assert (out.packet.src, out.packet.dst) == (device_mac(BACK), neighbour_mac(BACK, 11))
    assert served.send(tagged(net, 10)).reason == "forward_flow"


@ONLY_XDP
def test_double_tagged_frame_takes_the_fast_path(served: Node, net: Net) -> None:
    vlan_device(served, 10, 20)
    out = served.send(tagged(net, 10, 20))
    assert (out.reason, network(out.packet).dst, tags(out.packet)) == ("forward_new", net.endpoint, [])


def test_untagged_frame_of_the_same_connection_is_the_same_flow(served: Node, net: Net) -> None:
    vlan_device(served, 10)
    served.send(tagged(net, 10))
    assert served.send(tagged(net)).reason == "forward_flow"


@pytest.mark.parametrize("vids", [(11,), (10, 21), (20, 10), (10, 20)])
def test_frame_of_an_unknown_vlan_goes_to_linux(served: Node, net: Net, vids: tuple[int, ...]) -> None:
    vlan_device(served, 10)
    assert served.send(tagged(net, *vids)).reason == "punt_vlan_unknown"
    assert served.flows.entries() == 0


def test_frame_with_three_tags_goes_to_linux(served: Node, net: Net) -> None:
    vlan_device(served, 10, 20)
    assert served.send(tagged(net, 10, 20, 30)).reason in ("punt_not_ip", "punt_vlan_unknown")


@pytest.mark.parametrize("priority", [0, 5, 7])
def test_priority_tag_is_no_vlan(served: Node, net: Net, priority: int) -> None:
    """VID 0 (IEEE 802.1Q): the frame belongs to the device itself, and the tag is not passed on."""
    out = served.send(tagged(net, 0, prio=priority))
    assert (out.reason, tags(out.packet)) == ("forward_new", [])
    assert network(out.packet).dst == net.endpoint


def test_priority_bits_of_a_vlan_do_not_matter(served: Node, net: Net) -> None:
    vlan_device(served, 10)
    assert served.send(tagged(net, 10, prio=6, dei=1)).reason == "forward_new"


@ONLY_XDP
@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [(100, 0, [(0x8100, 100)]), (100, 200, [(0x88A8, 100), (0x8100, 200)]), (4094, 0, [(0x8100, 4094)])],
)
@pytest.mark.parametrize("arriving", [(), (10,), (10, 20)])
def test_tags_are_written_on_the_way_out(
    served: Node, net: Net, outer: int, inner: int, expected: list[tuple[int, int]], arriving: tuple[int, ...]
) -> None:
    vlan_device(served, 10, 20 if len(arriving) == 2 else 0)
    egress_vlan(served, outer, inner)
    for reason in ("forward_new", "forward_flow"):
        out = served.send(tagged(net, *arriving))
        assert (out.reason, tags(out.packet)) == (reason, expected)
        assert (network(out.packet).dst, ports(out.packet)) == (net.endpoint, (40000, 8080))
    assert served.flows.connection().ifindex == served.world.ifindex[SPARE]


@ONLY_XDP
@pytest.mark.parametrize("arriving", [(10,), (10, 20)])
def test_answer_goes_back_with_the_tags_it_came_with(
    served: Node, net: Net, arriving: tuple[int, ...]
) -> None:
    vlan_device(served, 10, 20 if len(arriving) == 2 else 0)
    layer2 = ether(FRONT)
    for vid in arriving:
        layer2 /= Dot1Q(vlan=vid)
    for above, reason in (
        (udp(40000, 80, bytes(100)), "answer_ttl_exceeded"),
        (tcp(40000, 80), "answer_reset"),
    ):
        if reason == "answer_reset":
            served.apply([service(net)], midstream="reset")
        sent = bytes(
            layer2 / ip_packet(net.client, net.vip, above, ttl=1 if reason != "answer_reset" else 64)
        )
        out = served.send(sent)
        assert out.reason == reason
        assert tags(out.packet) == [(0x8100, vid) for vid in arriving]
        assert (out.packet.src, out.packet.dst) == (device_mac(FRONT), neighbour_mac(FRONT, 254))
        assert network(out.packet).dst == net.client


def test_answer_comes_from_the_address_of_the_vlan_device(served: Node, net: Net) -> None:
    vlan_device(served, 10)
    out = served.send(
        bytes(ether(FRONT) / Dot1Q(vlan=10) / ip_packet(net.client, net.vip, udp(1, 80), ttl=1))
    )
    assert (out.reason, network(out.packet).src) == ("answer_ttl_exceeded", net.node(SPARE))


@ONLY_XDP
def test_reply_to_a_vlan_gets_its_tag(served: Node, net: Net) -> None:
    """The client lives in a VLAN of the front: what goes back to it is tagged."""
    served.device(FRONT, vlan_outer=10)
    vlan_device(served, 10)
    served.send(tagged(net, 10))
    out = Conversation(served, net, proto="udp", to=net.vip)
    out.client()
    back = out.server()
    assert tags(back.packet) == [(0x8100, 10)]
    assert (network(back.packet).src, network(back.packet).dst) == (net.vip, net.client)
