# SPDX-License-Identifier: Apache-2.0
"""What the parser leaves to Linux is judged as well: IP options, extension headers, other protocols,
multicast, link-local addresses, and frames that are odd. Without a firewall it is untouched.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import IPOption_Router_Alert, IPOption_RR
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.firewall import DEFAULT, answered, firewall, judged, rule, syn, through, to_node
from tests.packet.flowtable import Tuple
from tests.packet.frames import echo, ether, frame, ip_packet, tcp, udp
from tests.packet.marks import IPV4, IPV6, PROTOCOLS
from tests.packet.node import Node
from tests.packet.test_vlan import ONLY_XDP, vlan_device

BROADCAST = "ff:ff:ff:ff:ff:ff"


def with_options(net: Net, above: Packet, dst: str = "") -> bytes:
    """IPv4 options, or an IPv6 header for every hop."""
    dst = dst or net.inside
    if net.family == 4:
        return frame(FRONT, net.client, dst, above, options=IPOption_RR(routers=["0.0.0.0"] * 2))
    return frame(FRONT, net.client, dst, IPv6ExtHdrHopByHop() / above)


STRAYS: dict[str, tuple[Callable[[Net], bytes], str]] = {
    "options": (lambda net: with_options(net, syn()), "punt_ip_options"),
    "options to the node": (lambda net: with_options(net, syn(), net.node(FRONT)), "punt_ip_options"),
    "options to a service": (lambda net: with_options(net, syn(), net.vip), "punt_ip_options"),
    "gre": (lambda net: through(net, GRE() / Raw(bytes(20))), "punt_protocol"),
    "gre to the node": (lambda net: to_node(net, GRE() / Raw(bytes(20))), "punt_protocol"),
    "esp": (lambda net: through(net, ESP(spi=5, seq=1, data=bytes(20))), "punt_protocol"),
    "ah": (lambda net: through(net, AH(spi=5, seq=1, icv=bytes(12)) / syn()), "punt_protocol"),
    "multicast": (
        lambda net: frame(FRONT, net.client, "224.0.0.251" if net.family == 4 else "ff02::fb", udp(1, 5353)),
        "punt_multicast",
    ),
    "broadcast frame": (
        lambda net: bytes.fromhex("ffffffffffff") + to_node(net, udp(1, 2))[6:],
        "punt_multicast",
    ),
    "from nobody": (
        lambda net: frame(FRONT, "0.0.0.0" if net.family == 4 else "fe80::50", net.node(FRONT), udp(68, 67)),
        "punt_multicast",
    ),
}


@pytest.fixture(params=STRAYS)
def stray(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_stray_is_dropped_by_default(node: Node, net: Net, stray: str) -> None:
    made, _ = STRAYS[stray]
    node.apply([service(net)], nat=[masquerade(net)], firewall=firewall(rule(protocol="sctp")))
    assert node.send(made(net)).reason == "drop_firewall"
    assert node.flows.entries() == 0
    assert judged(node, DEFAULT).packets == 1


def test_stray_is_untouched_without_a_firewall(node: Node, net: Net, stray: str) -> None:
    made, reason = STRAYS[stray]
    node.apply([service(net)], nat=[masquerade(net)])
    assert node.send(made(net)).reason == reason
    assert node.flows.entries() == 0


def test_accepted_stray_goes_to_linux(node: Node, net: Net, stray: str) -> None:
    made, reason = STRAYS[stray]
    node.apply([service(net)], firewall=firewall(rule()))
    assert node.send(made(net)).reason == reason
    to_many = stray in ("multicast", "broadcast frame", "from nobody")
    assert node.flows.entries() == (0 if to_many else 2)
    assert judged(node).packets == 1
    assert node.send(made(net)).reason == reason
    assert judged(node).packets == (2 if to_many else 1)


# ---- options and extension headers ----


@PROTOCOLS
@pytest.mark.parametrize("to", ["inside", "node", "vip"])
def test_options_do_not_get_around_a_rule_about_ports(node: Node, net: Net, proto: str, to: str) -> None:
    dst = {"inside": net.inside, "node": net.node(FRONT), "vip": net.vip}[to]
    no = rule("no", "drop", protocol=proto, destination_ports=22, destination=dst, source_ports=40000)
    node.apply([service(net)], firewall=firewall(no, default="accept"))

    def above(port: int) -> Packet:
        return syn(port) if proto == "tcp" else udp(40000, port)

    assert node.send(with_options(net, above(22), dst)).reason == "drop_firewall"
    assert node.send(with_options(net, above(23), dst)).reason == "punt_ip_options"
    assert judged(node, "no").packets == 1


@IPV6
@pytest.mark.parametrize(
    "headers",
    [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrRouting(addresses=[], segleft=0),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=["fd00::1"], segleft=0),
        IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
    ],
    ids=["hop-by-hop", "destination", "routing", "three", "four"],
)
def test_extension_headers_do_not_get_around_a_rule_about_ports(
    node: Node, net: Net, headers: Packet
) -> None:
    no = rule("no", "drop", protocol="tcp", destination_ports=22)
    node.apply(firewall=firewall(no, default="accept"))
    assert node.send(to_node(net, headers.copy() / syn(22))).reason == "drop_firewall"
    assert node.send(to_node(net, headers.copy() / syn(23))).verdict == "punt"


@IPV6
def test_too_many_extension_headers_get_around_nothing(node: Node, net: Net) -> None:
    above: Packet = IPv6ExtHdrHopByHop()
    for _ in range(7):
        above /= IPv6ExtHdrDestOpt()
    node.apply(firewall=firewall(default="accept"))
    assert node.send(to_node(net, above / syn(22))).reason == "drop_extension_header"


@IPV4
@pytest.mark.parametrize("size", [1, 5, 9])
def test_options_of_any_length(node: Node, net: Net, size: int) -> None:
    node.apply(firewall=firewall(rule(protocol="udp", destination_ports=53)))
    options = IPOption_RR(routers=["0.0.0.0"] * size)
    assert node.send(to_node(net, udp(7, 53), options=options)).reason == "punt_ip_options"
    assert node.send(to_node(net, udp(7, 54), options=options)).reason == "drop_firewall"


def test_reply_to_a_packet_with_options_passes(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(interface_in=FRONT)))
    assert node.send(with_options(net, syn())).reason == "punt_ip_options"
    assert node.flows.flags(Tuple("tcp", net.client, 40000, net.inside, 80)) == {"linux"}
    assert answered(node, net, tcp(80, 40000, "SA")).reason == "punt_local"
    assert judged(node, DEFAULT).packets == 0


def test_packet_with_options_of_a_known_connection_goes_on(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(tcp_flags="syn", protocol="tcp")))
    Conversation(node, net, to=net.inside).open()
    assert node.send(with_options(net, tcp(40000, 80, "A"))).reason == "punt_ip_options"
    assert judged(node).packets == 1


def test_packet_with_options_of_a_connection_that_is_forbidden_now(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule()))
    Conversation(node, net, to=net.inside).open()
    node.apply(firewall=firewall())
    for _ in range(2):
        assert node.send(with_options(net, tcp(40000, 80, "A"))).reason == "drop_firewall"


# ---- other protocols ----


def test_reply_of_another_protocol_passes(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(protocol="gre", interface_in=FRONT)))
    assert answered(node, net, GRE() / Raw(bytes(20))).reason == "drop_firewall"
    assert node.send(through(net, GRE() / Raw(bytes(20)))).reason == "punt_protocol"
    for _ in range(2):
        assert answered(node, net, GRE() / Raw(bytes(20))).reason == "punt_protocol"
    assert judged(node, DEFAULT).packets == 1


def test_other_protocols_that_new_rules_forbid_end(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(protocol=["gre", "esp"])))
    assert node.send(through(net, GRE() / Raw(bytes(20)))).verdict == "punt"
    node.apply(firewall=firewall(rule(protocol="esp")))
    assert node.send(through(net, GRE() / Raw(bytes(20)))).reason == "drop_firewall"


def test_other_protocols_that_new_rules_forbid_end_with_a_reply(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(protocol=["gre", "esp"])))
    assert node.send(through(net, GRE() / Raw(bytes(20)))).verdict == "punt"
    node.apply(firewall=firewall(rule(protocol="esp")))
    assert answered(node, net, GRE() / Raw(bytes(20))).reason == "drop_firewall"


@pytest.mark.parametrize("size", [0, 1, 3, 7])
def test_other_protocols_may_be_short(node: Node, net: Net, size: int) -> None:
    node.apply(firewall=firewall(rule(protocol=253)))
    proto = {"proto": 253} if net.family == 4 else {"nh": 253}
    assert node.send(to_node(net, Raw(bytes(size)), **proto)).reason == "punt_protocol"
    node.apply(firewall=firewall(default="reject"))
    assert node.send(to_node(net, Raw(bytes(size)), **proto)).verdict == "drop"


# ---- multicast, link-local addresses ----


def test_multicast_meets_rules_about_its_group_and_port(node: Node, net: Net) -> None:
    group = "224.0.0.251" if net.family == 4 else "ff02::fb"
    ruled = rule(
        destination=group, protocol="udp", destination_ports=5353, direction="local", interface_in=FRONT
    )
    node.apply(firewall=firewall(ruled))
    assert node.send(frame(FRONT, net.client, group, udp(5353, 5353))).reason == "punt_multicast"
    assert node.send(frame(FRONT, net.client, group, udp(5353, 5354))).reason == "drop_firewall"
    assert node.send(frame(BACK, net.inside, group, udp(5353, 5353)), BACK).reason == "drop_firewall"


@IPV4
def test_group_membership_of_ipv4_is_judged(node: Node, net: Net) -> None:
    sent = frame(
        FRONT, net.client, "224.0.0.22", Raw(bytes(16)), ttl=1, proto=2, options=IPOption_Router_Alert()
    )
    node.apply(firewall=firewall())
    assert node.send(sent).reason == "drop_firewall"
    node.apply(firewall=firewall(rule(protocol="igmp")))
    assert node.send(sent).verdict == "punt"


@IPV6
@PROTOCOLS
def test_link_local_destination_is_judged(node: Node, net: Net, proto: str) -> None:
    node.apply(firewall=firewall(rule(protocol=proto, destination="fe80::/10", destination_ports=80)))
    for port, reason in ((80, "punt_multicast"), (81, "drop_firewall")):
        above = syn(port) if proto == "tcp" else udp(40000, port)
        for source in ("fe80::50", net.client):
            assert node.send(frame(FRONT, source, "fe80::ff:fe00:100", above)).reason == reason


@IPV4
def test_loopback_destination_is_judged(node: Node, net: Net) -> None:
    node.apply(firewall=firewall())
    assert node.send(frame(FRONT, net.client, "127.0.0.1", udp(1, 2))).reason == "drop_firewall"


# ---- frames ----


@IPV4
def test_what_is_not_ip_is_not_judged(node: Node, net: Net) -> None:
    node.apply(firewall=firewall())
    for mac in (BROADCAST, "02:00:00:00:01:00"):
        asked = ARP(psrc=net.client, pdst=net.node(FRONT))
        assert node.send(bytes(Ether(src="02:00:00:00:10:fe", dst=mac) / asked)).reason == "punt_not_ip"


@ONLY_XDP
@pytest.mark.parametrize("vids", [(10,), (10, 20), (0,)])
@pytest.mark.parametrize("mac", [BROADCAST, "01:00:5e:00:00:05", "33:33:00:00:00:05"])
def test_tagged_multicast_frame_is_judged(node: Node, net: Net, vids: tuple[int, ...], mac: str) -> None:
    """Linux gives a datagram to its socket that came in such a frame."""
    vlan_device(node, 10, 20 if len(vids) == 2 else 0)
    node.apply(firewall=firewall())
    sent = tagged(net, *vids)
    assert node.send(bytes.fromhex(mac.replace(":", "")) + sent[6:]).reason == "drop_firewall"


@ONLY_XDP
@pytest.mark.parametrize("vids", [(0, 0, 0), (0, 0, 10), (10, 0, 0), (10, 20, 30), (0, 0, 0, 0, 0)])
def test_tags_do_not_get_around_the_firewall(node: Node, net: Net, vids: tuple[int, ...]) -> None:
    """Linux takes off as many priority tags as there are (net/core/dev.c, check_vlan_id)."""
    vlan_device(node, 10)
    vlan_device(node, 10, 20)
    node.apply(firewall=firewall())
    assert node.send(tagged(net, *vids)).reason == "drop_firewall"
    node.apply()
    assert node.send(tagged(net, *vids)).verdict == "punt"


@ONLY_XDP
def test_frame_of_an_unknown_vlan_is_not_judged(node: Node, net: Net) -> None:
    vlan_device(node, 10)
    node.apply(firewall=firewall())
    for vids in ((11,), (10, 21)):
        assert node.send(tagged(net, *vids)).reason == "punt_vlan_unknown"
        multicast = bytes.fromhex("ffffffffffff") + tagged(net, *vids)[6:]
        assert node.send(multicast).reason == "punt_vlan_unknown"


def tagged(net: Net, *vids: int) -> bytes:
    layer2 = ether(FRONT)
    for n, vid in enumerate(vids):
        layer2 /= Dot1AD(vlan=vid) if n < len(vids) - 1 else Dot1Q(vlan=vid)
    return bytes(layer2 / ip_packet(net.client, net.node(FRONT), udp(40000, 53)))


def test_echo_is_no_stray(node: Node, net: Net) -> None:
    node.apply(firewall=firewall(rule(protocol=["icmp", "icmpv6"])))
    assert node.send(with_options(net, echo(net.family, 3))).reason == "punt_ip_options"
    assert node.send(through(net, echo(net.family, 4))).reason == "forward_new"


@pytest.mark.parametrize(
    ("policy", "flags"), [("drop", "A"), ("reset", "A"), ("pick-up", "A"), ("drop", "RA")]
)
@pytest.mark.parametrize("to", ["inside", "node"])
def test_options_do_not_get_around_a_policy_about_midstream(
    node: Node, net: Net, policy: str, flags: str, to: str
) -> None:
    """What is for the node itself is Linux' to answer."""
    node.apply(firewall=firewall(rule(protocol="tcp")), midstream=policy)
    host = net.inside if to == "inside" else net.node(FRONT)
    out = node.send(with_options(net, tcp(40000, 80, flags), host))
    dropped = to == "inside" and policy != "pick-up"
    assert out.reason == ("drop_midstream" if dropped else "punt_ip_options")
    assert judged(node).packets == 1
