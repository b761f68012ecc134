# SPDX-License-Identifier: Apache-2.0
"""What the firewall tells: counters of rules, and events of those that log."""

from __future__ import annotations

from typing import Any

from scapy.layers.l2 import Dot1Q

from clearway.compiler import identity_of
from tests.packet.addresses import BACK, FRONT, SPARE, Net
from tests.packet.conversation import Conversation, service
from tests.packet.firewall import DEFAULT, firewall, judged, rule, syn, through, to_node
from tests.packet.flowtable import packed
from tests.packet.frames import echo, ether, frame, ip_packet, l3, tcp, udp
from tests.packet.node import Node
from tests.packet.test_vlan import ONLY_XDP, vlan_device

HEAD = 128
ACTIONS = {"accept": 0, "drop": 1, "reject": 2}

# ---- counters ----


def test_rule_counts_packets_bytes_and_when(node: Node, net: Net) -> None:
    node.apply(
        firewall=firewall(rule(destination_ports=80, protocol="udp"), rule("no", "drop", protocol="tcp"))
    )
    assert judged(node).last == judged(node, "no").last == 0
    began = node.datapath.clock().jiffies
    sizes = {"rule": 0, "no": 0, DEFAULT: 0}
    for n in range(5):
        for name, above in (
            ("rule", udp(3000 + n, 80, bytes(n))),
            ("no", tcp(3000 + n, 81, "S", payload=bytes(2 * n))),
            (DEFAULT, udp(3000 + n, 81, bytes(3 * n))),
        ):
            sent = through(net, above)
            sizes[name] += len(sent)
            node.send(sent)
    for name, size in sizes.items():
        counted = judged(node, name)
        assert (counted.packets, counted.bytes) == (5, size)
        assert began <= counted.last <= node.datapath.clock().jiffies


def test_counters_stay_with_their_rule(node: Node, net: Net) -> None:
    """By its name: others come before it, and it changes what it asks for."""
    node.apply(firewall=firewall(rule("kept", "drop", protocol="udp"), rule("goes", "drop")))
    node.send(through(net))
    node.send(through(net, syn()))
    node.apply(firewall=firewall(rule("new", protocol="gre"), rule("kept", "reject")))
    assert (judged(node, "kept").packets, judged(node, "new").packets) == (1, 0)
    node.send(through(net))
    assert (judged(node, "kept").packets, judged(node, "new").packets) == (2, 0)


def test_counters_of_a_new_rule_begin_at_zero(node: Node, net: Net) -> None:
    for n in range(4):
        name = f"rule-{n}"
        node.apply(firewall=firewall(rule(name, "drop")))
        assert judged(node, name).packets == 0
        node.send(through(net))
        assert judged(node, name).packets == 1


def test_expired_packet_is_not_counted(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    assert node.send(through(net, ttl=1)).reason == "punt_ttl"
    assert judged(node).packets == 0


# ---- events ----


def heard(node: Node, *sent: tuple[bytes, str]) -> list[Any]:
    """Events of these frames."""
    with node.datapath.events() as read:
        for data, device in sent:
            node.send(data, device)
        return list(read())


def test_rule_that_logs_tells_what_it_decides(node: Node, net: Net) -> None:
    for action, number in ACTIONS.items():
        node.flows.clear()
        node.apply(firewall=firewall(rule(action, action, log=True)))
        sent = through(net, tcp(40000, 80, "S", payload=bytes(range(200))))
        began = node.datapath.clock().jiffies
        (event,) = heard(node, (sent, FRONT))
        assert int(event["identity"]) == identity_of(action)
        assert int(event["action"]) == number
        assert (int(event["ifindex_in"]), int(event["ifindex_out"])) == (
            node.world.ifindex[FRONT],
            node.world.ifindex[BACK],
        )
        assert int(event["length"]) == len(sent)
        assert (int(event["family"]), int(event["proto"]), int(event["tcp_flags"])) == (net.family, 6, 2)
        assert (int(event["vlan"]), int(event["known"])) == (0, 0)
        assert int(event["head_length"]) == HEAD
        assert bytes(event["head"]) == l3(sent)[:HEAD]
        assert began <= int(event["at"]) <= node.datapath.clock().jiffies
        assert list(event["tuple"]["src"]) == packed(net.client)
        assert list(event["tuple"]["dst"]) == packed(net.inside)
        assert [int(event["tuple"][port]) for port in ("sport", "dport")] == [40000, 80]


def test_short_packet_is_told_whole(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule("no", "drop", log=True)))
    sent = to_node(net, echo(net.family, 7))
    (event,) = heard(node, (sent, FRONT))
    assert int(event["head_length"]) == len(l3(sent))
    assert bytes(event["head"])[: len(l3(sent))] == l3(sent)
    assert not any(bytes(event["head"])[len(l3(sent)) :])
    assert int(event["ifindex_out"]) == 0  # to the node


def test_only_rules_that_log_tell(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule("quiet", protocol="tcp"), rule("loud", protocol="udp", log=True)))
    sent = [(through(net, above), FRONT) for above in (syn(), udp(1, 2), echo(net.family, 3))]
    assert [int(event["identity"]) for event in heard(node, *sent)] == [identity_of("loud")]


def test_connection_tells_once(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(log=True)))
    with node.datapath.events() as read:
        talk = Conversation(node, net, to=net.inside).open()
        talk.client(payload=b"x")
        node.datapath.bump_mirror()
        talk.client(payload=b"x")
        talk.server(payload=b"x")
        assert len(read()) == 1


def test_event_of_a_service_has_the_packet_as_it_came(node: Node, net: Net) -> None:
    node.apply(
        [service(net)], firewall=firewall(rule(log=True, destination=net.endpoint, after_translation=True))
    )
    sent = frame(FRONT, net.client, net.vip, syn())
    (event,) = heard(node, (sent, FRONT))
    assert list(event["tuple"]["dst"]) == packed(net.vip)
    assert bytes(event["head"])[: len(l3(sent))] == l3(sent)
    assert int(event["ifindex_out"]) == node.world.ifindex[BACK]


def test_event_of_a_known_connection_has_the_way_of_its_packet(node: Node, net: Net) -> None:
    """In the direction of the answers: rules are asked about the other one."""
    ifindex = node.world.ifindex
    for side, came, goes in (("client", FRONT, BACK), ("server", BACK, FRONT)):
        node.apply([service(net)], firewall=firewall(rule()))
        talk = Conversation(node, net).open()
        node.apply([service(net)], firewall=firewall(rule("no", "drop", log=True)))
        with node.datapath.events() as read:
            sent = getattr(talk, side)("A", payload=b"x").sent
            (event,) = list(read())
        assert int(event["known"]) == 1
        assert (int(event["ifindex_in"]), int(event["ifindex_out"])) == (ifindex[came], ifindex[goes])
        assert bytes(event["head"])[: len(l3(sent))] == l3(sent)


def test_event_of_a_stray(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule("no", "drop", log=True)))
    group = "224.0.0.251" if net.family == 4 else "ff02::fb"
    (event,) = heard(node, (frame(FRONT, net.client, group, udp(5353, 5353)), FRONT))
    assert (int(event["ifindex_in"]), int(event["ifindex_out"])) == (node.world.ifindex[FRONT], 0)
    assert (int(event["proto"]), int(event["tuple"]["dport"])) == (17, 5353)


@ONLY_XDP
def test_event_of_a_tagged_frame(node: Node, net: Net) -> None:
    vlan_device(node, 10)
    node.apply(firewall=firewall(rule("no", "drop", log=True)))
    packet = ip_packet(net.client, net.inside, udp(1, 2, bytes(40)))
    sent = bytes(ether(FRONT) / Dot1Q(vlan=10) / packet)
    (event,) = heard(node, (sent, FRONT))
    assert int(event["vlan"]) == 10
    assert int(event["ifindex_in"]) == node.world.ifindex[SPARE]
    assert bytes(event["head"])[: len(bytes(packet))] == bytes(packet)


def test_nothing_is_told_to_nobody(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule("no", "drop", log=True)))
    node.send(through(net))
    assert heard(node) == []
    assert judged(node, "no").packets == 1


def test_events_without_room_are_counted(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule("no", "drop", log=True)))
    lost, sent = node.datapath.lost_events(), through(net)
    with node.datapath.events() as read:
        size = node.datapath.table("events_v1").max_entries
        frames = size // 208 + 100
        for _ in range(frames):
            node.run(sent)
        assert len(read()) + node.datapath.lost_events() - lost == frames
        assert node.datapath.lost_events() > lost
    assert judged(node, "no").packets == frames
