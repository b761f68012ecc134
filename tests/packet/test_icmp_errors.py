# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about translated connections: translated back, both ways, the quoted packet too, so that their
receiver knows what they speak of (RFC 5508, RFC 4443).

The harness recomputes the outer checksums and the quoted ones of every frame that leaves.
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet

from tests.packet.addresses import BACK, FRONT, SPARE, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import echo, frame, hop_limit, icmp_error, identifier, l3, network, udp
from tests.packet.marks import IPV4, IPV6, PROTOCOLS
from tests.packet.node import Node, Outcome

KINDS = pytest.mark.parametrize("kind", ["unreachable", "too-big", "time-exceeded", "parameter-problem"])
MODES = pytest.mark.parametrize("mode", ["nat", "full-nat"])


def quoted(out: Outcome) -> Packet:
    """The quoted packet, taken apart."""
    layer = network(out.packet)
    data = bytes(layer)[(40 if isinstance(layer, IPv6) else 20) + 8 :]
    return IPv6(data) if data[0] >> 4 == 6 else IP(data)


def ends(packet: Packet) -> tuple[str, int, str, int]:
    above = packet[TCP] if packet.haslayer(TCP) else packet[UDP]
    return str(packet.src), int(above.sport), str(packet.dst), int(above.dport)


def error(kind: str, device: str, src: str, to: str, about: bytes, **fields: Any) -> bytes:
    """A frame with an ICMP error of that kind about the packet in frame `about`."""
    return frame(device, src, to, icmp_error(kind, l3(about)), **fields)


def talking(node: Node, net: Net, proto: str, mode: str = "nat") -> Conversation:
    node.apply([service(net, protocol=proto, mode=mode)])
    return Conversation(node, net, proto=proto).open()


@KINDS
@PROTOCOLS
@MODES
def test_error_of_an_endpoint_reaches_the_client(
    node: Node, net: Net, proto: str, kind: str, mode: str
) -> None:
    talk = talking(node, net, proto, mode)
    went = talk.client("A", payload=b"x" * 60)
    out = node.send(error(kind, BACK, net.endpoint, talk.leaves.src, went.frame), BACK)
    assert out.reason == "forward_icmp_error"
    assert network(out.packet).dst == net.client
    assert ends(quoted(out)) == (net.client, 40000, net.vip, 80)
    assert (out.packet.src, out.packet.dst) == (device_mac(FRONT), neighbour_mac(FRONT, 50))
    assert hop_limit(out.packet) == 63


@PROTOCOLS
@MODES
def test_error_seems_to_come_from_the_service(node: Node, net: Net, proto: str, mode: str) -> None:
    """What lies behind the service does not show, also when a router in between reports."""
    talk = talking(node, net, proto, mode)
    went = talk.client("A", payload=b"x" * 60)
    for reporter in (net.endpoint, net.router(BACK)):
        out = node.send(error("unreachable", BACK, reporter, talk.leaves.src, went.frame), BACK)
        assert network(out.packet).src == net.vip


@KINDS
@PROTOCOLS
@MODES
def test_error_of_the_client_reaches_the_endpoint(
    node: Node, net: Net, proto: str, kind: str, mode: str
) -> None:
    talk = talking(node, net, proto, mode)
    went = talk.server("A", payload=b"x" * 60)
    out = node.send(error(kind, FRONT, net.client, net.vip, went.frame), FRONT)
    assert out.reason == "forward_icmp_error"
    assert network(out.packet).dst == net.endpoint
    assert ends(quoted(out)) == (net.endpoint, 8080, talk.leaves.src, talk.leaves.sport)
    assert (out.packet.src, out.packet.dst) == (device_mac(BACK), neighbour_mac(BACK, 11))


def test_error_of_a_router_towards_an_endpoint_keeps_its_sender(node: Node, net: Net) -> None:
    talk = talking(node, net, "tcp")
    went = talk.server("A", payload=b"x" * 60)
    out = node.send(error("too-big", FRONT, net.router(FRONT), net.vip, went.frame), FRONT)
    assert network(out.packet).src == net.router(FRONT)


@IPV6
@PROTOCOLS
def test_error_about_a_first_fragment_is_translated_back(node: Node, net: Net, proto: str) -> None:
    """It has the ports; of a later one nobody can tell what it belongs to."""
    talk = talking(node, net, proto)
    went = talk.client("A", payload=b"x" * 64)

    def about(offset: int) -> Outcome:
        packet = IPv6(l3(went.frame))
        above = packet.payload.copy()
        packet.remove_payload()
        head = IPv6ExtHdrFragment(nh=packet.nh, offset=offset, m=1, id=7)
        fragment = IPv6(src=packet.src, dst=packet.dst, nh=44) / head / above
        told = icmp_error("too-big", bytes(fragment))
        return node.send(frame(BACK, net.router(BACK), talk.leaves.src, told), BACK)

    first = about(0)
    assert first.reason == "forward_icmp_error"
    assert network(first.packet).dst == net.client
    assert quoted(first)[IPv6ExtHdrFragment].id == 7
    assert ends(quoted(first)) == (net.client, 40000, net.vip, 80)
    assert about(100).reason != "forward_icmp_error"


def test_path_mtu_discovery_works_through_a_service(node: Node, net: Net) -> None:
    talk = talking(node, net, "tcp", "full-nat")
    went = talk.server("A", payload=b"x" * 1000)
    out = node.send(frame(FRONT, net.router(FRONT), net.vip, icmp_error("too-big", l3(went.frame), mtu=1333)))
    mtu = out.packet[ICMP].nexthopmtu if net.family == 4 else out.packet[ICMPv6PacketTooBig].mtu
    assert mtu == 1333
    assert bytes(quoted(out)) in bytes(out.packet)
    # what the endpoint sent comes back as it was, but for its TTL
    sent, told = l3(went.sent), bytes(quoted(out))
    assert told[20:] == sent[20:] if net.family == 4 else told[8:] == sent[8:]


@KINDS
@PROTOCOLS
def test_error_about_a_masqueraded_connection_reaches_the_inside_host(
    node: Node, net: Net, proto: str, kind: str
) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2999")])
    talk = Conversation(node, net, proto=proto, inside=True).open()
    went = talk.client("A", payload=b"x" * 60)
    out = node.send(error(kind, FRONT, net.router(FRONT), net.node(FRONT), went.frame), FRONT)
    assert out.reason == "forward_icmp_error"
    assert (network(out.packet).src, network(out.packet).dst) == (net.router(FRONT), net.inside)
    assert ends(quoted(out)) == (net.inside, 40000, net.server, 80)


@PROTOCOLS
def test_error_of_the_inside_host_is_masqueraded(node: Node, net: Net, proto: str) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2999")])
    talk = Conversation(node, net, proto=proto, inside=True).open()
    went = talk.server("A", payload=b"x" * 60)
    out = node.send(error("unreachable", BACK, net.inside, net.server, went.frame), BACK)
    assert out.reason == "forward_icmp_error"
    assert (network(out.packet).src, network(out.packet).dst) == (net.node(FRONT), net.server)
    assert ends(quoted(out)) == (net.server, 80, net.node(FRONT), talk.leaves.sport)


@KINDS
@pytest.mark.parametrize("number", [0, 77, 0xFFFF])
def test_error_about_a_masqueraded_echo_reaches_the_inside_host(
    node: Node, net: Net, kind: str, number: int
) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2999")])
    went = node.send(frame(BACK, net.inside, net.server, echo(net.family, number)), BACK)
    out = node.send(error(kind, FRONT, net.router(FRONT), net.node(FRONT), went.frame), FRONT)
    assert out.reason == "forward_icmp_error"
    assert network(out.packet).dst == net.inside
    inner = quoted(out)
    assert (inner.src, inner.dst, identifier(inner)) == (net.inside, net.server, number)


def test_error_about_an_echo_reply_is_masqueraded(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2999")])
    asked = node.send(frame(BACK, net.inside, net.server, echo(net.family, 77)), BACK)
    chosen = identifier(asked.packet)
    reply = frame(FRONT, net.server, net.node(FRONT), echo(net.family, chosen, reply=True))
    went = node.send(reply)
    out = node.send(error("unreachable", BACK, net.inside, net.server, went.frame), BACK)
    assert out.reason == "forward_icmp_error"
    assert (network(out.packet).src, identifier(quoted(out))) == (net.node(FRONT), chosen)


@PROTOCOLS
@pytest.mark.parametrize("there", [8, 9, 16, 17, 18, 19])
def test_error_that_quotes_little_is_translated(node: Node, net: Net, proto: str, there: int) -> None:
    """Eight bytes of layer 4 are what IPv4 promises (RFC 792); a TCP checksum may be beyond or at the end."""
    talk = talking(node, net, proto, "full-nat")
    went = talk.client("A", payload=b"x" * 60)
    quote = l3(went.frame)[: (20 if net.family == 4 else 40) + there]
    out = node.send(frame(BACK, net.endpoint, talk.leaves.src, icmp_error("unreachable", quote)), BACK)
    assert out.reason == "forward_icmp_error"
    sent = l3(went.sent)[20:] if net.family == 4 else l3(went.sent)[40:]
    told = bytes(network(out.packet))[28 + 20 :] if net.family == 4 else bytes(network(out.packet))[48 + 40 :]
    whole = 16 if there == 17 else there  # nobody can use half a checksum
    assert told[:whole] == sent[:whole]


def test_error_that_quotes_less_than_eight_bytes_goes_to_linux(node: Node, net: Net) -> None:
    talk = talking(node, net, "tcp")
    went = talk.client("A", payload=b"x" * 60)
    quote = l3(went.frame)[: (20 if net.family == 4 else 40) + 7]
    out = node.send(frame(BACK, net.endpoint, net.client, icmp_error("unreachable", quote)), BACK)
    assert out.reason == "punt_icmp"


def test_quoted_udp_without_checksum_keeps_none(node: Node, net: Net) -> None:
    talk = talking(node, net, "udp", "full-nat")
    above = udp(talk.leaves.sport, talk.leaves.dport)
    above.chksum = 0
    about = frame(BACK, talk.leaves.src, talk.leaves.dst, above)
    out = node.send(
        error("unreachable", BACK, net.endpoint, talk.leaves.src, about),
        BACK,
        checksums_right=net.family == 4,
    )
    assert quoted(out)[UDP].chksum == 0


def test_error_about_an_unknown_connection_goes_to_linux(node: Node, net: Net) -> None:
    node.apply([service(net)])
    about = frame(BACK, net.client, net.endpoint, udp(1, 2))
    out = node.send(error("unreachable", BACK, net.endpoint, net.client, about), BACK)
    assert out.reason == "punt_icmp"


def test_error_about_an_error_goes_to_linux(node: Node, net: Net) -> None:
    talk = talking(node, net, "udp")
    went = talk.client()
    about = node.send(error("unreachable", BACK, net.endpoint, net.client, went.frame), BACK)
    assert node.send(error("time-exceeded", FRONT, net.client, net.vip, about.frame)).reason == "punt_icmp"


@IPV4
def test_error_quoting_a_later_fragment_goes_to_linux(node: Node, net: Net) -> None:
    talk = talking(node, net, "udp")
    about = frame(BACK, net.client, net.endpoint, udp(40000, 8080), frag=10)
    assert talk.arrives.sport == 40000
    assert node.send(error("unreachable", BACK, net.endpoint, net.client, about), BACK).reason == "punt_icmp"


def test_expired_error_is_not_answered(node: Node, net: Net) -> None:
    """No error about an error (RFC 1122 3.2.2)."""
    talk = talking(node, net, "udp")
    went = talk.client()
    out = node.send(error("unreachable", BACK, net.endpoint, net.client, went.frame, ttl=1), BACK)
    assert out.reason == "drop_no_answer"


def test_error_does_not_change_the_connection(node: Node, net: Net) -> None:
    talk = talking(node, net, "tcp")
    went = talk.client("A", payload=b"x")
    before = node.flows.connection()
    node.send(error("unreachable", BACK, net.endpoint, net.client, went.frame), BACK)
    after = node.flows.connection()
    assert (before.state, before.packets, before.reply_packets) == (
        after.state,
        after.packets,
        after.reply_packets,
    )


def test_error_before_any_reply_is_translated(node: Node, net: Net) -> None:
    """The reply's entry has not been resolved yet: a closed UDP port."""
    node.apply([service(net, protocol="udp")])
    talk = Conversation(node, net, proto="udp")
    went = talk.first()
    out = node.send(error("unreachable", BACK, net.endpoint, net.client, went.frame), BACK)
    assert (out.reason, network(out.packet).dst) == ("forward_icmp_error", net.client)
    assert (out.packet.src, out.packet.dst) == (device_mac(FRONT), neighbour_mac(FRONT, 50))


def test_error_without_a_route_is_dropped(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    talk = Conversation(node, net, proto="udp", client=net.far_client(7))
    went = talk.first()
    about = error("unreachable", BACK, net.endpoint, net.far_client(7), went.frame)
    with node.world.route("add", "unreachable", net.far_client(7)):
        assert node.send(about, BACK).reason == "drop_no_route"


def test_error_may_arrive_on_another_device(node: Node, net: Net) -> None:
    talk = talking(node, net, "udp")
    went = talk.client()
    out = node.send(error("unreachable", SPARE, net.router(SPARE), net.client, went.frame), SPARE)
    assert (out.reason, network(out.packet).dst) == ("forward_icmp_error", net.client)


def test_error_does_not_revive_a_flow_whose_endpoint_is_gone(node: Node, net: Net) -> None:
    node.apply([service(net, net.endpoints[0])], midstream="drop")
    talk = Conversation(node, net).open()
    went = talk.server("A", payload=b"x")
    node.apply([service(net, net.endpoints[1])], midstream="drop")
    node.send(error("unreachable", FRONT, net.client, net.vip, went.frame))
    assert talk.client("A", payload=b"x").reason == "drop_midstream"


def test_error_about_a_stale_flow_takes_the_new_way(node: Node, net: Net) -> None:
    node.apply([service(net, protocol="udp")])
    talk = Conversation(node, net, proto="udp", client=net.far_client(7)).open()
    went = talk.client()
    about = error("unreachable", BACK, net.endpoint, net.far_client(7), went.frame)
    with node.world.route("add", net.far_client(7), "via", net.router(SPARE), "dev", SPARE):
        node.datapath.bump_mirror()
        out = node.send(about, BACK)
        assert (out.packet.src, out.packet.dst) == (device_mac(SPARE), neighbour_mac(SPARE, 254))


@IPV4
@pytest.mark.parametrize("padding", [1, 12, 18])
def test_padding_behind_the_quoted_packet_is_not_taken_for_it(node: Node, net: Net, padding: int) -> None:
    """Eight bytes of TCP are quoted (RFC 792); the frame goes on where the checksum would have stood."""
    talk = talking(node, net, "tcp")
    about = bytes(IP(src=talk.leaves.src, dst=talk.leaves.dst) / TCP(sport=40000, dport=8080))[:28]
    filled = bytes(range(1, padding + 1))
    error = frame(BACK, net.endpoint, talk.leaves.src, icmp_error("unreachable", about)) + filled
    out = node.send(error, BACK)
    assert out.reason == "forward_icmp_error"
    assert len(out.frame) == len(error) - padding


@IPV4
@pytest.mark.parametrize("layer4", [0, 7])
def test_packet_quoted_into_the_padding_is_left_to_linux(node: Node, net: Net, layer4: int) -> None:
    talk = talking(node, net, "tcp")
    about = bytes(IP(src=talk.leaves.src, dst=talk.leaves.dst) / TCP(sport=40000, dport=8080))
    error = frame(BACK, net.endpoint, talk.leaves.src, icmp_error("unreachable", about[: 20 + layer4]))
    assert node.send(error + about[20 + layer4 :], BACK).reason == "punt_icmp"
