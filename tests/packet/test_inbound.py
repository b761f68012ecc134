# SPDX-License-Identifier: Apache-2.0
"""A NAT rule claims what the inside opens, not its answers to connections that came in through Linux."""

from __future__ import annotations

from tests.packet.addresses import Net
from tests.packet.conversation import Conversation, masquerade
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node


def from_outside(node: Node, net: Net, proto: str) -> Conversation:
    """The outside opens a connection to an inside host: the "client" here is the host that answers."""
    return Conversation(node, net, proto=proto, inside=True, sport=22)


def test_syn_ack_without_a_flow_goes_to_linux(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    out = from_outside(node, net, "tcp").client("SA")
    assert (out.verdict, out.reason) == ("punt", "punt_not_ours")


@PROTOCOLS
def test_answers_to_what_linux_forwarded_go_to_linux(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net)])
    talk = from_outside(node, net, proto)
    assert talk.server("S").reason == "punt_not_ours"
    for flags in ("SA", "A"):
        out = talk.client(flags, payload=b"" if flags == "SA" else b"220 ready")
        assert (out.verdict, out.reason) == ("punt", "punt_not_ours")
    assert node.flows.connections() == []


@PROTOCOLS
def test_other_connections_of_the_same_host_are_masqueraded(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net)])
    from_outside(node, net, proto).server("S")
    other = Conversation(node, net, proto=proto, inside=True, sport=2500)
    assert other.first().reason == "forward_new"


def test_syn_opens_a_connection_that_is_ours_all_the_same(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    talk = from_outside(node, net, "tcp")
    talk.server("S")
    assert talk.first().reason == "forward_new"
