# SPDX-License-Identifier: Apache-2.0
"""The firewall, packet by packet: what is forwarded without translation, and what is for the node itself.

A connection is judged once, by its first packet: the counters of rules tell.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.packet.addresses import BACK, FRONT, SPARE, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, service
from tests.packet.firewall import (
    DEFAULT,
    ended,
    firewall,
    judged,
    rule,
    syn,
    through,
    to_node,
)
from tests.packet.frames import frame, hop_limit, l3, network, udp
from tests.packet.marks import IPV4, IPV6, PROTOCOLS
from tests.packet.node import Node, Outcome


def plain(node: Node, net: Net, proto: str = "tcp", **keys: Any) -> Conversation:
    """A connection from a client to a host in the back."""
    return Conversation(node, net, proto=proto, to=net.inside, **keys)


def local(node: Node, net: Net, proto: str = "tcp", **keys: Any) -> Conversation:
    """A connection from a client to the node."""
    return Conversation(node, net, proto=proto, to=net.node(FRONT), **keys)


def only_a_hop_less(out: Outcome) -> bool:
    """Is the packet as it came, but for its TTL and what covers that?"""
    sent, left = bytearray(l3(out.sent)), bytearray(l3(out.frame))
    changing = [8, 10, 11] if sent[0] >> 4 == 4 else [7]
    for at in changing:
        sent[at] = left[at] = 0
    return sent == left and hop_limit(out.packet) == 63


# ---- what is forwarded ----


@PROTOCOLS
def test_accepted_connection_is_carried_as_it_is(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule()))
    talk = plain(node, net, proto)
    out = talk.first()
    assert out.reason == "forward_new"
    assert only_a_hop_less(out)
    assert (out.packet.src, out.packet.dst) == (device_mac(BACK), neighbour_mac(BACK, 50))
    assert node.flows.flags(talk.arrives) == set()
    assert node.flows.flags(talk.reply) == {"reply"}
    assert node.flows.connection().leaves == (net.client, 40000, net.inside, 80)


@PROTOCOLS
def test_reply_passes_without_being_judged(node: Node, net: Net, proto: str) -> None:
    """Only what comes in by the front is accepted."""
    node.apply(firewall=firewall(rule(interface_in=FRONT)))
    talk = plain(node, net, proto)
    talk.first()
    out = talk.server("SA")
    assert out.reason == ("forward_state" if proto == "tcp" else "forward_resolved")
    assert only_a_hop_less(out)
    assert (out.packet.src, out.packet.dst) == (device_mac(FRONT), neighbour_mac(FRONT, 50))
    assert judged(node, DEFAULT).packets == 0
    assert judged(node).packets == 1


@PROTOCOLS
def test_packets_of_a_known_connection_hit_their_entry(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule(interface_in=FRONT)))
    talk = plain(node, net, proto).open()
    for _ in range(3):
        out = talk.client("A", payload=b"there")
        assert out.reason == "forward_flow" and only_a_hop_less(out)
        out = talk.server("A", payload=b"and back")
        assert out.reason in ("forward_flow", "forward_resolved") and only_a_hop_less(out)
    assert judged(node).packets == 1


def test_connection_goes_through_its_states(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(tcp_flags="syn/syn,ack", protocol="tcp")))
    talk = plain(node, net)
    talk.first()
    assert node.flows.connection().state == "tcp_syn_sent"
    talk.server("SA")
    talk.client("A")
    assert node.flows.connection().state == "tcp_established"
    assert talk.client("FA").reason == talk.server("FA").reason == "forward_state"
    assert node.flows.connection().state == "tcp_time_wait"


def test_new_connection_in_the_place_of_a_closed_one_is_judged(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    talk = plain(node, net).open()
    talk.client("FA")
    talk.server("FA")
    talk.client("A")
    assert plain(node, net).first().reason == "forward_new"
    assert judged(node).packets == 2


@PROTOCOLS
def test_dropped_packet_leaves_no_entry(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule(action="drop"), default="accept"))
    assert plain(node, net, proto).first().reason == "drop_firewall"
    assert node.flows.entries() == 0
    assert judged(node).packets == 1


@pytest.mark.parametrize(
    ("default", "reason"),
    [("accept", "forward_new"), ("drop", "drop_firewall"), ("reject", "answer_rejected")],
)
@PROTOCOLS
def test_default_decides_about_what_meets_no_rule(
    node: Node, net: Net, proto: str, default: str, reason: str
) -> None:
    other = rule(action="drop" if default == "accept" else "accept", protocol="gre")
    node.apply(firewall=firewall(other, default=default))
    assert plain(node, net, proto).first().reason == reason
    assert judged(node, DEFAULT).packets == 1
    assert judged(node).packets == 0


def test_firewall_without_rules_has_its_default(node: Node, net: Net) -> None:
    node.apply(firewall=firewall())
    assert plain(node, net).first().reason == "drop_firewall"
    node.apply(firewall=firewall(default="accept"))
    assert plain(node, net).first().reason == "forward_new"


@pytest.mark.parametrize("first", ["accept", "drop"])
def test_first_rule_that_a_packet_meets_decides(node: Node, net: Net, first: str) -> None:
    second = "drop" if first == "accept" else "accept"
    node.apply(
        firewall=firewall(
            rule("elsewhere", second, protocol="udp"),
            rule("first", first, protocol="tcp", destination_ports="80-90"),
            rule("second", second, protocol="tcp", destination_ports=80),
        )
    )
    assert plain(node, net).first().verdict == ("forward" if first == "accept" else "drop")
    assert [judged(node, name).packets for name in ("elsewhere", "first", "second")] == [0, 1, 0]


def test_expired_packet_is_left_to_linux_as_without_a_firewall(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    assert plain(node, net).first(ttl=1).reason == "punt_ttl"
    assert node.flows.entries() == 0


def test_expired_packet_of_a_known_connection_is_answered(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    talk = plain(node, net, "udp").open()
    out = talk.client(ttl=1, payload=bytes(40))
    assert (out.reason, network(out.packet).src) == ("answer_ttl_exceeded", net.node(FRONT))


def test_packet_over_the_mtu_of_the_way_is_answered(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    fields: dict[str, Any] = {"flags": "DF"} if net.family == 4 else {}
    sent = frame(FRONT, net.client, net.narrow_endpoint, udp(40000, 80, bytes(1440)), **fields)
    assert node.send(sent).reason == "answer_too_big"
    small = frame(FRONT, net.client, net.narrow_endpoint, udp(40000, 80), **fields)
    assert node.send(small).verdict == "forward"


def test_connection_takes_a_new_way_when_routes_change(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(interface_in=FRONT)))
    talk = Conversation(node, net, to=net.remote_host(5)).open()
    with node.world.route("add", net.remote_host(5), "via", net.router(SPARE), "dev", SPARE):
        node.datapath.bump_mirror()
        out = talk.client(payload=b"x")
        assert (out.reason, out.packet.src) == ("forward_resolved", device_mac(SPARE))
        assert only_a_hop_less(out)
    assert judged(node).packets == 1


def test_connection_over_a_way_that_is_not_allowed_ends(node: Node, net: Net) -> None:
    """A rule about the interface by which it leaves is asked again when that is another one."""
    node.apply(firewall=firewall(rule(interface_out=BACK)))
    talk = Conversation(node, net, to=net.remote_host(5)).open()
    with node.world.route("add", net.remote_host(5), "via", net.router(SPARE), "dev", SPARE):
        node.datapath.bump_mirror()
        assert talk.client(payload=b"x").reason == "drop_firewall"
        assert talk.client(payload=b"x").reason == "drop_firewall"


def test_unresolved_neighbour_does_not_judge_twice(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    talk = Conversation(node, net, proto="udp", to=net.unresolved)
    for _ in range(2):
        assert talk.client().reason == ("handed_over" if node.hook == "xdp" else "forward_neighbour")
    assert judged(node).packets == 1


# ---- mid-stream ----


@pytest.mark.parametrize(
    ("midstream", "reason"),
    [("pick-up", "forward_new"), ("drop", "drop_midstream"), ("reset", "answer_reset")],
)
def test_segment_without_a_connection_is_judged_before_the_policy(
    node: Node, net: Net, midstream: str, reason: str
) -> None:
    node.apply(firewall=firewall(rule(destination_ports=80, protocol="tcp")), midstream=midstream)
    assert plain(node, net).client("A", payload=b"x").reason == reason
    assert plain(node, net, dport=81).client("A", payload=b"x").reason == "drop_firewall"
    assert judged(node).packets == 1


def test_picked_up_connection_goes_on(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(interface_in=FRONT)), midstream="pick-up")
    talk = plain(node, net)
    assert talk.client("A", payload=b"x").reason == "forward_new"
    assert node.flows.flags(talk.arrives) == {"picked_up"}
    assert talk.server("A", payload=b"y").verdict == "forward"
    assert node.flows.connection().state == "tcp_established"


@pytest.mark.parametrize("flags", ["SA", "R", "RA", "SF"])
def test_segment_that_opens_nothing_is_dropped_when_rules_accept_it(node: Node, net: Net, flags: str) -> None:
    node.apply(firewall=firewall(rule()), midstream="pick-up")
    assert plain(node, net).client(flags).reason == "drop_midstream"
    assert node.flows.entries() == 0


@pytest.mark.parametrize("flags", ["SA", "R", "RA", "SF", "A"])
def test_segment_that_opens_nothing_is_judged_first(node: Node, net: Net, flags: str) -> None:
    node.apply(firewall=firewall(rule(protocol="udp")), midstream="pick-up")
    assert plain(node, net).client(flags).reason == "drop_firewall"


@pytest.mark.parametrize("policy", ["pick-up", "drop", "reset"])
@pytest.mark.parametrize("flags", ["A", "SA", "R", "FA"])
def test_refused_segment_to_a_service_is_refused_whatever_the_policy(
    node: Node, net: Net, policy: str, flags: str
) -> None:
    """A reset would tell that there is a service behind what drops silently."""
    node.apply([service(net)], firewall=firewall(), midstream=policy)
    assert Conversation(node, net).client(flags).verdict == "drop"


# ---- to the node itself ----


@PROTOCOLS
def test_accepted_packet_to_the_node_goes_to_linux(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule()))
    talk = local(node, net, proto)
    assert talk.first().reason == "punt_local"
    assert node.flows.flags(talk.arrives) == {"linux"}
    assert node.flows.flags(talk.reply) == {"linux", "reply"}


@PROTOCOLS
def test_further_packets_to_the_node_are_not_judged(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule()))
    talk = local(node, net, proto)
    talk.first()
    before = judged(node)
    assert before.packets == 1
    for _ in range(5):
        assert talk.client("A", payload=b"x").reason == "punt_local"
    assert talk.client("FA").reason == "punt_local"
    assert judged(node) == before
    assert node.flows.entry(talk.arrives)["packets"] == 7


@PROTOCOLS
def test_refused_packet_to_the_node_does_not_reach_linux(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule(action="drop"), default="accept"))
    assert local(node, net, proto).first().reason == "drop_firewall"
    assert node.flows.entries() == 0


def test_packet_to_another_address_of_the_node_is_local(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(direction="local")))
    assert Conversation(node, net, to=net.node(BACK)).first().reason == "punt_local"


def test_segment_to_the_node_without_a_connection(node: Node, net: Net) -> None:
    """Linux knows whether it is of a connection that is older than the firewall; a reset ends it at most."""
    node.apply(firewall=firewall(rule()), midstream="drop")
    talk = local(node, net)
    for flags in ("R", "SA"):
        assert talk.client(flags).reason == "punt_local"
        assert node.flows.entries() == 0
    assert talk.client("A").reason == "punt_local"
    assert "picked_up" in node.flows.flags(talk.arrives)


def test_expired_packet_to_the_node_reaches_it(node: Node, net: Net) -> None:
    """A TTL of 1 is enough for the last hop."""
    node.apply(firewall=firewall(rule(destination_ports=80, protocol="udp")))
    assert node.send(to_node(net, udp(40000, 80), ttl=1)).reason == "punt_local"
    assert node.send(to_node(net, udp(40000, 81), ttl=1)).reason == "drop_firewall"


# ---- rules that change ----


@PROTOCOLS
@pytest.mark.parametrize("side", ["client", "server"])
def test_connection_that_new_rules_forbid_ends_with_its_next_packet(
    node: Node, net: Net, proto: str, side: str
) -> None:
    node.apply(firewall=firewall(rule()))
    talk = plain(node, net, proto).open()
    node.apply(firewall=firewall(rule(), rule("new", protocol="gre"), rule("no", "drop")))
    assert talk.client("A").verdict == "forward"  # the first rule still accepts it
    node.apply(firewall=firewall(rule(protocol="gre"), default="drop"))
    assert getattr(talk, side)("A", payload=b"x").reason == "drop_firewall"
    for _ in range(2):  # nor does what follows open it again
        assert talk.server("A", payload=b"x").reason == "drop_firewall"
        assert talk.client("A", payload=b"x").reason == "drop_firewall"
    assert judged(node, DEFAULT).packets == 5


@PROTOCOLS
@pytest.mark.parametrize("side", ["client", "server"])
def test_connection_that_new_rules_allow_goes_on(node: Node, net: Net, proto: str, side: str) -> None:
    """Rules are asked about the connection as it was opened, whichever side sends."""
    node.apply(firewall=firewall(rule()))
    talk = plain(node, net, proto).open()
    ruled = rule(
        "narrow",
        source=net.client,
        destination=net.inside,
        protocol=proto,
        source_ports=40000,
        destination_ports=80,
        interface_in=FRONT,
        interface_out=BACK,
        direction="through",
        vlan=0,
    )
    node.apply(firewall=firewall(ruled))
    assert getattr(talk, side)("A", payload=b"x").reason == "forward_resolved"
    assert getattr(talk, side)("A", payload=b"x").reason == "forward_flow"
    assert judged(node, "narrow").packets == 0  # what goes on is not counted again
    assert node.flows.entries() == 2


def test_connection_is_judged_again_as_one_that_began_with_syn(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(protocol="tcp", tcp_flags="syn/fin,syn,rst,ack")))
    talk = plain(node, net).open()
    node.datapath.bump_mirror()
    assert talk.client("A", payload=b"x").verdict == "forward"
    assert talk.server("A", payload=b"x").verdict == "forward"


def test_local_connection_that_new_rules_forbid_ends(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    talk = local(node, net)
    talk.first()
    node.apply(firewall=firewall(rule(direction="through")))
    assert talk.client("A").reason == "drop_firewall"
    assert talk.client("A").reason == "drop_firewall"


def test_local_connection_that_new_rules_allow_goes_on(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    talk = local(node, net)
    talk.first()
    node.apply(firewall=firewall(rule("ssh", direction="local", interface_in=FRONT)))
    assert talk.client("A").reason == "punt_local"
    assert (judged(node, "ssh").packets, node.flows.entries()) == (0, 2)


def test_forbidden_connection_is_refused_as_the_rule_says(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    talk = plain(node, net).open()
    node.apply(firewall=firewall(rule("now", "reject")))
    out = talk.client("A", payload=b"x")
    assert (out.reason, str(out.packet["TCP"].flags)) == ("answer_rejected", "R")


@PROTOCOLS
@pytest.mark.parametrize("side", ["client", "server"])
def test_without_a_firewall_plain_connections_are_given_back_to_linux(
    node: Node, net: Net, proto: str, side: str
) -> None:
    node.apply(firewall=firewall(rule()))
    talk = plain(node, net, proto).open()
    before = ended(node, "released")
    node.apply()
    assert getattr(talk, side)("A", payload=b"x").reason == "punt_not_ours"
    assert node.flows.entries() == 0
    assert ended(node, "released") == before + 1


def test_without_a_firewall_local_connections_are_forgotten(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    talk = local(node, net)
    talk.first()
    node.apply()
    assert talk.client("A").reason == "punt_local"
    assert node.flows.entries() == 0


def test_plain_connection_whose_destination_becomes_the_nodes(node: Node, net: Net) -> None:
    """It is judged as one to the node for as long as that lasts."""
    node.apply(firewall=firewall(rule(direction="through")))
    talk = Conversation(node, net, to=net.remote_host(7)).open()
    with node.world.address(net.remote_host(7), BACK):
        node.datapath.bump_mirror()
        assert talk.client("A", payload=b"x").reason == "drop_firewall"
    node.datapath.bump_mirror()
    assert talk.client("A", payload=b"x").reason == "forward_resolved"


@pytest.mark.parametrize("side", ["client", "server"])
def test_way_of_a_plain_connection_that_is_lost_for_a_moment(node: Node, net: Net, side: str) -> None:
    node.apply(firewall=firewall(rule(direction="through", interface_in=FRONT)))
    talk = Conversation(node, net, client=net.far_client(7), to=net.remote_host(5)).open()
    lost = net.remote_host(5) if side == "client" else net.far_client(7)
    with node.world.route("add", "unreachable", lost):
        node.datapath.bump_mirror()
        assert getattr(talk, side)(payload=b"x").verdict in ("drop", "punt")
        assert node.flows.entries() == 2
    node.datapath.bump_mirror()
    assert getattr(talk, side)(payload=b"x").verdict == "forward"


def test_way_that_is_lost_for_a_moment_drops_and_keeps_the_flow(node: Node, net: Net) -> None:
    node.apply(
        [service(net, net.remote_host(5))], firewall=firewall(rule(direction="through", interface_in=FRONT))
    )
    talk = Conversation(node, net).open()
    with node.world.route("add", "unreachable", net.remote_host(5)):
        node.datapath.bump_mirror()
        assert talk.client(payload=b"x").reason == "drop_no_route"
        assert node.flows.entries() == 2
    node.datapath.bump_mirror()
    assert talk.client(payload=b"x").verdict == "forward"


def test_way_back_that_is_lost_for_a_moment_drops_and_keeps_the_flow(node: Node, net: Net) -> None:
    node.apply(
        [service(net, net.remote_host(5))], firewall=firewall(rule(direction="through", interface_in=FRONT))
    )
    talk = Conversation(node, net, client=net.far_client(7)).open()
    with node.world.route("add", "unreachable", net.far_client(7)):
        node.datapath.bump_mirror()
        assert talk.server(payload=b"x").reason == "drop_no_route"
        assert node.flows.entries() == 2
    node.datapath.bump_mirror()
    assert talk.server(payload=b"x").verdict == "forward"


# ---- a full table ----


@PROTOCOLS
def test_full_table_drops_what_is_forwarded(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule()))
    node.flows.fill(net.family)
    assert plain(node, net, proto).first().reason == "drop_table_full"


@PROTOCOLS
def test_full_table_keeps_nobody_from_the_node(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule(destination_ports=80, protocol=[proto])))
    node.flows.fill(net.family)
    for _ in range(2):
        assert local(node, net, proto).first().reason == "punt_local"
    assert local(node, net, proto, dport=81).first().reason == "drop_firewall"
    assert judged(node).packets == 2


def test_plain_connection_takes_the_place_of_what_is_missed_least(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    for port in range(2000, 2900):
        node.run(through(net, udp(port, 80)))
    reasons = Counter(node.send(through(net, udp(port, 80))).reason for port in range(3000, 3900))
    assert reasons["forward_new"] + reasons["drop_table_full"] == 900
    assert reasons["forward_new"] > 800  # unanswered datagrams make way


def test_reply_tuple_of_another_connection_is_left_to_linux(node: Node, net: Net) -> None:
    """The answers of both would look the same."""
    node.apply([service(net, net.inside)], firewall=firewall(rule()))
    served = Conversation(node, net)
    assert served.first().reason == "forward_new"
    direct = plain(node, net, dport=8080)
    assert direct.first().reason == "punt_not_ours"
    assert node.flows.entries() == 2


# ---- no firewall ----


@pytest.mark.parametrize("kind", ["through", "local"])
def test_nothing_is_judged_without_a_firewall(node: Node, net: Net, kind: str) -> None:
    node.apply()
    frame = through(net, syn()) if kind == "through" else to_node(net, syn())
    assert node.send(frame).reason == "punt_not_ours"
    assert node.flows.entries() == 0


def test_packet_for_another_host_is_not_judged(node: Node, net: Net) -> None:
    node.apply(firewall=firewall())
    sent = through(net, syn())
    assert node.send(bytes.fromhex("020000009999") + sent[6:]).reason == "punt_other_host"
    assert judged(node, DEFAULT).packets == 0


# ---- where senders should be ----


def from_elsewhere(net: Net) -> dict[str, bytes]:
    """Sources that do not belong behind the front: of the back, of the node itself."""
    return {
        source: frame(FRONT, address, net.inside, udp(40000, 80))
        for source, address in {
            "back": net.endpoint,
            "behind the back": net.remote_host(5),
            "the node": net.node(BACK),
            "the receiver": net.inside,
        }.items()
    }


@IPV4
@pytest.mark.parametrize("source", ["back", "behind the back", "the node", "the receiver"])
def test_sender_that_should_be_elsewhere_is_left_to_linux(node: Node, net: Net, source: str) -> None:
    """Accepted, but Linux has rp_filter to ask, and does not believe who has its own address."""
    node.apply(firewall=firewall(rule(protocol="udp")))
    sent = from_elsewhere(net)[source]
    entries = 0 if source == "the receiver" else 2
    for _ in range(2):
        out = node.send(sent)
        assert out.verdict == "punt"
        assert out.frame == sent
        assert node.flows.entries() == entries
    assert judged(node).packets == (1 if entries else 2)


@IPV4
def test_sender_that_should_be_elsewhere_stays_with_linux_when_routes_change(node: Node, net: Net) -> None:
    """It is judged again, and opened no second time."""
    node.apply(firewall=firewall(rule(protocol="udp")))
    sent, before = from_elsewhere(net)["back"], ended(node, "released")
    node.send(sent)
    node.apply(firewall=firewall(rule(protocol="udp"), rule("more", "drop", protocol="tcp")))
    assert node.send(sent).verdict == "punt"
    assert (judged(node).packets, ended(node, "released") - before) == (1, 0)


@IPV6
@pytest.mark.parametrize("source", ["back", "behind the back"])
def test_linux_asks_no_sender_over_ipv6_where_it_should_be(node: Node, net: Net, source: str) -> None:
    node.apply(firewall=firewall(rule(protocol="udp")))
    assert node.send(from_elsewhere(net)[source]).reason == "forward_new"


def test_what_an_address_sends_to_itself_is_no_connection(node: Node, net: Net) -> None:
    """Its replies could not be told from it."""
    node.apply(firewall=firewall(rule(protocol="udp")))
    for host in (net.inside, net.node(FRONT)):
        out = node.send(frame(FRONT, host, host, udp(7, 7)))
        assert out.verdict == "punt"
    assert node.flows.entries() == 0
    assert judged(node).packets == 2
