# SPDX-License-Identifier: Apache-2.0
"""Real frames through attached programs, on every hook there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from clearway.datapath import loopback
from clearway.datapath.pins import Pins
from tests.packet.addresses import BACK, FRONT, NARROW, SPARE, Net, device_mac, neighbour_mac
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import (
    ether,
    frame,
    hop_limit,
    icmp_error,
    ip_packet,
    l3,
    network,
    ports,
    tags,
    tcp,
    udp,
)
from tests.packet.marks import IPV4, PROTOCOLS
from tests.packet.node import Node
from tests.packet.wire import Reasons, Wire, unicast
from tests.packet.world import World

XDP = pytest.mark.parametrize("hook", ["xdp"], indirect=True, scope="module")
TC = pytest.mark.parametrize("hook", ["tc"], indirect=True, scope="module")
RESOLVED_MAC = "02:00:00:00:11:63"


@pytest.fixture(scope="module", params=["xdp", "xdp-generic", "tc"])
def hook(request: pytest.FixtureRequest, world: World) -> Iterator[str]:
    with world.attached(request.param):
        yield str(request.param)


def to(address: str) -> Callable[[Packet], bool]:
    return lambda packet: unicast(packet) and packet.type != 0x0806 and bool(network(packet).dst == address)


@PROTOCOLS
def test_connection_through_a_service(node: Node, net: Net, wire: Wire, proto: str) -> None:
    node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto)
    reasons = Reasons(node.world)
    wire.send(FRONT, talk.client_frame("S"))
    out = wire.expect(BACK, unicast).packet
    assert (network(out).src, network(out).dst, ports(out)) == (net.client, net.endpoint, (40000, 8080))
    assert (out.src, out.dst, hop_limit(out)) == (device_mac(BACK), neighbour_mac(BACK, 11), 63)
    talk.leaves = talk.leaves_of(out)
    wire.send(BACK, talk.server_frame("SA"))
    back = wire.expect(FRONT, unicast).packet
    assert (network(back).src, network(back).dst, ports(back)) == (net.vip, net.client, (80, 40000))
    second = "forward_state" if proto == "tcp" else "forward_resolved"
    assert reasons.counted() == {"forward_new": 1, second: 1}


def test_punted_packet_reaches_linux_and_is_routed_by_it(node: Node, net: Net, wire: Wire) -> None:
    reasons = Reasons(node.world)
    wire.send(FRONT, frame(FRONT, net.client, net.endpoint, udp(4000, 53)))
    out = wire.expect(BACK, unicast).packet
    assert (network(out).src, network(out).dst, hop_limit(out)) == (net.client, net.endpoint, 63)
    assert reasons.counted() == {"punt_not_ours": 1}


def test_expired_packet_is_answered(node: Node, net: Net, wire: Wire) -> None:
    node.apply([service(net, protocol="udp")])
    wire.send(FRONT, Conversation(node, net, proto="udp").client_frame(ttl=1))
    out = wire.expect(FRONT, unicast).packet
    assert (network(out).src, network(out).dst) == (net.node(FRONT), net.client)
    assert (out.src, out.dst) == (device_mac(FRONT), neighbour_mac(FRONT, 254))


def test_neighbour_is_asked_for_and_the_packet_follows(node: Node, net: Net, wire: Wire) -> None:
    """XDP hands over to TC, TC leaves it to the kernel's neighbour table, which asks, waits and sends."""
    node.apply([service(net, net.unresolved, protocol="udp")])
    reasons = Reasons(node.world)
    try:
        wire.send(FRONT, Conversation(node, net, proto="udp").client_frame())
        asked = wire.expect(BACK, asks).packet
        wire.send(BACK, resolution(net, asked))
        out = wire.expect(BACK, to(net.unresolved)).packet
        assert (out.dst, network(out).src, ports(out)) == (RESOLVED_MAC, net.client, (40000, 8080))
        assert hop_limit(out) == 63
        assert reasons.counted()["forward_neighbour"] == 1
        wire.send(FRONT, Conversation(node, net, proto="udp").client_frame(payload=b"again"))
        assert wire.expect(BACK, to(net.unresolved)).packet.dst == RESOLVED_MAC
        assert reasons.counted()["forward_resolved"] == 1
    finally:
        node.world.node.ip("neigh", "replace", net.unresolved, "dev", BACK, "nud", "none")


def asks(packet: Packet) -> bool:
    return bool(packet.haslayer(ARP) or packet.haslayer(ICMPv6ND_NS))


def resolution(net: Net, asked: Packet) -> bytes:
    """The answer to an ARP request or a neighbour solicitation."""
    if net.family == 4:
        told: Packet = ARP(
            op=2, psrc=net.unresolved, pdst=net.node(BACK), hwsrc=RESOLVED_MAC, hwdst=device_mac(BACK)
        )
    else:
        assert asked[ICMPv6ND_NS].tgt == net.unresolved
        told = ip_packet(
            net.unresolved,
            network(asked).src,
            ICMPv6ND_NA(tgt=net.unresolved, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=RESOLVED_MAC),
            ttl=255,
        )
    return bytes(Ether(src=RESOLVED_MAC, dst=device_mac(BACK)) / told)


@PROTOCOLS
def test_packet_for_a_device_without_xdp_transmit_leaves_through_tc(
    node: Node, net: Net, wire: Wire, proto: str
) -> None:
    node.device(BACK, xdp_transmit=0)
    node.apply([service(net, protocol=proto)])
    talk = Conversation(node, net, proto=proto)
    reasons = Reasons(node.world)
    for n in range(3):
        wire.send(FRONT, talk.client_frame("S" if n == 0 else "A"))
        out = wire.expect(BACK, unicast).packet
        assert (network(out).dst, ports(out)) == (net.endpoint, (40000, 8080))
    assert sum(reasons.counted().values()) == 3
    assert node.flows.connection().packets == 3


def test_expired_packet_for_a_device_without_xdp_transmit_is_answered(
    node: Node, net: Net, wire: Wire
) -> None:
    """Handed over, TC answers: to the link address that it came from."""
    node.apply([service(net, protocol="udp")])
    node.device(BACK, xdp_transmit=0)
    talk = Conversation(node, net, proto="udp")
    wire.send(FRONT, talk.client_frame())
    wire.expect(BACK, unicast)
    wire.send(FRONT, talk.client_frame(ttl=1))
    out = wire.expect(FRONT, unicast).packet
    assert (network(out).src, network(out).dst) == (net.node(FRONT), net.client)
    assert (out.src, out.dst) == (device_mac(FRONT), neighbour_mac(FRONT, 254))


@pytest.mark.parametrize("vids", [(10,), (10, 20)])
def test_tagged_frame_for_a_device_without_xdp_transmit_leaves_through_tc(
    node: Node, net: Net, wire: Wire, vids: tuple[int, ...]
) -> None:
    node.apply([service(net, protocol="udp")])
    vlan_device(node, vids)
    node.device(BACK, xdp_transmit=0)
    reasons = Reasons(node.world)
    wire.send(FRONT, tagged(net, vids))
    out = wire.expect(BACK, unicast).packet
    assert (tags(out), network(out).dst, ports(out)) == ([], net.endpoint, (40000, 8080))
    assert sum(reasons.counted().values()) == 1


def test_icmp_error_for_a_device_without_xdp_transmit_leaves_through_tc(
    node: Node, net: Net, wire: Wire
) -> None:
    node.apply([service(net, protocol="udp", mode="full-nat")])
    node.device(FRONT, xdp_transmit=0)
    talk = Conversation(node, net, proto="udp")
    wire.send(FRONT, talk.client_frame())
    went = wire.expect(BACK, unicast)
    source = network(went.packet).src
    wire.send(BACK, frame(BACK, net.endpoint, source, icmp_error("unreachable", l3(went.frame))))
    out = wire.expect(FRONT, unicast).packet
    assert (network(out).src, network(out).dst) == (net.vip, net.client)
    assert (out.src, out.dst) == (device_mac(FRONT), neighbour_mac(FRONT, 50))


def test_unroutable_packet_is_dropped_and_does_not_reach_linux(node: Node, net: Net, wire: Wire) -> None:
    node.apply([service(net, endpoints=[])])
    reasons = Reasons(node.world)
    wire.send(FRONT, Conversation(node, net).client_frame("S"))
    assert wire.nothing(FRONT) and wire.nothing(BACK)
    assert reasons.counted() == {"drop_no_endpoint": 1}


# ---- fragmenting ----

LARGE = bytes(n & 255 for n in range(1440))


def fragments(wire: Wire) -> tuple[Packet, bytes]:
    """The first of the two that leave through the narrow device, and layer 4 put together again."""
    pieces = [wire.expect(NARROW, unicast).packet for _ in range(2)]
    pieces.sort(key=lambda piece: int(piece[IP].frag))
    assert {hop_limit(piece) for piece in pieces} == {63}
    assert len({(network(piece).src, network(piece).dst) for piece in pieces}) == 1
    return pieces[0], b"".join(bytes(piece[IP].payload) for piece in pieces)


@pytest.fixture(params=[0, 1], ids=["", "rp_filter"])
def reverse_path(request: pytest.FixtureRequest, world: World, hook: str) -> Iterator[None]:
    """Without, and with, strict filtering of reverse paths."""
    setting = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
    with world.node.entered():
        setting.write_text(str(request.param))
        loopback.let_in(Pins.of(world.datapath.instance))
    yield
    with world.node.entered():
        setting.write_text("0")


@IPV4
@pytest.mark.usefixtures("reverse_path")
@pytest.mark.parametrize("mode", ["nat", "full-nat"])
def test_linux_fragments_what_is_too_big(node: Node, net: Net, wire: Wire, mode: str) -> None:
    node.apply([service(net, net.narrow_endpoint, protocol="udp", mode=mode)])
    reasons = Reasons(node.world)
    wire.send(FRONT, Conversation(node, net, proto="udp").client_frame(payload=LARGE))
    first, above = fragments(wire)
    assert network(first).src == (net.client if mode == "nat" else net.node(NARROW))
    assert (network(first).dst, int.from_bytes(above[2:4], "big")) == (net.narrow_endpoint, 8080)
    assert above[8:] == LARGE
    assert reasons.counted() == {"punt_to_fragment": 1}
    assert node.flows.connection().packets == 1


@IPV4
@pytest.mark.usefixtures("reverse_path")
@pytest.mark.parametrize(
    "source", [{"masquerade": True}, {"pool": "198.18.0.0/24"}], ids=["masquerade", "pool"]
)
def test_linux_fragments_what_has_another_source(
    node: Node, net: Net, wire: Wire, source: dict[str, object]
) -> None:
    node.apply(nat=[{"source": net.prefix(BACK), "interface": NARROW, **source}])
    wire.send(BACK, frame(BACK, net.inside, net.narrow_endpoint, udp(5000, 53, LARGE)))
    first, above = fragments(wire)
    if "masquerade" in source:
        assert network(first).src == net.node(NARROW)
    else:
        assert network(first).src.startswith("198.18.0.")
    assert above[8:] == LARGE


@IPV4
@pytest.mark.usefixtures("reverse_path")
def test_linux_fragments_the_answers_of_a_service(node: Node, net: Net, wire: Wire) -> None:
    """Its address is one of the node's own, as it most often is."""
    node.apply([service(net, protocol="udp")])
    with node.world.address(f"{net.vip}/32", "lo"):
        wire.send(NARROW, frame(NARROW, net.narrow_endpoint, net.vip, udp(5000, 80, b"request")))
        wire.expect(BACK, unicast)
        wire.send(BACK, frame(BACK, net.endpoint, net.narrow_endpoint, udp(8080, 5000, LARGE)))
        first, above = fragments(wire)
    assert (network(first).src, network(first).dst) == (net.vip, net.narrow_endpoint)
    assert (above[:2], above[8:]) == ((80).to_bytes(2, "big"), LARGE)


# ---- tags ----


def vlan_device(node: Node, vids: tuple[int, ...]) -> None:
    """Frames on the front with those tags belong to the device `spare`."""
    outer, inner = (*vids, 0)[:2]
    key = {"ifindex": node.world.ifindex[FRONT], "outer": outer, "inner": inner}
    node.write("vlan_v1", key, {"ifindex": node.world.ifindex[SPARE]})


def tagged(net: Net, vids: tuple[int, ...], **fields: int) -> bytes:
    layer2 = ether(FRONT)
    for n, vid in enumerate(vids):
        layer2 /= Dot1AD(vlan=vid) if n < len(vids) - 1 else Dot1Q(vlan=vid)
    return bytes(layer2 / ip_packet(net.client, net.vip, udp(40000, 80), **fields))


@pytest.mark.parametrize("leaving", [(), (100,), (100, 200)])
@pytest.mark.parametrize("arriving", [(), (0,), (10,), (10, 20)])
def test_tags_in_and_out(
    node: Node, net: Net, wire: Wire, arriving: tuple[int, ...], leaving: tuple[int, ...]
) -> None:
    """`spare` stands for the VLAN device of the arriving frame, the back for the one it leaves through."""
    node.apply([service(net, protocol="udp")])
    if any(arriving):
        vlan_device(node, arriving)
    out_outer, out_inner = (*leaving, 0, 0)[:2]
    node.device(BACK, vlan_outer=out_outer, vlan_inner=out_inner)
    for _ in range(2):
        wire.send(FRONT, tagged(net, arriving))
        out = wire.expect(BACK, unicast).packet
        kinds = {0: [], 1: [0x8100], 2: [0x88A8, 0x8100]}[len(leaving)]
        assert tags(out) == list(zip(kinds, leaving, strict=True))
        assert (network(out).dst, ports(out)) == (net.endpoint, (40000, 8080))
        assert (out.src, out.dst) == (device_mac(BACK), neighbour_mac(BACK, 11))


@pytest.mark.parametrize("arriving", [(10,), (10, 20)])
def test_answer_to_a_tagged_frame_has_its_tags(
    node: Node, net: Net, wire: Wire, arriving: tuple[int, ...]
) -> None:
    node.apply([service(net, protocol="udp")])
    vlan_device(node, arriving)
    wire.send(FRONT, tagged(net, arriving, ttl=1))
    out = wire.expect(FRONT, unicast).packet
    assert [vid for _, vid in tags(out)] == list(arriving)
    assert (network(out).src, network(out).dst) == (net.node(SPARE), net.client)


def test_frame_of_an_unknown_vlan_reaches_linux(node: Node, net: Net, wire: Wire) -> None:
    node.apply([service(net, protocol="udp")])
    reasons = Reasons(node.world)
    wire.send(FRONT, tagged(net, (33,)))
    assert wire.nothing(BACK)
    assert reasons.counted() == {"punt_vlan_unknown": 1}


# ---- short and odd frames, for which the kernel's test run has no room ----


@pytest.mark.parametrize("kind", [b"\x08\x00", b"\x86\xdd", b"\x81\x00"])
def test_short_frames_are_dropped_and_counted(node: Node, net: Net, wire: Wire, kind: bytes) -> None:
    node.apply([service(net)])
    head = ether(FRONT).build()[:12]
    reasons = Reasons(node.world)
    for length in range(1, 20):
        wire.send(FRONT, head + kind + bytes([0x60 if kind == b"\x86\xdd" else 0x45]) + bytes(length))
    assert wire.nothing(FRONT) and wire.nothing(BACK)
    counted = reasons.counted()
    # what is too short for a tag the kernel itself drops before TC
    assert sum(counted.values()) == (15 if (node.hook, kind) == ("tc", b"\x81\x00") else 19)
    assert all(name.startswith(("drop_", "punt_vlan", "punt_not_ip")) for name in counted)


def test_masquerade_takes_a_port_that_no_socket_has(node: Node, net: Net, wire: Wire) -> None:
    node.apply(nat=[masquerade(net, ports="2000-2001")])
    with node.world.node.listen((net.node(FRONT), 2000)):
        wire.send(BACK, frame(BACK, net.inside, net.server, tcp(2000, 80, "S")))
        out = wire.expect(FRONT, unicast).packet
    assert (network(out).src, out[TCP].sport) == (net.node(FRONT), 2001)
    assert not out.haslayer(UDP)
