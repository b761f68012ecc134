# SPDX-License-Identifier: Apache-2.0
"""What `make bench` sends: a wrong frame would measure how fast malformed packets are dropped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bench.traffic import FRAME_BYTES, OBJECT, Device, Generator, Stream
from clearway.datapath.test_run import run_xdp
from clearway.lab import Namespace
from tests.packet.checksums import wrong_checksums

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="loads BPF programs and needs root"),
    pytest.mark.skipif(not OBJECT.exists(), reason="tools/build_bpf.py bench has not been run"),
]

SOURCES = {4: "10.100.0.0", 6: "fd00:100::"}
DESTINATION = {4: "198.51.100.2", 6: "2001:db8:100::2"}
CLIENT = Device(Namespace("not-entered"), "eth0", 7, "02:00:00:00:00:01")
NODE = Device(Namespace("not-entered"), "client1", 8, "02:00:00:00:00:02")


@contextmanager
def generator(family: int, flows: int, host_shift: int = 2, ports: int = 1) -> Iterator[Generator]:
    stream = Stream(family, SOURCES[family], DESTINATION[family], 9, flows, host_shift, ports)
    with Generator(stream, CLIENT, NODE) as made:
        yield made


def next_frame(made: Generator) -> Packet:
    # The page is recycled: whatever was in it, the frame must come out whole.
    run = run_xdp(made.program_fd, os.urandom(FRAME_BYTES))
    assert run.verdict == "XDP_REDIRECT"
    assert wrong_checksums(run.packet) == []
    assert len(run.packet) == FRAME_BYTES
    return Ether(run.packet)


def source(frame: Packet) -> tuple[str, int]:
    return (frame[IPv6] if IPv6 in frame else frame[IP]).src, frame[UDP].sport


@pytest.mark.parametrize("family", [4, 6])
def test_generated_frame_is_a_udp_packet_of_64_bytes(family: int) -> None:
    with generator(family, flows=10) as made:
        frame = next_frame(made)
    layer3 = frame[IPv6] if family == 6 else frame[IP]
    assert (frame.dst, frame.src) == (NODE.mac, CLIENT.mac)
    assert (layer3.dst, frame[UDP].dport) == (DESTINATION[family], 9)
    assert bytes(frame[UDP].payload) == bytes(frame[UDP].len - 8)
    assert (layer3.hlim if family == 6 else layer3.ttl) == 64


@pytest.mark.parametrize("family", [4, 6])
def test_flows_take_turns(family: int) -> None:
    with generator(family, flows=10) as made:
        rounds = [[source(next_frame(made)) for _ in range(10)] for _ in range(2)]
    assert rounds[0] == rounds[1]
    assert len(set(rounds[0])) == 10
    first = int(ip_address(SOURCES[family])) + 0x100
    assert {int(ip_address(address)) for address, _ in rounds[0]} == {first, first + 1, first + 2}


@pytest.mark.parametrize("family", [4, 6])
def test_without_a_number_of_flows_each_packet_opens_one(family: int) -> None:
    with generator(family, flows=0) as made:
        seen = [source(next_frame(made)) for _ in range(300)]
    assert len(set(seen)) == 300


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("ports", "expected"), [(1, 9), (2, 10)])
def test_who_has_used_up_the_source_ports_goes_on_to_the_next_port(
    family: int, ports: int, expected: int
) -> None:
    with generator(family, flows=100_000, ports=ports) as made:
        first = next_frame(made)
        run_xdp(made.program_fd, bytes(FRAME_BYTES), repeat=61_440 - 1)
        again = next_frame(made)
    assert (first[UDP].sport, first[UDP].dport) == (again[UDP].sport, 9)
    assert again[UDP].dport == expected
