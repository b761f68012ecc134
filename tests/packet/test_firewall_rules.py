# SPDX-License-Identifier: Apache-2.0
"""What rules can ask of a packet. Each case: a rule that accepts where all else is dropped, frames that meet
it and frames that do not.
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.l2 import GRE, Dot1AD, Dot1Q
from scapy.packet import Packet, Raw

from tests.packet.addresses import BACK, FRONT, NARROW, SPARE, Net
from tests.packet.conversation import Conversation
from tests.packet.firewall import firewall, judged, rule, syn, through, to_node
from tests.packet.frames import echo, ether, frame, icmp_error, ip_packet, l3, tcp, udp
from tests.packet.marks import IPV4, IPV6, PROTOCOLS
from tests.packet.node import Node
from tests.packet.test_vlan import ONLY_XDP, vlan_device

Frame = bytes | tuple[bytes, str]
"""With the device it comes from, unless that is the front."""


def sent(node: Node, made: Frame) -> str:
    """accept | drop"""
    outcome = node.send(made) if isinstance(made, bytes) else node.send(*made)
    assert outcome.reason == "drop_firewall" or outcome.verdict in ("forward", "punt")
    return "drop" if outcome.verdict == "drop" else "accept"


def check(node: Node, met: list[Frame], missed: list[Frame], config: dict[str, Any]) -> None:
    """Begins with no connection and no count."""
    node.flows.clear()
    node.apply()
    node.apply(firewall=config)
    assert [sent(node, made) for made in missed] == ["drop"] * len(missed)
    assert judged(node).packets == 0
    assert [sent(node, made) for made in met] == ["accept"] * len(met)
    assert judged(node).packets == len(met)


def from_to(src: str, dst: str, above: Packet | None = None, device: str = FRONT) -> Frame:
    return frame(device, src, dst, udp(40000, 80) if above is None else above), device


def prefix(address: str, length: int) -> str:
    return f"{address}/{length}"


# ---- protocols ----


def test_protocol(node: Node, net: Net) -> None:
    icmp = "icmp" if net.family == 4 else "icmpv6"
    above = {"tcp": syn(), "udp": udp(40000, 80), icmp: echo(net.family, 7), "gre": GRE() / Raw(bytes(20))}
    for name, met in above.items():
        check(
            node,
            [through(net, met), to_node(net, met)],
            [through(net, other) for key, other in above.items() if key != name],
            firewall(rule(protocol=name)),
        )


def test_protocol_by_number_and_several(node: Node, net: Net) -> None:
    met: list[Frame] = [through(net, syn()), through(net, GRE() / Raw(bytes(20)))]
    check(node, met, [through(net, udp(1, 2))], firewall(rule(protocol=["tcp", 47])))


def test_icmp_of_the_other_family_is_another_protocol(node: Node, net: Net) -> None:
    other = "icmpv6" if net.family == 4 else "icmp"
    check(node, [], [through(net, echo(net.family, 7))], firewall(rule(protocol=other)))


# ---- addresses ----


def test_source(node: Node, net: Net) -> None:
    whole = 32 if net.family == 4 else 128
    met, missed = from_to(net.client, net.inside), from_to(net.host(FRONT, 51), net.inside)
    check(node, [met], [missed], firewall(rule(source=prefix(net.client, whole))))
    check(node, [met], [from_to(net.far_client(7), net.inside)], firewall(rule(source=net.prefix(FRONT))))
    check(node, [met, from_to(net.far_client(7), net.inside)], [], firewall(rule(source=net.any)))


def test_destination(node: Node, net: Net) -> None:
    met, missed = from_to(net.client, net.inside), from_to(net.client, net.host(BACK, 51))
    check(node, [met], [missed], firewall(rule(destination=net.inside)))
    node.flows.clear()
    there = [met, missed, from_to(net.client, net.node(BACK))]
    check(node, there, [from_to(net.client, net.node(FRONT))], firewall(rule(destination=net.prefix(BACK))))


def test_addresses_of_the_other_family_are_never_met(node: Node, net: Net) -> None:
    check(node, [], [through(net)], firewall(rule(source=net.other_family.any)))


def test_list_of_prefixes(node: Node, net: Net) -> None:
    sources = [net.client, net.other_family.any, net.far_client(7)]
    check(
        node,
        [from_to(net.client, net.inside), from_to(net.far_client(7), net.inside)],
        [from_to(net.host(FRONT, 51), net.inside), from_to(net.far_client(8), net.inside)],
        firewall(rule(source=sources)),
    )


@pytest.mark.parametrize("field", ["source", "destination"])
def test_named_set_of_prefixes(node: Node, net: Net, field: str) -> None:
    """By its name alone, beside prefixes, and beside another one."""
    client, other, third = net.client, net.host(FRONT, 51), net.host(FRONT, 60)
    sets = {"one": [client, net.other_family.any], "two": [other], "none": []}

    def of(address: str) -> Frame:
        if field == "source":
            return from_to(address, net.inside)
        return from_to(net.inside, address, device=BACK)

    for asked, met in {
        "@one": [client],
        "@none": [],
        ("@one", "@two"): [client, other],
        ("@two", third): [other, third],
    }.items():
        keys: dict[str, Any] = {field: asked if isinstance(asked, str) else list(asked)}
        missed = [of(address) for address in (client, other, third) if address not in met]
        check(node, [of(address) for address in met], missed, firewall(rule(**keys), sets=sets))


def test_most_specific_set_does_not_hide_a_wider_one(node: Node, net: Net) -> None:
    """An address that is in several sets meets rules about any of them, in the order of the rules."""
    sets = {"all": [net.any], "net": [net.prefix(FRONT)], "host": [net.client]}
    config = firewall(
        rule("host", "drop", source="@host", destination_ports=22, protocol="tcp"),
        rule("net", "accept", source="@net", destination_ports=80, protocol="tcp"),
        rule("all", "accept", source="@all", destination_ports=443, protocol="tcp"),
        sets=sets,
    )
    node.apply(firewall=config)
    assert [sent(node, through(net, syn(port))) for port in (22, 80, 443, 8080)] == [
        "drop",
        "accept",
        "accept",
        "drop",
    ]
    assert [judged(node, name).packets for name in ("host", "net", "all")] == [1, 1, 1]


# ---- ports ----


def with_port(field: str, net: Net, proto: str, port: int) -> Frame:
    sport, dport = (port, 9) if field == "source_ports" else (9, port)
    return through(net, tcp(sport, dport, "S") if proto == "tcp" else udp(sport, dport))


PORT_CASES: dict[str, tuple[Any, list[int], list[int]]] = {
    "one": (80, [80], [0, 79, 81, 65535]),
    "range": ("100-200", [100, 101, 150, 199, 200], [99, 201, 0]),
    "list": ([80, "100-102", "65535"], [80, 100, 101, 102, 65535], [81, 99, 103, 65534]),
    "all": ("0-65535", [0, 1, 65535], []),
    "zero": (0, [0], [1, 256]),
    "set": ("@web", [80, 8000, 8010], [81, 7999, 8011]),
    "sets and ports": (["@web", "@other", 7], [80, 8005, 443, 7], [8, 444, 8011]),
}
PORT_SETS = {"web": [80, "8000-8010"], "other": [443]}


@PROTOCOLS
@pytest.mark.parametrize("field", ["source_ports", "destination_ports"])
@pytest.mark.parametrize("case", PORT_CASES)
def test_ports(node: Node, net: Net, proto: str, field: str, case: str) -> None:
    asked, met, missed = PORT_CASES[case]
    other = "udp" if proto == "tcp" else "tcp"
    wrong = [with_port(field, net, proto, port) for port in missed]
    check(
        node,
        [with_port(field, net, proto, port) for port in met],
        [*wrong, with_port(field, net, other, met[0]), through(net, echo(net.family, met[0]))],
        firewall(rule(protocol=proto, **{field: asked}), sets=PORT_SETS),
    )


def test_ports_of_both_protocols(node: Node, net: Net) -> None:
    check(
        node,
        [through(net, udp(7, 53)), through(net, tcp(7, 53, "S"))],
        [through(net, udp(7, 54)), through(net, udp(8, 53))],
        firewall(rule(protocol=["tcp", "udp"], source_ports=7, destination_ports="@dns"), sets={"dns": [53]}),
    )


# ---- ICMP ----


def test_icmp_types(node: Node, net: Net) -> None:
    about = l3(frame(BACK, net.inside, net.client, udp(5, 6)))
    error = through(net, icmp_error("time-exceeded", about))
    reply = through(net, echo(net.family, 9, reply=True))
    check(
        node,
        [through(net, echo(net.family, 7)), to_node(net, echo(net.family, 7))],
        [reply, error],
        firewall(rule(protocol=["icmp", "icmpv6"], icmp_types="echo-request")),
    )
    check(
        node,
        [error, reply, to_node(net, icmp_error("time-exceeded", about))],
        [through(net, echo(net.family, 7)), through(net, icmp_error("unreachable", about))],
        firewall(rule(protocol=["icmp", "icmpv6"], icmp_types=["time-exceeded", "echo-reply"])),
    )


def test_icmp_type_by_number(node: Node, net: Net) -> None:
    """8 is a number of ICMP alone here, 128 one of ICMPv6."""
    proto, number = ("icmp", 8) if net.family == 4 else ("icmpv6", 128)
    met, reply = through(net, echo(net.family, 7)), through(net, echo(net.family, 7, reply=True))
    check(
        node, [met], [reply, through(net, udp(7, number))], firewall(rule(protocol=proto, icmp_types=number))
    )


def test_identifier_of_an_echo_is_no_port(node: Node, net: Net) -> None:
    config = firewall(rule(protocol=["tcp", "udp"], destination_ports=80, source_ports="0-65535"))
    check(node, [], [through(net, echo(net.family, 80))], config)


# ---- TCP flags ----


@pytest.mark.parametrize(
    ("asked", "met", "missed"),
    [
        ("syn", ["S", "SA", "SFRPAUEC", "SEC"], ["A", "F", "R", ""]),
        ("syn/fin,syn,rst,ack", ["S", "SP", "SEC"], ["SA", "SF", "SR", "A", ""]),
        ("none/syn,ack", ["F", "R", "", "UP"], ["S", "A", "FA"]),
        ("ece,cwr/ece,cwr", ["SEC", "EC"], ["SE", "SC", "S"]),
    ],
)
def test_tcp_flags(node: Node, net: Net, asked: str, met: list[str], missed: list[str]) -> None:
    """To the node: what is forwarded is dropped by the policy when it cannot open a connection."""

    def packets(flags: list[str], first: int) -> list[Frame]:
        return [to_node(net, tcp(first + n, 80, each)) for n, each in enumerate(flags)]

    config = firewall(rule(protocol="tcp", tcp_flags=asked))
    check(node, packets(met, 3000), [*packets(missed, 4000), to_node(net, udp(1, 80))], config)


# ---- DSCP, VLAN, interfaces, direction ----


def marked(net: Net, dscp: int, ecn: int = 0) -> bytes:
    tos = dscp << 2 | ecn
    return through(net, **({"tos": tos} if net.family == 4 else {"tc": tos}))


@pytest.mark.parametrize(
    ("asked", "met", "missed"),
    [("ef", [46], [0, 47, 45, 44]), (["cs1", 63], [8, 63], [9, 62, 31]), ("cs0", [0], [1, 32])],
)
def test_dscp(node: Node, net: Net, asked: Any, met: list[int], missed: list[int]) -> None:
    node.apply(firewall=firewall(rule(dscp=asked)))
    for ecn in range(4):
        for dscp in met:
            node.flows.clear()
            assert sent(node, marked(net, dscp, ecn)) == "accept"
        node.flows.clear()
        for dscp in missed:
            assert sent(node, marked(net, dscp, ecn)) == "drop"


def tagged(net: Net, *vids: int, above: Packet | None = None) -> bytes:
    layer2 = ether(FRONT)
    for n, vid in enumerate(vids):
        layer2 /= Dot1AD(vlan=vid) if n < len(vids) - 1 else Dot1Q(vlan=vid)
    return bytes(layer2 / ip_packet(net.client, net.inside, above or udp(40000, 80)))


def test_vlan(node: Node, net: Net) -> None:
    for vid in (10, 11, 4094):
        vlan_device(node, vid)
    check(
        node,
        [tagged(net, 10)],
        [tagged(net, 11, above=udp(1, 2)), through(net, udp(3, 4))],
        firewall(rule(vlan=10)),
    )
    met: list[Frame] = [tagged(net, 4094), tagged(net, 11, above=udp(1, 2))]
    check(node, met, [tagged(net, 10, above=udp(3, 4))], firewall(rule(vlan=[11, 4094])))


def test_vlan_0_is_no_tag(node: Node, net: Net) -> None:
    vlan_device(node, 10)
    met: list[Frame] = [through(net), tagged(net, 0, above=udp(1, 2))]
    check(node, met, [tagged(net, 10, above=udp(3, 4))], firewall(rule(vlan=0)))


@ONLY_XDP
def test_vlan_is_the_outer_tag(node: Node, net: Net) -> None:
    vlan_device(node, 10, 20)
    check(node, [tagged(net, 10, 20)], [], firewall(rule(vlan=10)))
    check(node, [], [tagged(net, 10, 20)], firewall(rule(vlan=20)))


def test_interface_in(node: Node, net: Net) -> None:
    met, missed = through(net), from_to(net.inside, net.server, device=BACK)
    check(node, [met, to_node(net)], [missed], firewall(rule(interface_in=FRONT)))
    check(node, [met, missed], [], firewall(rule(interface_in=[FRONT, BACK])))


def test_interface_in_is_that_of_the_vlan(node: Node, net: Net) -> None:
    vlan_device(node, 10)
    check(node, [tagged(net, 10)], [through(net, udp(1, 2))], firewall(rule(interface_in=SPARE)))


def test_interface_out(node: Node, net: Net) -> None:
    narrow = from_to(net.client, net.narrow_endpoint)
    check(node, [through(net)], [narrow, to_node(net)], firewall(rule(interface_out=BACK)))
    check(node, [through(net), narrow], [to_node(net)], firewall(rule(interface_out=[BACK, NARROW])))


@pytest.mark.parametrize(
    ("direction", "met", "missed"),
    [("any", 2, 0), ("through", 1, 1), ("local", 1, 1)],
)
def test_direction(node: Node, net: Net, direction: str, met: int, missed: int) -> None:
    frames: list[Frame] = [through(net), to_node(net)]
    if direction == "local":
        frames.reverse()
    check(node, frames[:met], frames[met : met + missed], firewall(rule(direction=direction)))


# ---- all at once ----


def exact(net: Net, **changed: Any) -> Frame:
    """What the rule below asks for, but for what is changed."""
    fields: dict[str, Any] = {
        "src": net.client,
        "dst": net.inside,
        "sport": 40000,
        "dport": 443,
        "flags": "S",
        "dscp": 46,
    }
    fields |= changed
    tos = int(fields["dscp"]) << 2
    above = tcp(fields["sport"], fields["dport"], fields["flags"])
    marks = {"tos": tos} if net.family == 4 else {"tc": tos}
    device = changed.get("device", FRONT)
    return frame(device, fields["src"], fields["dst"], above, **marks), device


@pytest.mark.parametrize(
    "changed",
    [
        {"src": 51},
        {"dst": 51},
        {"sport": 39999},
        {"dport": 444},
        {"flags": "SA"},
        {"dscp": 0},
        {"device": SPARE},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_rule_that_asks_for_everything(node: Node, net: Net, changed: dict[str, Any]) -> None:
    asked = rule(
        protocol="tcp",
        source="@clients",
        destination=[net.inside, net.other_family.inside],
        source_ports="40000-65535",
        destination_ports=["@web", 8443],
        tcp_flags="syn/syn,ack",
        dscp="ef",
        vlan=0,
        interface_in=FRONT,
        interface_out=BACK,
        direction="through",
    )
    others = [
        rule(f"other-{n}", "drop", protocol="udp", destination_ports=n, source=net.host(FRONT, n))
        for n in range(1, 40)
    ]
    changed = {
        key: net.host(FRONT if key == "src" else BACK, value) if key in ("src", "dst") else value
        for key, value in changed.items()
    }
    sets = {"clients": [net.client, net.far_client(1)], "web": [80, 443]}
    check(node, [exact(net)], [exact(net, **changed)], firewall(*others, asked, sets=sets))


def test_rule_for_each_host_is_found_among_many(node: Node, net: Net) -> None:
    hosts = range(60)
    rules = [
        rule(f"host-{n}", "accept" if n % 2 else "drop", source=net.far_client(n), protocol="udp")
        for n in hosts
    ]
    node.apply(firewall=firewall(*rules, default="reject"))
    for n in hosts:
        above = udp(40000, 80)
        reason = node.send(frame(FRONT, net.far_client(n), net.inside, above)).reason
        assert reason == ("forward_new" if n % 2 else "drop_firewall")
        assert judged(node, f"host-{n}").packets == 1
    assert node.send(frame(FRONT, net.far_client(61), net.inside, udp(1, 2))).reason == "answer_rejected"


@IPV4
def test_families_have_rules_of_their_own(node: Node, net: Net) -> None:
    six = net.other_family
    node.apply(
        firewall=firewall(
            rule("four", source=net.client, protocol="tcp"), rule("six", source=six.client, protocol="udp")
        )
    )
    assert Conversation(node, net, to=net.inside).first().reason == "forward_new"
    assert Conversation(node, six, to=six.inside).first().reason == "drop_firewall"
    assert Conversation(node, six, proto="udp", to=six.inside).first().reason == "forward_new"
    assert Conversation(node, net, proto="udp", to=net.inside).first().reason == "drop_firewall"


@IPV6
def test_addresses_that_differ_in_one_half_only(node: Node, net: Net) -> None:
    """IPv6 addresses are looked up in two words."""
    upper, lower = "2001:db8:1234::77", "2001:db8:1235::77"
    check(
        node,
        [from_to(upper, net.inside)],
        [from_to(lower, net.inside), from_to("2001:db8:1234::78", net.inside)],
        firewall(rule(source=[upper, "2001:db8:1234:1::/64", "2001:db8:1235::78"])),
    )
