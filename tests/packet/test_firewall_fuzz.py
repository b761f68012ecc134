# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in meets the firewall: with all dropped, no IP packet gets past it; with all accepted,
counters add up. The harness checks the counters of every frame.
"""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import IPOption_RR
from scapy.layers.inet6 import IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import GRE, Dot1Q
from scapy.packet import Raw

from tests.packet.addresses import BACK, FRONT, NETS
from tests.packet.conversation import masquerade, service
from tests.packet.firewall import firewall
from tests.packet.frames import echo, ether, frame, ip_packet, tcp, udp
from tests.packet.node import Node
from tests.packet.test_fuzz import ETHERNET, FUZZ, SEEDS, repaired
from tests.packet.test_vlan import vlan_device

NEVER_JUDGED = {"punt_not_ip", "punt_other_host", "punt_vlan_unknown", "punt_ttl", "answer_ttl_exceeded"}
DISCOVERY = {*range(130, 138), 143}


def more_seeds() -> list[bytes]:
    made = list(SEEDS)
    for net in NETS.values():
        group = "224.0.0.251" if net.family == 4 else "ff02::fb"
        for above in (
            tcp(40000, 22, "S"),
            udp(40000, 53, bytes(30)),
            echo(net.family, 5),
            GRE() / Raw(bytes(20)),
        ):
            made += [frame(FRONT, net.client, dst, above) for dst in (net.node(FRONT), net.inside, group)]
        made.append(bytes(ether(FRONT) / Dot1Q(vlan=5) / ip_packet(net.client, net.inside, udp(1, 2))))
    four, six = NETS[4], NETS[6]
    options = IPOption_RR(routers=["0.0.0.0"] * 3)
    made.append(frame(FRONT, four.client, four.node(FRONT), tcp(40000, 22, "S"), options=options))
    made.append(frame(FRONT, six.client, six.node(FRONT), IPv6ExtHdrHopByHop() / tcp(40000, 22, "S")))
    routed = IPv6ExtHdrRouting(addresses=["fd00::1"], segleft=1) / udp(40000, 53)
    made.append(frame(FRONT, six.client, six.node(FRONT), routed))
    return made


ALL_SEEDS = more_seeds()


def configure(node: Node, default: str) -> Node:
    node.apply(
        [service(net, protocol=proto) for net in NETS.values() for proto in ("tcp", "udp")],
        nat=[masquerade(net, source=net.any, interface=BACK) for net in NETS.values()],
        firewall=firewall(default=default),
        midstream="reset",
    )
    vlan_device(node, 5)
    return node


@pytest.fixture(params=["accept", "drop", "reject"])
def default(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def guarded(node: Node, default: str) -> Node:
    return configure(node, default)


def is_discovery(data: bytes) -> bool:
    """ICMPv6 that is never judged, in a frame with at most one tag and with extension headers or without."""
    at, kind = 12, data[12:14]
    while kind in (b"\x81\x00", b"\x88\xa8") and len(data) > at + 6:
        at, kind = at + 4, data[at + 4 : at + 6]
    packet = data[at + 2 :]
    if kind != b"\x86\xdd" or len(packet) < 48:
        return False
    proto, at = packet[6], 40
    while proto in (0, 43, 44, 60) and len(packet) > at + 8:
        proto, at = packet[at], at + 8 + (packet[at + 1] * 8 if proto != 44 else 0)
    return proto == 58 and packet[at] in DISCOVERY


def check(node: Node, default: str, data: bytes) -> None:
    assume(node.takes(data))
    out = node.send(data, checksums_right=False)
    if default == "accept" or out.verdict == "drop" or out.reason in NEVER_JUDGED:
        return
    assert (default == "reject" and out.reason == "answer_rejected") or is_discovery(data), out.reason


@FUZZ
@given(
    seed=st.sampled_from(ALL_SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=0, max_size=4),
    cut=st.one_of(st.none(), st.integers(15, 120)),
    repair=st.booleans(),
)
def test_mutated_packets(
    guarded: Node,
    default: str,
    seed: bytes,
    changes: list[tuple[int, int]],
    cut: int | None,
    repair: bool,
) -> None:
    data = bytearray(seed)
    for at, value in changes:
        data[at % len(data)] = value
    made = bytes(data[:cut]) if cut else bytes(data)
    check(guarded, default, repaired(made) if repair else made)


@FUZZ
@given(
    kind=st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xa8"]),
    data=st.binary(min_size=1, max_size=300),
)
def test_random_bytes_behind_an_ethernet_header(
    guarded: Node, default: str, kind: bytes, data: bytes
) -> None:
    check(guarded, default, ETHERNET + kind + data)


@FUZZ
@given(
    vids=st.lists(st.sampled_from([0, 0, 5, 6]), max_size=5),
    mac=st.sampled_from(["020000000100", "ffffffffffff", "01005e000001", "020000000999"]),
    family=st.sampled_from([4, 6]),
)
def test_any_tags_and_link_addresses(
    guarded: Node, default: str, vids: list[int], mac: str, family: int
) -> None:
    net, layer2 = NETS[family], ether(FRONT)
    for vid in vids:
        layer2 /= Dot1Q(vlan=vid)
    made = bytes(layer2 / ip_packet(net.client, net.node(FRONT), udp(40000, 53)))
    check(guarded, default, bytes.fromhex(mac) + made[6:])


@FUZZ
@given(data=st.sampled_from(ALL_SEEDS), device=st.sampled_from([FRONT, BACK]))
def test_dropped_packets_leave_no_entry(node: Node, data: bytes, device: str) -> None:
    if node.tables.firewall is None:
        configure(node, "drop")
    node.run(data, device)
    assert node.flows.entries() == 0
