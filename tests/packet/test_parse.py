# SPDX-License-Identifier: Apache-2.0
"""What is not the data path's business goes to Linux as it came. The harness compares every byte of it."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6MLReport,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, GRE, Ether
from scapy.packet import Packet, Raw

from tests.packet.addresses import FRONT, SPARE, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import SENDER, echo, ether, frame, ip_packet, tcp, udp
from tests.packet.marks import IPV4, IPV6, PROTOCOLS
from tests.packet.node import Node

OTHER_MAC = "02:00:00:00:99:99"
BROADCAST = "ff:ff:ff:ff:ff:ff"


@pytest.fixture
def busy(node: Node, net: Net) -> Node:
    """A node that would take whatever it may: services of both protocols, masquerade of every source."""
    node.apply(
        [service(net), service(net, protocol="udp")],
        nat=[masquerade(net, source=net.any), masquerade(net, source=net.any, interface="back")],
    )
    return node


def arriving(packet: Packet, *, dst: str = device_mac(FRONT), **fields: Any) -> bytes:
    return bytes(Ether(src=neighbour_mac(FRONT, SENDER), dst=dst, **fields) / packet)


# ---- not IP ----


@IPV4
@pytest.mark.parametrize("dst", [BROADCAST, device_mac(FRONT)], ids=["request", "reply"])
def test_arp_goes_to_linux(busy: Node, net: Net, dst: str) -> None:
    out = busy.send(arriving(ARP(psrc=net.client, pdst=net.node(FRONT), hwsrc=OTHER_MAC, hwdst=dst), dst=dst))
    assert out.reason == "punt_not_ip"


@IPV4
@pytest.mark.usefixtures("net")
def test_lldp_goes_to_linux(busy: Node) -> None:
    chassis = bytes.fromhex("0207040200000010fe")
    out = busy.send(arriving(Raw(chassis + bytes(40)), dst="01:80:c2:00:00:0e", type=0x88CC))
    assert out.reason == "punt_not_ip"


@pytest.mark.parametrize("kind", [0x0842, 0x8847, 0x8863, 0x0026], ids=["wol", "mpls", "pppoe", "802.3"])
def test_other_ethernet_types_go_to_linux(busy: Node, kind: int) -> None:
    assert busy.send(arriving(Raw(bytes(60)), type=kind)).reason == "punt_not_ip"


# ---- not for this machine, or for many ----


@PROTOCOLS
def test_frame_for_another_host_goes_to_linux(busy: Node, net: Net, proto: str) -> None:
    """A bridge or a promiscuous device shows such frames."""
    sent = Conversation(busy, net, proto=proto).client_frame("S")
    assert busy.send(bytes.fromhex(OTHER_MAC.replace(":", "")) + sent[6:]).reason == "punt_other_host"


def test_frame_on_a_device_whose_address_is_not_known_is_taken(node: Node, net: Net) -> None:
    """XDP: without a row in port_v1 the frame may be ours. TC asks the kernel."""
    node.apply([service(net)])
    node.write("port_v1", node.world.ifindex[FRONT], {"ifindex": node.world.ifindex[FRONT] + 4096})
    assert Conversation(node, net).first().reason == "forward_new"


@pytest.mark.parametrize("mac", [BROADCAST, "01:00:5e:00:00:05", "33:33:00:00:00:05"])
def test_broadcast_and_multicast_frames_go_to_linux(busy: Node, net: Net, mac: str) -> None:
    sent = Conversation(busy, net).client_frame("S", ack=0)
    assert busy.send(bytes.fromhex(mac.replace(":", "")) + sent[6:]).reason == "punt_multicast"


@IPV4
@pytest.mark.parametrize("dst", ["224.0.0.5", "239.1.2.3", "255.255.255.255", "127.0.0.1", "240.0.0.1"])
def test_special_ipv4_destinations_go_to_linux(busy: Node, net: Net, dst: str) -> None:
    assert busy.send(frame(FRONT, net.client, dst, udp(1000, 80))).reason == "punt_multicast"


@IPV6
@pytest.mark.parametrize("dst", ["ff02::5", "ff0e::1", "fe80::1"])
def test_special_ipv6_destinations_go_to_linux(busy: Node, net: Net, dst: str) -> None:
    assert busy.send(frame(FRONT, net.client, dst, udp(1000, 80))).reason == "punt_multicast"


@IPV6
def test_neighbour_discovery_goes_to_linux(busy: Node, net: Net) -> None:
    asked = ICMPv6ND_NS(tgt=net.node(FRONT))
    assert busy.send(frame(FRONT, net.client, "ff02::1:ff00:1", asked, ttl=255)).reason == "punt_multicast"
    assert busy.send(frame(FRONT, net.client, net.node(FRONT), asked, ttl=255)).reason == "punt_icmp"
    told = ICMPv6ND_NA(tgt=net.client)
    assert busy.send(frame(FRONT, net.client, net.node(FRONT), told, ttl=255)).reason == "punt_icmp"


@IPV6
def test_multicast_listener_report_goes_to_linux(busy: Node, net: Net) -> None:
    report = IPv6ExtHdrHopByHop() / ICMPv6MLReport(mladdr="ff02::1234")
    assert busy.send(frame(FRONT, net.client, "ff02::1234", report, ttl=1)).verdict == "punt"


def test_packet_to_the_machine_itself_goes_to_linux(busy: Node, net: Net) -> None:
    assert busy.send(frame(FRONT, net.client, net.node(FRONT), tcp(4000, 22, "S"))).reason == "punt_local"
    assert busy.send(frame(FRONT, net.client, net.node(SPARE), udp(4000, 53))).reason == "punt_local"
    assert busy.send(frame(FRONT, net.client, net.node(FRONT), echo(net.family, 1))).reason == "punt_local"


@IPV4
def test_directed_broadcast_goes_to_linux(busy: Node, net: Net) -> None:
    assert busy.send(frame(FRONT, net.client, net.host(FRONT, 255), udp(4000, 53))).reason == "punt_local"


def test_untranslated_traffic_goes_to_linux(node: Node, net: Net) -> None:
    for above in (tcp(4000, 22, "S"), tcp(4000, 22, "A"), udp(4000, 53), echo(net.family, 3)):
        for ttl in (64, 1):
            out = node.send(frame(FRONT, net.client, net.endpoint, above, ttl=ttl))
            assert out.reason == "punt_not_ours"
    assert node.flows.entries() == 0


def test_untranslated_traffic_without_a_route_goes_to_linux(node: Node, net: Net) -> None:
    """Linux answers that there is none. Where nothing is configured, routes are not asked at all."""
    node.apply([service(net)])
    nowhere = "192.0.2.99" if net.family == 4 else "2001:db8:dead::9"
    with node.world.route("add", "unreachable", nowhere):
        assert node.send(frame(FRONT, net.client, nowhere, udp(4000, 53))).reason == "punt_local"


# ---- options, extension headers, other protocols ----


@IPV4
@pytest.mark.parametrize(
    "options",
    [[IPOption_RR(routers=["0.0.0.0"] * 4)], [IPOption_Timestamp(flg=0, timestamp=0)], [Raw(b"\x01" * 4)]],
)
def test_ipv4_options_go_to_linux(busy: Node, net: Net, options: list[Packet]) -> None:
    talk = Conversation(busy, net).open()
    packet = IP(src=talk.arrives.src, dst=talk.arrives.dst, options=options) / tcp(40000, 80)
    assert busy.send(bytes(ether(FRONT) / packet)).reason == "punt_ip_options"


@IPV6
@pytest.mark.parametrize("header", [IPv6ExtHdrHopByHop(), IPv6ExtHdrRouting(addresses=["2001:db8::1"])])
def test_headers_for_routers_go_to_linux(busy: Node, net: Net, header: Packet) -> None:
    assert (
        busy.send(frame(FRONT, net.client, net.vip, header / tcp(40000, 80, "S"))).reason == "punt_ip_options"
    )


@IPV6
@pytest.mark.parametrize("count", [1, 2, 5])
def test_destination_options_are_passed_over(busy: Node, net: Net, count: int) -> None:
    above: Packet = udp(40000, 80)
    for n in range(count):
        above = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4 + 8 * n))]) / above
    out = busy.send(frame(FRONT, net.client, net.vip, above))
    assert (out.reason, out.packet[UDP].dport) == ("forward_new", 8080)


@IPV6
def test_too_many_extension_headers_are_dropped(busy: Node, net: Net) -> None:
    above: Packet = udp(40000, 80)
    for _ in range(7):
        above = IPv6ExtHdrDestOpt() / above
    assert busy.send(frame(FRONT, net.client, net.vip, above)).reason == "drop_extension_header"


@IPV6
def test_packet_without_anything_above_goes_to_linux(busy: Node, net: Net) -> None:
    packet = IPv6(src=net.client, dst=net.vip, nh=59)
    assert busy.send(bytes(ether(FRONT) / packet)).reason == "punt_protocol"


def test_protocols_that_clearway_does_not_speak_go_to_linux(busy: Node, net: Net) -> None:
    inner = IP(src="10.1.1.1", dst="10.1.1.2") / udp(1, 2)
    for above in (
        GRE() / inner,
        ESP(spi=1, seq=1, data=bytes(32)),
        AH(spi=1, seq=1, icv=bytes(12)) / udp(1, 80),
    ):
        assert busy.send(frame(FRONT, net.client, net.vip, above)).reason == "punt_protocol"
    for number in (2, 4, 41, 89, 112, 132, 136, 253, 255):
        field = {"proto": number} if net.family == 4 else {"nh": number}
        sent = frame(FRONT, net.client, net.vip, Raw(bytes(40)), **field)
        assert busy.send(sent).reason == "punt_protocol"


@IPV4
def test_icmpv6_over_ipv4_goes_to_linux(busy: Node, net: Net) -> None:
    assert (
        busy.send(frame(FRONT, net.client, net.vip, Raw(b"\x80" + bytes(40)), proto=58)).reason
        == "punt_protocol"
    )


@IPV6
def test_icmp_over_ipv6_goes_to_linux(busy: Node, net: Net) -> None:
    assert (
        busy.send(frame(FRONT, net.client, net.vip, Raw(b"\x08" + bytes(40)), nh=1)).reason == "punt_protocol"
    )


@IPV4
@pytest.mark.parametrize("kind", [4, 5, 9, 10, 13, 14, 17, 42])
def test_other_icmp_goes_to_linux(busy: Node, net: Net, kind: int) -> None:
    assert (
        busy.send(frame(FRONT, net.client, net.server, ICMP(type=kind) / Raw(bytes(60)))).reason
        == "punt_icmp"
    )


@IPV6
@pytest.mark.parametrize("kind", [0, 5, 100, 127, 130, 133, 137, 143, 200, 255])
def test_other_icmpv6_goes_to_linux(busy: Node, net: Net, kind: int) -> None:
    sent = frame(FRONT, net.client, net.server, Raw(bytes([kind]) + bytes(60)), nh=58)
    assert busy.send(sent).reason == "punt_icmp"


def test_bytes_behind_the_packet_go_no_further(busy: Node, net: Net) -> None:
    """Ethernet pads to 60 bytes, with what may be left of another packet."""
    talk = Conversation(busy, net)
    for flags, reason in (("S", "forward_new"), ("A", "forward_state"), ("A", "forward_flow")):
        sent = talk.client_frame(flags, ack=flags == "A")
        out = busy.send(sent + b"\xaa" * 6)
        assert (out.reason, len(out.frame)) == (reason, len(sent))
        assert out.packet.haslayer(TCP)
        if flags == "S":
            talk.server("SA")


def test_tos_and_flow_label_are_kept(busy: Node, net: Net) -> None:
    fields = {"tos": 0xB9} if net.family == 4 else {"tc": 0xB9, "fl": 0xABCDE}
    out = busy.send(bytes(ether(FRONT) / ip_packet(net.client, net.vip, udp(40000, 80), **fields)))
    layer = out.packet[IP] if net.family == 4 else out.packet[IPv6]
    assert {name: getattr(layer, name) for name in fields} == fields
