# SPDX-License-Identifier: Apache-2.0
"""Fragments and the firewall: the first one is judged, the others share its fate."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw

from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.checksums import wrong_in_packet
from tests.packet.conversation import Conversation, service
from tests.packet.firewall import DEFAULT, firewall, judged, rule
from tests.packet.frames import echo, l3
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node
from tests.packet.test_fragments import datagram, fragments, reassembled, whole_packet


def pieces(net: Net, above: Packet, to: str = "inside", number: int = 4711) -> list[bytes]:
    dst = {"inside": net.inside, "node": net.node(FRONT), "vip": net.vip, "many": many(net)}[to]
    return fragments(FRONT, whole_packet(net.client, dst, above), number=number)


def many(net: Net) -> str:
    return "224.0.0.251" if net.family == 4 else "ff02::fb"


def sent(node: Node, made: list[bytes]) -> list[str]:
    return [node.send(piece).reason for piece in made]


@PROTOCOLS
def test_fragments_that_are_forwarded_share_the_fate_of_the_first(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule(protocol=proto, destination_ports=80)))
    made = pieces(net, datagram(proto, 40000, 80))
    outcomes = [node.send(piece) for piece in made]
    assert [out.reason for out in outcomes] == ["forward_new"] + ["forward_fragment"] * (len(made) - 1)
    assert wrong_in_packet(reassembled([out.frame for out in outcomes])) == []
    assert judged(node).packets == 1


@PROTOCOLS
@pytest.mark.parametrize("to", ["inside", "node", "vip"])
def test_fragments_that_are_refused_share_the_fate_of_the_first(
    node: Node, net: Net, proto: str, to: str
) -> None:
    no = rule("no", "drop", protocol=proto, destination_ports=80)
    node.apply([service(net, protocol=proto)], firewall=firewall(no, default="accept"))
    reasons = sent(node, pieces(net, datagram(proto, 40000, 80), to))
    assert reasons[0] == "drop_firewall"
    assert all(reason.startswith("drop_") for reason in reasons)
    assert judged(node, "no").packets == 1
    assert node.flows.entries() == 0


@PROTOCOLS
def test_fragments_to_the_node_reach_it(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule(protocol=proto, destination_ports=80)))
    made = pieces(net, datagram(proto, 40000, 80), "node")
    assert sent(node, made) == ["punt_local"] * len(made)
    assert judged(node).packets == 1


@PROTOCOLS
def test_fragments_to_the_node_reach_it_when_the_table_is_full(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule(protocol=proto, destination_ports=80)))
    node.flows.fill(net.family)
    reasons = sent(node, pieces(net, datagram(proto, 40000, 80), "node"))
    assert reasons[0] == "punt_local"
    assert all(reason.startswith("punt_") for reason in reasons)
    assert all(
        reason.startswith("drop_") for reason in sent(node, pieces(net, datagram(proto, 1, 81), "node"))
    )


@pytest.mark.parametrize("default", ["accept", "drop", "reject"])
@pytest.mark.parametrize("to", ["inside", "node", "vip"])
def test_later_fragment_of_nothing_known_is_dropped(node: Node, net: Net, to: str, default: str) -> None:
    node.apply([service(net)], firewall=firewall(default=default))
    for piece in pieces(net, datagram("udp", 40000, 80), to)[1:]:
        assert node.send(piece).reason == "drop_fragment_unknown"


def test_later_fragment_of_nothing_known_goes_to_linux_without_a_firewall(node: Node, net: Net) -> None:
    node.apply()
    assert node.send(pieces(net, datagram("udp", 40000, 80))[1]).reason == "punt_fragment"


def test_fragments_of_another_datagram_are_not_accepted_with_the_first(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(protocol="udp", destination_ports=80)))
    sent(node, pieces(net, datagram("udp", 40000, 80)))
    later = pieces(net, datagram("udp", 40000, 80), number=4712)[1:]
    assert sent(node, later) == ["drop_fragment_unknown"] * len(later)


def test_second_first_fragment_that_is_refused_takes_the_others_along(node: Node, net: Net) -> None:
    """Who repeats an identification cannot have fragments of the one datagram pass for the other's."""
    node.apply(firewall=firewall(rule(protocol="udp", destination_ports=80)))
    sent(node, pieces(net, datagram("udp", 40000, 80)))
    reasons = sent(node, pieces(net, datagram("udp", 40000, 22)))
    assert all(reason.startswith("drop_") for reason in reasons)


@PROTOCOLS
def test_fragments_of_a_reply_pass(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule(interface_in=FRONT)))
    Conversation(node, net, proto=proto, to=net.inside).open()
    for piece in fragments(BACK, whole_packet(net.inside, net.client, datagram(proto, 80, 40000))):
        assert node.send(piece, BACK).verdict == "forward"
    assert judged(node, DEFAULT).packets == 0


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_fragment_of_a_connection_that_is_forbidden_now(node: Node, net: Net, first: bool) -> None:
    node.apply(firewall=firewall(rule()))
    made = pieces(net, datagram("udp", 40000, 80))
    sent(node, made)
    node.apply(firewall=firewall())
    assert node.send(made[0 if first else 1]).reason == "drop_firewall"
    assert all(reason.startswith("drop_") for reason in sent(node, made[1:]))


@pytest.mark.parametrize("to", ["inside", "node"])
def test_large_echo_passes(node: Node, net: Net, to: str) -> None:
    node.apply(firewall=firewall(rule(protocol=["icmp", "icmpv6"], icmp_types="echo-request")))
    reasons = sent(node, pieces(net, echo(net.family, 77, payload=bytes(300)), to))
    assert {reason.partition("_")[0] for reason in reasons} == {"forward" if to == "inside" else "punt"}
    assert judged(node).packets == 1


@pytest.mark.parametrize("to", ["inside", "node"])
def test_fragments_of_another_protocol(node: Node, net: Net, to: str) -> None:
    made = pieces(net, GRE() / Raw(bytes(300)), to)
    node.apply(firewall=firewall(rule(protocol="gre")))
    assert all(reason.startswith("punt_") for reason in sent(node, made))
    node.flows.clear()
    node.apply(firewall=firewall())
    assert all(reason.startswith("drop_") for reason in sent(node, made))


@pytest.mark.parametrize("to", ["inside", "node"])
def test_fragments_of_an_icmp_error(node: Node, net: Net, to: str) -> None:
    """About a datagram that is unknown; a router of the way has fragmented it."""
    quote = l3(pieces(net, datagram("udp", 1, 2, 300))[0]) + bytes(300)
    above = (ICMP(type=3, code=1) if net.family == 4 else ICMPv6DestUnreach()) / Raw(quote)
    made = pieces(net, above, to)
    node.apply(firewall=firewall())
    assert all(reason.startswith("drop_") for reason in sent(node, made))
    node.apply(firewall=firewall(rule(protocol=["icmp", "icmpv6"], icmp_types="destination-unreachable")))
    assert all(reason.startswith("punt_") for reason in sent(node, made))


def test_fragments_of_multicast(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(protocol="udp", destination_ports=5353)))
    reasons = sent(node, pieces(net, datagram("udp", 5353, 5353), "many"))
    assert reasons == ["punt_multicast"] * len(reasons)
    reasons = sent(node, pieces(net, datagram("udp", 5353, 5354), "many", number=5))
    assert all(reason.startswith("drop_") for reason in reasons)


@PROTOCOLS
@pytest.mark.parametrize("default", ["drop", "accept"])
def test_fragments_behind_one_that_expires_do_not_pass(
    node: Node, net: Net, proto: str, default: str
) -> None:
    """Linux answers the first one, which nobody has judged."""
    node.apply(firewall=firewall(default=default))
    whole = whole_packet(net.client, net.inside, datagram(proto, 40000, 80))
    first, *later = fragments(FRONT, whole, ttl=1)[:1] + fragments(FRONT, whole)[1:]
    assert node.send(first).reason == "punt_ttl"
    assert set(sent(node, later)) == {"drop_fragment_unknown"}
