# SPDX-License-Identifier: Apache-2.0
"""By which way packets of adopted connections come, and by which they go: as Linux takes and sends them."""

from __future__ import annotations

import time

import numpy as np
from scapy.layers.l2 import Ether

from tests.packet.addresses import FRONT, NETS, SPARE, Net, device_mac
from tests.packet.frames import network
from tests.packet.node import Node
from tests.packet.test_adopt import Held, nothing_left, send, trust

__all__ = ["nothing_left"]

AGAIN_S = 2.1  # ADOPT_AGAIN_MS, and a jiffy
NEIGHBOUR_S = 4  # NEIGHBOUR_MS, and more


def by(device: str, frame: bytes) -> bytes:
    """The frame, sent to the node on another link."""
    packet = Ether(frame)
    packet.dst = device_mac(device)
    return bytes(packet)


def test_who_comes_in_by_another_device_is_linux_to_judge(node: Node, net: Net) -> None:
    """Rules and rp_filter may refuse him. It takes nothing from those that come in by the first."""
    trust(node)
    talk = Held(node, net)
    assert talk.client(payload=b"x").reason == "forward_adopted"
    stray = by(SPARE, talk.client_frame("A", payload=b"x"))
    for _ in range(2):
        out = node.send(stray, SPARE)
        assert (out.reason, out.frame) == ("punt_adopted", stray)
    assert talk.client(payload=b"x").reason == "forward_flow"
    time.sleep(AGAIN_S)
    assert node.send(stray, SPARE).reason == "punt_adopted"  # nobody else comes: it has moved there
    assert node.flows.entries() == 0


def test_class_of_service_that_routing_asks_for_leads_another_way(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    six = ["-6"] if net.family == 6 else []
    where = ["default", "via", net.router(SPARE), "dev", SPARE, "table", "78"]
    node.world.node.ip(*six, "rule", "add", "tos", "0x10", "lookup", "78", "pref", "78")
    try:
        node.world.node.ip(*six, "route", "add", *where)
        assert send(talk).reason == "forward_adopted"
        usual = send(talk)
        assert (usual.reason, usual.packet.src) == ("forward_flow", device_mac(FRONT))
        for tos, device in ((0x10, SPARE), (0, FRONT), (0x13, SPARE)):
            assert send(talk, tos=tos).reason == "punt_adopted"
            out = send(talk, tos=tos)
            assert (out.verdict, out.packet.src) == ("forward", device_mac(device))
        assert send(talk, tos=0x12).reason == "forward_flow"  # ECN is none of it
    finally:
        node.world.node.ip(*six, "rule", "del", "pref", "78")
        node.world.node.ip(*six, "route", "flush", "table", "78")


def test_flow_label_chooses_among_equal_routes(node: Node) -> None:
    """As Linux does by default (fib_multipath_hash_policy 0)."""
    net = NETS[6]
    trust(node)
    talk = Held(node, net)
    ways = [
        word for device in (FRONT, SPARE) for word in ("nexthop", "via", net.router(device), "dev", device)
    ]
    node.world.node.ip("-6", "route", "add", f"{net.server}/128", *ways)
    try:
        devices = set()  # addresses of those that send
        for label in range(1, 33):
            packet = Ether(talk.client_frame("A", payload=b"x"))
            network(packet).fl = label * 0x1357
            talk._sight(bytes(packet), talk.client_device)
            out = node.send(bytes(packet), talk.client_device)
            if out.reason == "punt_adopted":  # by another device than before
                talk._sight(bytes(packet), talk.client_device)
                out = node.send(bytes(packet), talk.client_device)
            devices.add(out.packet.src)
            node.datapath.bump_mirror()
        assert devices == {device_mac(FRONT), device_mac(SPARE)}
    finally:
        node.world.node.ip("-6", "route", "del", f"{net.server}/128")


def test_padding_goes_no_further(node: Node, net: Net) -> None:
    """It may hold anything."""
    trust(node)
    talk = Held(node, net)
    padded = talk.client_frame("A", payload=b"x") + b"secret"
    talk._sight(padded, talk.client_device)
    for reason in ("forward_adopted", "forward_flow"):
        out = node.send(padded, talk.client_device)
        assert (out.reason, len(out.frame)) == (reason, len(padded) - len(b"secret"))


def seconds_later(node: Node, seconds: int, another: int = 0) -> None:
    """For the rows of neighbours. another: added to their tags, which makes them those of others."""
    table = node.datapath.table("neighbour_v1")
    keys, rows = table.items()
    used = rows != 0
    assert used.any()
    rows[used] += np.uint64(another << 32)
    rows[used] -= np.uint64(seconds * node.datapath.clock().hz)
    table.update(keys, rows)


def test_linux_gets_a_packet_to_each_neighbour_now_and_then(node: Node, net: Net) -> None:
    """It finds out that they have moved by sending to them."""
    trust(node)
    talk = Held(node, net)
    assert [talk.client(payload=b"x").reason, talk.server(payload=b"y").reason] == [
        "forward_adopted",
        "forward_resolved",
    ]
    seconds_later(node, NEIGHBOUR_S)
    node.datapath.bump_mirror()
    for say in (talk.client, talk.server):
        out = say(payload=b"x")
        assert (out.reason, out.frame) == ("punt_neighbour", out.sent)
        assert [say(payload=b"x").reason for _ in range(2)] == ["forward_flow"] * 2
    node.datapath.bump_mirror()
    assert talk.client(payload=b"x").reason == "forward_resolved"  # it was asked just now


def test_neighbours_that_share_a_row_take_it_from_each_other(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    assert talk.client(payload=b"x").reason == "forward_adopted"
    seconds_later(node, 0, another=1)
    node.datapath.bump_mirror()
    assert [talk.client(payload=b"x").reason for _ in range(2)] == ["punt_neighbour", "forward_flow"]
