# SPDX-License-Identifier: Apache-2.0
"""The flow table's size, both entries of a connection, and counters that add up."""

from __future__ import annotations

import pytest

from tests.packet.addresses import FRONT, Net
from tests.packet.conversation import Conversation, service
from tests.packet.flowtable import Tuple, packed
from tests.packet.frames import ether, ip_packet, network, udp
from tests.packet.node import Node


@pytest.fixture
def full(node: Node, net: Net) -> Node:
    """A flow table with no room, filled with established connections of others."""
    node.apply([service(net)])
    node.flows.fill(net.family)
    return node


def test_new_flow_in_a_full_table_is_dropped(full: Node, net: Net) -> None:
    before = full.flows.entries()
    assert Conversation(full, net).first().reason == "drop_table_full"
    assert full.flows.entries() == before


def test_room_for_one_entry_is_no_room_for_a_flow(node: Node, net: Net) -> None:
    """Both entries or none."""
    node.apply([service(net)])
    talk = Conversation(node, net)
    assert talk.first().reason == "forward_new"
    node.flows.fill(net.family)
    before = node.flows.entries()
    node.flows.delete_entry(talk.arrives)  # its place alone is free, and that of the reply is not
    node.flows.disown_entry(talk.reply)
    assert Conversation(node, net).first().reason == "drop_table_full"
    assert node.flows.entries() == before - 1


def test_established_flow_goes_on_in_a_full_table(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net).open()
    node.flows.fill(net.family)
    assert Conversation(node, net, sport=5000).first().reason == "drop_table_full"
    assert talk.client(payload=b"x").reason == "forward_flow"
    assert talk.server(payload=b"x").reason == "forward_flow"
    assert talk.client("FA").reason == "forward_state"


def test_the_other_family_has_room_of_its_own(full: Node, net: Net) -> None:
    other = net.other_family
    full.apply([service(other)])
    assert Conversation(full, other).first().reason == "forward_new"


@pytest.mark.parametrize("side", ["arrives", "reply"])
def test_half_a_connection_does_not_stop_a_new_one(node: Node, net: Net, side: str) -> None:
    """What a crash between two inserts could leave; the sweep removes it and keeps the new connection."""
    node.apply([service(net)])
    talk = Conversation(node, net).open()
    for key in (talk.arrives, talk.reply):
        node.flows.let_age(key, seconds=3)
    node.flows.delete_entry(getattr(talk, side))
    again = Conversation(node, net)
    assert again.first().reason == "forward_new"
    node.datapath.sweep(thorough=True)
    assert (node.flows.entries(), node.flows.connection().paired) == (2, True)
    assert node.flows.entry(again.arrives) is not None and node.flows.entry(again.reply) is not None


def test_keys_and_values_name_each_other(node: Node, net: Net) -> None:
    """The key of one entry is the reverse of what the other leaves as."""
    node.apply([service(net, mode="full-nat")])
    talk = Conversation(node, net).open()
    entry, reply = node.flows.entry(talk.arrives), node.flows.entry(talk.reply)
    assert list(reply["dst"]) == packed(net.client) and reply["dport"] == 40000
    assert list(reply["src"]) == packed(net.vip) and reply["sport"] == 80
    assert list(entry["dst"]) == packed(net.endpoint) and entry["dport"] == 8080
    assert node.flows.entry(Tuple("tcp", net.endpoint, 8080, talk.leaves.src, talk.leaves.sport)) is not None


def test_age_and_idle_time_are_told(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net).open()
    node.flows.let_time_pass(talk, seconds=100)
    (flow,) = node.datapath.flows()
    assert 99 < flow["idle_s"] < 110
    assert 0 <= flow["age_s"] < 60


def test_counters_add_up_to_what_was_received(node: Node, net: Net) -> None:
    node.apply([service(net)])
    before = node.datapath.counters()
    talk = Conversation(node, net).open()
    for _ in range(10):
        talk.client(payload=b"x" * 100)
        talk.server(payload=b"x" * 200)
    Conversation(node, net, dport=81).first()
    talk.client(ttl=1)
    after = node.datapath.counters()
    packets, size = (
        (getattr(after.received, field) - getattr(before.received, field)) for field in ("packets", "bytes")
    )
    assert packets == 25
    for field, total in (("packets", packets), ("bytes", size)):
        ended = sum(
            getattr(count, field) - getattr(before.reasons[name], field)
            for name, count in after.reasons.items()
        )
        assert ended == total, field


def test_frames_larger_than_a_page_are_counted_whole(node: Node, net: Net) -> None:
    """On XDP they come in several buffers. (The kernel's test run for TC takes no more than a page.)"""
    node.apply([service(net, protocol="udp")])
    before = node.datapath.counters()
    packet = ip_packet(net.client, net.vip, udp(40000, 80, bytes(9000 if node.hook == "xdp" else 3000)))
    if net.family == 4:
        packet.flags = "DF"
    out = node.send(bytes(ether(FRONT) / packet))
    after = node.datapath.counters()
    assert out.reason == "answer_too_big"
    assert after.received.bytes - before.received.bytes == len(out.sent)
    assert after.reasons[out.reason].bytes - before.reasons[out.reason].bytes == len(out.sent)


def test_jumbo_frame_is_forwarded_where_it_fits(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    talk = Conversation(node, net, proto="udp").open()
    node.flows.write_entry(talk.arrives, mtu=9200)
    payload = bytes(n & 255 for n in range(9000 if node.hook == "xdp" else 3000))
    out = talk.client(payload=payload)
    assert (out.reason, network(out.packet).dst) == ("forward_flow", net.endpoint)
    assert out.frame.endswith(payload)
