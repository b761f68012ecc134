# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in: one verdict, one reason, the counters add up, and what is punted is as it came. The
harness checks that for every frame it sends.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q

from tests.packet.addresses import BACK, FRONT, NETS, Net, device_mac
from tests.packet.checksums import ones_sum
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import echo, ether, frame, icmp_error, ip_packet, l3, tcp, udp
from tests.packet.node import Node

FUZZ = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DESTINATION = bytes.fromhex(device_mac(FRONT).replace(":", ""))
ETHERNET = DESTINATION + bytes.fromhex("0200000010fe")


@pytest.fixture
def busy(node: Node) -> Node:
    """Both families at once, with flows that fuzzed packets may hit."""
    node.apply(
        [
            service(net, protocol=proto, mode=mode)
            for net in NETS.values()
            for proto, mode in (("tcp", "nat"), ("udp", "full-nat"))
        ],
        nat=[
            masquerade(net, source=net.any, interface=device)
            for net in NETS.values()
            for device in (FRONT, BACK)
        ],
        midstream="reset",
    )
    for net in NETS.values():
        Conversation(node, net).open()
        Conversation(node, net, proto="udp").open()
    ifindex = node.world.ifindex[FRONT]
    node.write("vlan_v1", {"ifindex": ifindex, "outer": 5, "inner": 0}, {"ifindex": ifindex})
    return node


def seeds() -> list[bytes]:
    """Valid frames of every kind that the parser knows."""
    made = []
    for net in NETS.values():
        about = l3(frame(BACK, net.client, net.endpoint, tcp(40000, 8080)))
        made += [
            frame(FRONT, net.client, net.vip, tcp(40000, 80, "S", options=[("MSS", 1460), ("WScale", 7)])),
            frame(FRONT, net.client, net.vip, tcp(40000, 80, "PA", payload=b"payload")),
            frame(FRONT, net.client, net.vip, tcp(40000, 80, "FA")),
            frame(FRONT, net.client, net.vip, udp(40000, 80, b"payload")),
            frame(FRONT, net.client, net.server, echo(net.family, 7)),
            frame(FRONT, net.client, net.vip, icmp_error("too-big", about)),
            bytes(ether(FRONT) / Dot1Q(vlan=5) / ip_packet(net.client, net.vip, udp(40000, 80))),
            bytes(ether(FRONT) / Dot1Q(vlan=0) / ip_packet(net.client, net.vip, udp(40000, 80))),
        ]
    six = NETS[6]
    made += [
        frame(FRONT, six.client, six.vip, IPv6ExtHdrDestOpt() / udp(40000, 80)),
        frame(FRONT, six.client, six.vip, IPv6ExtHdrFragment(nh=17, m=1, id=7) / udp(40000, 80, bytes(24))),
        frame(FRONT, NETS[4].client, NETS[4].vip, udp(40000, 80, bytes(24)), flags="MF", id=9),
    ]
    return made


SEEDS = seeds()


def repaired(data: bytes) -> bytes:
    """An untagged IPv4 header with its right checksum, so that mutations get past it."""
    made = bytearray(data)
    if len(made) >= 34 and made[12:14] == b"\x08\x00":
        made[24:26] = b"\0\0"
        made[24:26] = (ones_sum(bytes(made[14:34])) ^ 0xFFFF).to_bytes(2, "big")
    return bytes(made)


@FUZZ
@given(data=st.binary(min_size=15, max_size=300))
@example(bytes(15))
def test_random_bytes(busy: Node, data: bytes) -> None:
    assume(busy.takes(data))
    busy.send(data, checksums_right=False)


@FUZZ
@given(
    kind=st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xa8"]),
    data=st.binary(min_size=1, max_size=300),
)
def test_random_bytes_behind_an_ethernet_header(busy: Node, kind: bytes, data: bytes) -> None:
    assume(busy.takes(ETHERNET + kind + data))
    out = busy.send(ETHERNET + kind + data, checksums_right=False)
    assert out.reason != "punt_other_host"


@FUZZ
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(12, 120), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(15, 120)),
    repair=st.booleans(),
)
def test_mutated_packets(
    busy: Node, seed: bytes, changes: list[tuple[int, int]], cut: int | None, repair: bool
) -> None:
    data = bytearray(seed)
    for at, value in changes:
        data[at % len(data)] = value
    made = bytes(data[:cut]) if cut else bytes(data)
    assume(busy.takes(made))
    busy.send(repaired(made) if repair else made, checksums_right=False)


@FUZZ
@given(
    family=st.sampled_from([4, 6]),
    flags=st.text("FSRPAUEC", max_size=4),
    seq=st.integers(0, 2**32 - 1),
    ack=st.integers(0, 2**32 - 1),
    window=st.integers(0, 65535),
    ttl=st.integers(0, 255),
    size=st.integers(0, 1400),
    server=st.booleans(),
)
def test_any_segment_of_a_connection_keeps_checksums_right(
    busy: Node, family: int, flags: str, seq: int, ack: int, window: int, ttl: int, size: int, server: bool
) -> None:
    net: Net = NETS[family]
    talk = Conversation(busy, net)
    above = tcp(40000, 80, flags, seq, ack, window=window, payload=bytes(size))
    if server:
        above = tcp(8080, 40000, flags, seq, ack, window=window, payload=bytes(size))
        out = busy.send(frame(BACK, net.endpoint, net.client, above, ttl=ttl), BACK)
    else:
        out = busy.send(frame(FRONT, talk.arrives.src, talk.arrives.dst, above, ttl=ttl))
    assert out.verdict in ("forward", "answer", "drop", "punt")
    assert busy.flows.entries() % 2 == 0
