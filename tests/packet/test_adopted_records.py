# SPDX-License-Identifier: Apache-2.0
"""Adopted connections count what Linux would count, and tell of it when they end, whoever listens by then."""

from __future__ import annotations

import numpy as np
import pytest

from clearway.datapath.adopted import ended_connections
from clearway.datapath.flows import Array
from tests.packet.addresses import BACK, FRONT, NARROW, Net
from tests.packet.conversation import Conversation, service
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node
from tests.packet.test_adopt import Held, key_of, nothing_left, trust

__all__ = ["nothing_left"]

HEADERS = {4: {"tcp": 40, "udp": 28}, 6: {"tcp": 60, "udp": 48}}
LEAST_FRAME = 60
CARRIED = ("packets", "bytes", "reply_packets", "reply_bytes")
WAYS = ("inside", "ifindex", "reply_inside", "reply_ifindex")
WHO = ("family", "proto", "born", "client", "client_port", "destination")
LEAVES = ("source_out", "source_out_port", "destination_out")


@pytest.fixture(autouse=True)
def nothing_told(node: Node, nothing_left: None) -> None:
    """Others' ends are read before a test."""
    told(node)


def told(node: Node) -> Array:
    with node.datapath.adopted_records() as ring:
        return ended_connections(ring.read())


def alive(node: Node) -> Array:
    return node.datapath.flows()


def padded(talk: Held, payload: bytes) -> bytes:
    """As an Ethernet card sends a short packet."""
    return talk.client_frame(payload=payload).ljust(LEAST_FRAME, b"\0")


@PROTOCOLS
def test_bytes_of_layer_3_are_counted(node: Node, net: Net, proto: str) -> None:
    """At birth, in the slow way and in the fast one; padding is none of them (ip_rcv_core() cuts it off)."""
    trust(node)
    talk = Held(node, net, proto)
    node.run(padded(talk, b"x"), BACK)  # the first of its kind is Linux'
    for number in range(4):
        node.send(padded(talk, b"x"), BACK)
        if number == 1:
            node.datapath.bump_mirror()
    talk.server(payload=b"y" * 100)
    [flow] = alive(node)
    headers = HEADERS[net.family][proto]
    assert (flow["packets"], flow["bytes"]) == (4, 4 * (headers + 1))
    assert (flow["reply_packets"], flow["reply_bytes"]) == (1, headers + 100)


def test_packet_of_many_segments_counts_once(node: Node, net: Net) -> None:
    """XDP is given one segment at a time."""
    trust(node)
    segments = 3 if node.hook == "tc" else 1
    talk, size = Held(node, net), 1000 * segments
    node.run(talk.client_frame(payload=b"x"), BACK)
    for _ in range(2):
        node.send(talk.client_frame(payload=b"x" * size), BACK, gso_size=1000 if segments > 1 else 0)
    [flow] = alive(node)
    assert (flow["packets"], flow["bytes"]) == (2, 2 * (HEADERS[net.family]["tcp"] + size))


@PROTOCOLS
def test_end_tells_what_was_carried_and_which_way(node: Node, net: Net, proto: str) -> None:
    trust(node)
    talk = Held(node, net, proto, source=net.node(FRONT))
    talk.client(payload=b"x" * 10)
    talk.server(payload=b"y" * 20)
    [before] = alive(node)
    assert before["inside"] == before["reply_ifindex"] != 0
    assert before["ifindex"] == before["reply_inside"] != before["inside"]
    assert node.datapath.release(key_of(node, talk.arrives))
    [after] = told(node)
    for name in (*CARRIED, *WAYS, *WHO, *LEAVES):
        assert np.array_equal(after[name], before[name]), name
    assert len(told(node)) == 0


def test_direction_without_packets_went_no_way(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    talk.server(payload=b"y")
    [flow] = alive(node)
    assert (flow["packets"], flow["inside"], flow["ifindex"]) == (0, 0, 0)
    assert flow["reply_packets"] == 1
    assert flow["reply_inside"] != 0


def test_another_way_is_told_apart(node: Node, net: Net) -> None:
    """Rules about interfaces have counted what went the first way, and not what goes the other one."""
    trust(node)
    talk = Held(node, net)
    talk.client(payload=b"x")
    [first] = alive(node)
    with node.world.route("add", net.server, "via", net.router(NARROW), "dev", NARROW):
        assert talk.client(payload=b"x").reason == "punt_adopted"
        [ended] = told(node)
        assert (ended["ifindex"], ended["packets"]) == (first["ifindex"], 1)


def test_only_adopted_connections_are_told(node: Node, net: Net) -> None:
    node.apply([service(net)])
    Conversation(node, net).open()
    node.apply()
    node.datapath.sweep()
    assert len(told(node)) == 0


def test_what_finds_no_room_is_counted(node: Node, net: Net) -> None:
    trust(node)
    talk, before = Held(node, net), node.datapath.unaccounted()
    ring = node.datapath.table("adopted_v1").max_entries // 168
    ended = ring + 10
    frame, key = talk.client_frame(payload=b"x"), key_of(node, talk.arrives)
    node.run(frame, BACK)  # the first of its kind is Linux'
    for _ in range(ended):
        node.run(frame, BACK)
        assert node.datapath.release(key)
    lost = ended - len(told(node))
    after = node.datapath.unaccounted()
    assert lost > 0
    assert after.packets - before.packets == lost
    assert after.bytes - before.bytes == lost * (HEADERS[net.family]["tcp"] + 1)
