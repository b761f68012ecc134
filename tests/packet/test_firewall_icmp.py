# SPDX-License-Identifier: Apache-2.0
"""ICMP and the firewall: echoes are connections, errors belong to the connection that they are about, and
without neighbour discovery there is no IPv6.
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IPOption_Router_Alert, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6MLDone,
    ICMPv6MLQuery,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw

from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.conversation import Conversation, service
from tests.packet.firewall import DEFAULT, answered, firewall, judged, rule, through, to_node
from tests.packet.flowtable import Tuple
from tests.packet.frames import (
    echo,
    ether,
    frame,
    hop_limit,
    icmp_error,
    ip_packet,
    l3,
    network,
    tcp,
    udp,
)
from tests.packet.marks import IPV4, IPV6, PROTOCOLS
from tests.packet.node import Node
from tests.packet.test_fragments import fragments, whole_packet

ANY_ICMP: dict[str, Any] = {"protocol": ["icmp", "icmpv6"]}
KINDS = pytest.mark.parametrize("kind", ["unreachable", "too-big", "time-exceeded", "parameter-problem"])
PING = rule("ping", icmp_types="echo-request", **ANY_ICMP)


# ---- echoes ----


def test_accepted_echo_is_a_connection(node: Node, net: Net) -> None:
    node.apply(firewall=firewall({**PING, "interface_in": FRONT}))
    out = node.send(through(net, echo(net.family, 77)))
    assert (out.reason, hop_limit(out.packet)) == ("forward_new", 63)
    key = Tuple("icmp", net.client, 77, net.inside, 0)
    assert node.flows.flags(key) == set()
    assert answered(node, net, echo(net.family, 77, reply=True)).verdict == "forward"
    assert node.send(through(net, echo(net.family, 77, sequence=2))).reason == "forward_flow"
    assert answered(node, net, echo(net.family, 77, reply=True, sequence=2)).reason == "forward_flow"
    assert judged(node, "ping").packets == 1
    assert judged(node, DEFAULT).packets == 0


def test_echo_reply_that_nobody_asked_for_is_judged(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(PING))
    assert node.send(through(net, echo(net.family, 77, reply=True))).reason == "drop_firewall"
    node.send(through(net, echo(net.family, 77)))
    assert answered(node, net, echo(net.family, 78, reply=True)).reason == "drop_firewall"


def test_accepted_echo_reply_that_nobody_asked_for_opens_nothing(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(**ANY_ICMP)))
    assert node.send(through(net, echo(net.family, 77, reply=True))).reason == "punt_not_ours"
    assert node.send(to_node(net, echo(net.family, 77, reply=True))).reason == "punt_local"
    assert node.flows.entries() == 0


def test_echo_to_the_node_is_a_connection_of_linux(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(PING))
    for sequence in range(3):
        out = node.send(to_node(net, echo(net.family, 77, sequence=sequence)))
        assert out.reason == "punt_local"
    assert "linux" in node.flows.flags(Tuple("icmp", net.client, 77, net.node(FRONT), 0))
    assert judged(node, "ping").packets == 1


# ---- errors ----


def error(kind: str, device: str, src: str, dst: str, about: bytes, **fields: Any) -> bytes:
    return frame(device, src, dst, icmp_error(kind, l3(about)), **fields)


@KINDS
@PROTOCOLS
def test_error_about_a_plain_connection_is_forwarded(node: Node, net: Net, kind: str, proto: str) -> None:
    node.apply(firewall=firewall(rule(protocol=proto)))
    talk = Conversation(node, net, proto=proto, to=net.inside).open()
    went = talk.client("A", payload=bytes(60))
    sent = error(kind, BACK, net.router(BACK), net.client, went.frame)
    out = node.send(sent, BACK)
    assert out.reason == "forward_icmp_error"
    assert (network(out.packet).src, network(out.packet).dst) == (net.router(BACK), net.client)
    assert hop_limit(out.packet) == 63
    header = 20 if net.family == 4 else 40
    assert l3(out.frame)[header:] == l3(sent)[header:]  # nothing in it was translated
    back = talk.server("A", payload=bytes(60))
    out = node.send(error(kind, FRONT, net.client, net.inside, back.frame))
    assert (out.reason, network(out.packet).dst) == ("forward_icmp_error", net.inside)
    assert judged(node, DEFAULT).packets == 0


@KINDS
def test_error_about_a_plain_echo_is_forwarded(node: Node, net: Net, kind: str) -> None:
    node.apply(firewall=firewall(PING))
    went = node.send(through(net, echo(net.family, 77)))
    out = node.send(error(kind, BACK, net.router(BACK), net.client, went.frame), BACK)
    assert (out.reason, network(out.packet).dst) == ("forward_icmp_error", net.client)


@KINDS
@PROTOCOLS
def test_error_about_a_connection_to_the_node_goes_to_linux(
    node: Node, net: Net, kind: str, proto: str
) -> None:
    node.apply(firewall=firewall(rule(protocol=proto)))
    talk = Conversation(node, net, proto=proto, to=net.node(FRONT))
    talk.first()
    about = talk.server_frame("A", payload=bytes(60))
    out = node.send(error(kind, FRONT, net.router(FRONT), net.node(FRONT), about))
    assert out.reason == "punt_icmp"
    assert judged(node, DEFAULT).packets == 0


@KINDS
@pytest.mark.parametrize("to", ["inside", "node"])
def test_error_about_nothing_known_is_judged(node: Node, net: Net, kind: str, to: str) -> None:
    dst = net.inside if to == "inside" else net.node(FRONT)
    about = frame(BACK, dst, net.client, udp(5, 6))
    sent = error(kind, FRONT, net.client, dst, about)
    node.apply(firewall=firewall(PING))
    assert node.send(sent).reason == "drop_firewall"
    names = {"unreachable": "destination-unreachable", "too-big": "destination-unreachable"}
    name = names.get(kind, kind)
    if kind == "too-big" and net.family == 6:
        name = "packet-too-big"
    node.apply(firewall=firewall(rule(icmp_types=name, **ANY_ICMP)))
    assert node.send(sent).reason == ("punt_not_ours" if to == "inside" else "punt_local")
    assert node.flows.entries() == 0


@KINDS
@pytest.mark.parametrize("of", ["node", "plain", "service"])
def test_error_to_somebody_else_is_judged(node: Node, net: Net, kind: str, of: str) -> None:
    """Who knows of a connection reaches nobody by quoting it (net/netfilter/nf_conntrack_proto_icmp.c)."""
    node.apply([service(net)], firewall=firewall(rule(protocol="tcp")))
    to = {"node": net.node(FRONT), "plain": net.inside, "service": net.vip}[of]
    talk = Conversation(node, net, to=to)
    talk.first()
    about = frame(FRONT, to, net.client, tcp(80, 40000, "A", payload=bytes(60)))
    other = net.host(BACK, 77)
    out = node.send(error(kind, FRONT, net.client, other, about))
    assert out.reason == "drop_firewall"
    assert judged(node, DEFAULT).packets == 1


@KINDS
@PROTOCOLS
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("to", ["inside", "node"])
def test_error_about_a_forbidden_connection_is_dropped(
    node: Node, net: Net, kind: str, proto: str, side: str, to: str
) -> None:
    node.apply(firewall=firewall(rule("old", protocol=proto)))
    talk = Conversation(node, net, proto=proto, to=net.inside if to == "inside" else net.node(FRONT))
    talk.first()
    host = net.inside if to == "inside" else net.node(FRONT)
    if side == "client" and to == "inside":
        made = error(kind, BACK, net.router(BACK), net.client, talk.client_frame("A", payload=bytes(60)))
        device = BACK
    else:
        made = error(kind, FRONT, net.router(FRONT), host, talk.server_frame("A", payload=bytes(60)))
        device = FRONT
    assert node.send(made, device).reason == ("forward_icmp_error" if to == "inside" else "punt_icmp")
    node.apply(firewall=firewall(rule("new", destination_ports=9, protocol=proto)))
    assert node.send(made, device).reason == "drop_firewall"
    assert node.flows.entries() == 2


def odd(net: Net, src: str, dst: str, what: str) -> Packet:
    """A packet that Linux carries."""
    if what == "options":
        if net.family == 4:
            return ip_packet(src, dst, udp(40000, 80), options=IPOption_RR(routers=["0.0.0.0"] * 2))
        return ip_packet(src, dst, IPv6ExtHdrDestOpt() / udp(40000, 80))
    if what == "routers' options":
        if net.family == 4:
            return ip_packet(src, dst, udp(40000, 80), options=IPOption_Router_Alert())
        return ip_packet(src, dst, IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / udp(40000, 80))
    return ip_packet(
        src, dst, {"esp": ESP(spi=5, seq=1, data=bytes(20)), "gre": GRE() / Raw(bytes(20))}[what]
    )


@KINDS
@pytest.mark.parametrize("what", ["esp", "gre", "options", "routers' options"])
@pytest.mark.parametrize("to", ["inside", "node"])
def test_error_about_what_is_odd_passes(node: Node, net: Net, kind: str, what: str, to: str) -> None:
    """Without it no tunnel would learn of a smaller MTU."""
    host = net.inside if to == "inside" else net.node(FRONT)
    node.apply(firewall=firewall(rule(source=net.client)))
    went = odd(net, net.client, host, what)
    node.send(bytes(ether(FRONT) / went))
    assert node.flows.entries() == 2
    if to == "inside":
        sent = frame(BACK, net.router(BACK), net.client, icmp_error(kind, bytes(went)))
        carried = what == "options" and net.family == 6  # by clearway
        out = node.send(sent, BACK)
        assert out.reason == ("forward_icmp_error" if carried else "punt_icmp")
        if carried:
            assert l3(out.frame)[40:] == l3(sent)[40:]
    back = odd(net, host, net.client, what) if what in ("esp", "gre") else None
    if back is not None:
        sent = frame(FRONT, net.router(FRONT), host, icmp_error(kind, bytes(back)))
        assert node.send(sent).reason == "punt_icmp"
    assert judged(node, DEFAULT).packets == 0


@pytest.mark.parametrize("cut", [0, 4, 7])
def test_error_that_quotes_too_little_of_what_is_odd_is_judged(node: Node, net: Net, cut: int) -> None:
    node.apply(firewall=firewall(rule(source=net.client)))
    went = bytes(odd(net, net.client, net.inside, "options"))
    node.send(bytes(ether(FRONT)) + went)
    header = 20 + 12 if net.family == 4 else 40 + 8
    sent = frame(BACK, net.router(BACK), net.client, icmp_error("unreachable", went[: header + cut]))
    assert node.send(sent, BACK).reason == "drop_firewall"


def test_error_whose_connection_has_ended_is_judged(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(protocol="udp")))
    talk = Conversation(node, net, proto="udp", to=net.inside).open()
    went = talk.client()
    node.flows.clear()
    sent = error("unreachable", BACK, net.inside, net.client, went.frame)
    assert node.send(sent, BACK).reason == "drop_firewall"


def test_error_that_quotes_too_little_is_judged(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(protocol="udp")))
    went = Conversation(node, net, proto="udp", to=net.inside).open().client()
    quote = l3(went.frame)[: (20 if net.family == 4 else 40) + 7]
    sent = frame(BACK, net.inside, net.client, icmp_error("unreachable", quote))
    assert node.send(sent, BACK).reason == "drop_firewall"


def test_error_about_a_service_is_forwarded(node: Node, net: Net) -> None:
    node.apply([service(net)], firewall=firewall(rule(protocol="tcp", interface_in=FRONT)))
    talk = Conversation(node, net).open()
    went = talk.client("A", payload=bytes(60))
    out = node.send(error("unreachable", BACK, net.endpoint, net.client, went.frame), BACK)
    assert (out.reason, network(out.packet).src) == ("forward_icmp_error", net.vip)


@IPV4
def test_message_with_options_is_no_echo_that_is_known(node: Node, net: Net) -> None:
    """An echo with identifier 0 has the same tuple as what has no identifier."""
    node.apply(firewall=firewall(PING))
    assert node.send(through(net, echo(4, 0))).reason == "forward_new"
    options = IPOption_RR(routers=["0.0.0.0"])
    for kind in (13, 17, 5):
        sent = through(net, ICMP(type=kind), options=options)
        assert node.send(sent).reason == "drop_firewall"


@IPV6
def test_message_with_extensions_is_no_echo_that_is_known(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(PING))
    assert node.send(through(net, echo(6, 0))).reason == "forward_new"
    about = l3(frame(BACK, net.inside, net.client, udp(5, 6)))
    sent = through(net, IPv6ExtHdrHopByHop() / icmp_error("unreachable", about))
    assert node.send(sent).reason == "drop_firewall"


# ---- what IPv6 cannot do without ----


def discovery(net: Net) -> dict[str, Packet]:
    return {
        "router-solicit": ICMPv6ND_RS(),
        "router-advert": ICMPv6ND_RA(),
        "neighbour-solicit": ICMPv6ND_NS(tgt=net.node(FRONT)),
        "neighbour-advert": ICMPv6ND_NA(tgt=net.client),
        "redirect": ICMPv6ND_Redirect(tgt=net.client, dst=net.client),
    }


DISCOVERY = pytest.mark.parametrize(
    "kind", ["router-solicit", "router-advert", "neighbour-solicit", "neighbour-advert", "redirect"]
)


@IPV6
@DISCOVERY
@pytest.mark.parametrize("default", ["drop", "reject"])
def test_neighbour_discovery_is_not_judged(node: Node, net: Net, kind: str, default: str) -> None:
    node.apply(firewall=firewall(rule("no", "drop"), default=default))
    for source in (net.client, "fe80::50", "::"):
        for to in ("ff02::1", net.node(FRONT), "fe80::ff:fe00:100"):
            out = node.send(frame(FRONT, source, to, discovery(net)[kind], ttl=255))
            assert out.verdict == "punt", (source, to)
    assert judged(node, "no").packets == 0
    assert node.flows.entries() == 0


@IPV6
@DISCOVERY
def test_message_that_looks_like_discovery_is_judged_on_its_way_through(
    node: Node, net: Net, kind: str
) -> None:
    """Neighbours are those on the link: nothing of them is to be forwarded (RFC 4861 hop limit 255)."""
    node.apply(firewall=firewall())
    for ttl in (64, 255):
        for above in (discovery(net)[kind], IPv6ExtHdrHopByHop() / discovery(net)[kind]):
            assert node.send(through(net, above, ttl=ttl)).reason == "drop_firewall"


@IPV6
def test_multicast_listeners_are_not_judged(node: Node, net: Net) -> None:
    node.apply(firewall=firewall())
    for message in (ICMPv6MLQuery(), ICMPv6MLReport(mladdr="ff02::7"), ICMPv6MLDone(), ICMPv6MLReport2()):
        for source in ("fe80::50", "::"):
            above = IPv6ExtHdrHopByHop() / message
            assert node.send(frame(FRONT, source, "ff02::16", above, ttl=1)).verdict == "punt"
    assert judged(node, DEFAULT).packets == 0


@IPV6
@pytest.mark.parametrize("kind", [100, 127, 138, 139, 141, 144, 151, 255])
def test_other_messages_are_judged(node: Node, net: Net, kind: int) -> None:
    node.apply(firewall=firewall())
    made = frame(FRONT, net.client, net.node(FRONT), ICMPv6ND_RS(type=kind), ttl=255)
    assert node.send(made).reason == "drop_firewall"


@IPV6
def test_discovery_in_fragments_is_judged(node: Node, net: Net) -> None:
    """RFC 6980: it is not to be believed."""
    node.apply(firewall=firewall())
    whole = whole_packet(net.client, net.node(FRONT), ICMPv6ND_NS(tgt=net.node(FRONT)) / bytes(100))
    for piece in fragments(FRONT, whole, ttl=255):
        assert node.send(piece).verdict == "drop"


@IPV6
def test_discovery_of_a_host_that_has_extension_headers(node: Node, net: Net) -> None:
    node.apply(firewall=firewall())
    asked = IPv6ExtHdrDestOpt() / ICMPv6ND_NS(tgt=net.node(FRONT))
    assert node.send(frame(FRONT, net.client, "ff02::1:ff00:1", asked, ttl=255)).verdict == "punt"


@IPV4
def test_icmpv6_over_ipv4_is_no_discovery(node: Node, net: Net) -> None:
    node.apply(firewall=firewall())
    made = through(net, ICMPv6ND_NS(tgt="fe80::1"), proto=58)
    assert node.send(made).reason == "drop_firewall"
