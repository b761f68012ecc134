# SPDX-License-Identifier: Apache-2.0
"""TCP's connection tracking: which segments open, change and close a connection, and which must not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.packet.addresses import Net
from tests.packet.conversation import CLIENT_ISN, SERVER_ISN, Conversation, service
from tests.packet.frames import network
from tests.packet.node import Node

FAR_OUT = 1 << 30
"""Further than any window reaches."""


@pytest.fixture
def talk(node: Node, net: Net) -> Conversation:
    """A connection whose handshake is done."""
    node.apply([service(net)])
    return Conversation(node, net).open()


def state(talk: Conversation) -> str:
    return talk.node.flows.connection().state


def scale(entry: Any) -> int:
    return int(entry["tcp_scale"]) & 15


def test_handshake_goes_through_its_states(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net)
    assert (talk.first().reason, state(talk)) == ("forward_new", "tcp_syn_sent")
    assert (talk.server("SA").reason, state(talk)) == ("forward_state", "tcp_syn_received")
    assert (talk.client("A").reason, state(talk)) == ("forward_state", "tcp_established")


def test_syn_with_data_opens(node: Node, net: Net) -> None:
    """TCP Fast Open."""
    node.apply([service(net)])
    assert Conversation(node, net).first(payload=b"early").reason == "forward_new"


def test_syn_with_ecn_flags_opens(node: Node, net: Net) -> None:
    node.apply([service(net)])
    assert Conversation(node, net).client("SEC", ack=0).reason == "forward_new"


def test_repeated_syn_is_forwarded_and_changes_nothing(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net)
    talk.first()
    assert talk.first(seq=CLIENT_ISN).reason == "forward_state"
    assert (state(talk), node.flows.connection().packets) == ("tcp_syn_sent", 2)


def test_half_close_keeps_flow(talk: Conversation) -> None:
    assert talk.client("FA").reason == "forward_state"
    assert state(talk) == "tcp_half_closed"
    for _ in range(5):
        assert talk.server("A", payload=b"x" * 1000).reason == "forward_flow"
        assert talk.client("A").reason == "forward_flow"
    assert state(talk) == "tcp_half_closed"


def test_half_close_by_the_server_keeps_flow(talk: Conversation) -> None:
    assert talk.server("FA").reason == "forward_state"
    assert state(talk) == "tcp_half_closed"
    assert talk.client("A", payload=b"still talking").reason == "forward_flow"
    assert state(talk) == "tcp_half_closed"


def test_fin_both_ways_closes(talk: Conversation) -> None:
    talk.client("FA")
    assert talk.server("FA").reason == "forward_state"
    assert state(talk) == "tcp_time_wait"
    assert talk.client("A").verdict == "forward"
    assert state(talk) == "tcp_time_wait"


def test_fin_with_data_closes(talk: Conversation) -> None:
    talk.client("PFA", payload=b"last words")
    talk.server("PFA", payload=b"mine too")
    assert state(talk) == "tcp_time_wait"


def test_repeated_fin_is_forwarded(talk: Conversation) -> None:
    first = talk.client("FA")
    again = talk.client("FA", seq=talk.client_next - 1)
    assert (first.reason, again.reason) == ("forward_state", "forward_state")
    assert state(talk) == "tcp_half_closed"


def test_rst_in_window_closes(talk: Conversation) -> None:
    assert talk.client("R").reason == "forward_state"
    assert state(talk) == "tcp_closed"


def test_rst_of_the_server_closes(talk: Conversation) -> None:
    assert talk.server("RA").reason == "forward_state"
    assert state(talk) == "tcp_closed"


def test_rst_at_the_last_byte_of_the_window_closes(talk: Conversation) -> None:
    talk.server("A", window=5000)
    talk.client("R", seq=talk.client_next + 5000)
    assert state(talk) == "tcp_closed"


@pytest.mark.parametrize("offset", [-1, -FAR_OUT, 5001, FAR_OUT])
def test_blind_rst_does_not_kill(talk: Conversation, offset: int) -> None:
    talk.server("A", window=5000)
    out = talk.client("R", seq=talk.client_next + offset)
    assert out.reason == "forward_state"  # its receiver decides (RFC 5961)
    assert state(talk) == "tcp_established"
    assert talk.server("A", payload=b"alive").reason == "forward_flow"


@pytest.mark.parametrize("offset", [-FAR_OUT, FAR_OUT])
def test_blind_rst_from_the_server_side_does_not_kill(talk: Conversation, offset: int) -> None:
    talk.server("RA", seq=talk.server_next + offset)
    assert state(talk) == "tcp_established"


def test_rst_across_the_wrap_of_sequence_numbers_closes(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net)
    talk.client_next = 0xFFFFFFF0
    talk.open()
    talk.client("A", payload=b"x" * 10)
    talk.server("A", window=1000)
    talk.client("R", seq=100)
    assert state(talk) == "tcp_closed"


def test_window_scale_widens_the_window(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net).open(options=[("WScale", 7)])
    talk.server("A", window=5000)
    talk.client("R", seq=talk.client_next + 5000 * 128 + 1)
    assert state(talk) == "tcp_established"
    talk.client("R", seq=talk.client_next + 5000 * 128)
    assert state(talk) == "tcp_closed"


def test_window_scale_is_found_behind_other_options(node: Node, net: Net) -> None:
    node.apply([service(net)])
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    talk = Conversation(node, net).open(options=options)
    assert (scale(node.flows.entry(talk.arrives)), scale(node.flows.entry(talk.reply))) == (7, 7)


def test_window_scale_needs_both_sides(node: Node, net: Net) -> None:
    """RFC 7323 1.3: windows are scaled only if both SYNs carried the option."""
    node.apply([service(net)])
    talk = Conversation(node, net)
    talk.first()
    talk.server("SA", options=[("WScale", 7)])
    talk.client("A")
    talk.server("A", window=5000)
    talk.client("R", seq=talk.client_next + 5001)
    assert state(talk) == "tcp_established"


def test_window_scale_over_14_counts_as_14(node: Node, net: Net) -> None:
    """RFC 7323 2.3."""
    node.apply([service(net)])
    talk = Conversation(node, net)
    talk.first(options=[("WScale", 200)])
    assert scale(node.flows.entry(talk.arrives)) == 14


def test_window_of_a_syn_is_not_scaled(node: Node, net: Net) -> None:
    """RFC 7323 2.2."""
    node.apply([service(net)])
    talk = Conversation(node, net)
    talk.first(options=[("WScale", 7)], window=100)
    assert 100 <= node.flows.entry(talk.arrives)["tcp_window"] < 100 + 128  # kept in units of the scale


@pytest.mark.parametrize(
    "options",
    [
        b"\x03\x03",
        b"\x03\x00\x07\x00",
        b"\x02\xff\x03\x03",
        b"\x05\x01\x03\x03\x07\x00\x00\x00",
        b"\xfe" * 40,
    ],
    ids=["cut", "length-0", "too-long", "length-1", "unknown"],
)
def test_broken_options_of_a_syn_do_no_harm(node: Node, net: Net, options: bytes) -> None:
    node.apply([service(net)])
    padded = options.ljust(-(-len(options) // 4) * 4, b"\0")
    talk = Conversation(node, net)
    frame = bytearray(talk.client_frame("S", ack=0, options=[("NOP", None)] * len(padded)))
    frame[-len(padded) :] = padded
    assert node.send(bytes(frame), checksums_right=False).reason == "forward_new"
    assert scale(node.flows.entry(talk.arrives)) == 0


def test_refused_connection_closes(node: Node, net: Net) -> None:
    """The RST that answers a SYN."""
    node.apply([service(net)])
    talk = Conversation(node, net)
    talk.first()
    out = talk.server("RA", seq=0)
    assert (out.reason, state(talk)) == ("forward_state", "tcp_closed")


def test_rst_that_acknowledges_something_else_does_not_refuse(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net)
    talk.first()
    talk.server("RA", seq=0, ack=talk.client_next + 1)
    assert state(talk) == "tcp_syn_sent"


def test_client_may_reset_what_it_has_just_opened(node: Node, net: Net) -> None:
    node.apply([service(net)])
    talk = Conversation(node, net)
    talk.first()
    talk.client("R")
    assert state(talk) == "tcp_closed"


@pytest.mark.parametrize("offset", [-FAR_OUT, FAR_OUT])
def test_fin_out_of_window_does_not_close(talk: Conversation, offset: int) -> None:
    talk.server("A", window=5000)
    assert talk.client("FA", seq=talk.client_next + offset).reason == "forward_state"
    assert state(talk) == "tcp_established"


def test_segment_out_of_window_does_not_move_the_window(talk: Conversation) -> None:
    """What a blind sender acknowledges must not make the real FIN look wrong: the flow would stay."""
    talk.client("A", seq=talk.client_next + FAR_OUT, ack=talk.server_next + FAR_OUT)
    talk.client("A", payload=b"real")
    talk.server("FA")
    assert state(talk) == "tcp_half_closed"


def test_syn_in_an_established_connection_changes_nothing(talk: Conversation) -> None:
    before = talk.node.flows.entry(talk.arrives)
    out = talk.client("S", seq=talk.client_next + 100_000, ack=0, options=[("WScale", 14)])
    assert out.reason == "forward_state"  # the server answers it with a challenge ACK
    after = talk.node.flows.entry(talk.arrives)
    for field in ("sent", "tcp_ack", "tcp_window", "tcp_next", "tcp_scale", "endpoint"):
        assert before[field] == after[field], field
    assert state(talk) == "tcp_established"


def close_by_fin(talk: Conversation) -> None:
    talk.client("FA")
    talk.server("FA")
    talk.client("A")


def close_by_rst(talk: Conversation) -> None:
    talk.client("R")


@pytest.mark.parametrize("close", [close_by_fin, close_by_rst])
def test_syn_on_a_closed_connection_opens_a_new_one(node: Node, net: Net, close: object) -> None:
    node.apply([service(net, *net.endpoints[:2], algorithm="round-robin")])
    old = Conversation(node, net).open()
    assert callable(close)
    close(old)
    new = Conversation(node, net)
    new.client_next = CLIENT_ISN + 500_000
    assert new.first().reason == "forward_new"
    assert new.leaves.dst != old.leaves.dst
    assert node.flows.entries() == 2
    assert (state(new), node.flows.connection().packets) == ("tcp_syn_sent", 1)


def test_syn_on_a_half_closed_connection_opens_nothing(talk: Conversation) -> None:
    talk.client("FA")
    assert talk.client("S", seq=CLIENT_ISN + 500_000, ack=0).reason == "forward_state"
    assert state(talk) == "tcp_half_closed"


def test_reply_follows_the_connection_that_reused_the_tuple(node: Node, net: Net) -> None:
    node.apply([service(net)])
    close_by_fin(Conversation(node, net).open())
    talk = Conversation(node, net)
    talk.client_next, talk.server_next = CLIENT_ISN + 500_000, SERVER_ISN + 500_000
    talk.open()
    assert (state(talk), node.flows.entries()) == ("tcp_established", 2)
    assert network(talk.server("A", payload=b"x").packet).src == net.vip


def test_simultaneous_fins_close(talk: Conversation) -> None:
    """Both FINs under way at once: neither acknowledges the other."""
    client, server = talk.client_next, talk.server_next
    talk.client("FA", seq=client, ack=server)
    talk.server("FA", seq=server, ack=client)
    assert state(talk) == "tcp_time_wait"


def test_packet_of_a_closed_connection_is_still_translated(talk: Conversation) -> None:
    """The last ACK of a connection must reach its receiver."""
    talk.server("RA")
    assert talk.client("A").verdict == "forward"
    assert state(talk) == "tcp_closed"
