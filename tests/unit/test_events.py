# SPDX-License-Identifier: Apache-2.0
"""Decisions of firewall rules as lines of JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6TimeExceeded,
    ICMPv6Unknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.packet import Packet, Raw

from clearway.daemon.events import lines
from clearway.datapath.calls import Clock
from tests.unit.test_ended import TUPLE

HEAD = 128
RECORD = np.dtype(
    [
        ("at", "<u8"),
        ("identity", "<u8"),
        ("ifindex_in", "<u4"),
        ("ifindex_out", "<u4"),
        ("length", "<u4"),
        ("vlan", "<u2"),
        ("action", "u1"),
        ("family", "u1"),
        ("proto", "u1"),
        ("known", "u1"),
        ("head_length", "u1"),
        ("tcp_flags", "u1"),
        ("tuple", TUPLE),
        ("head", "u1", (HEAD,)),
    ]
)
ACTIONS = {"FIREWALL_ACCEPT": 0, "FIREWALL_DROP": 1}

LONG = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(72))])


def record(packet: Packet, protocol: int) -> Any:
    whole = bytes(packet)
    row = np.zeros(1, RECORD)
    row["proto"], row["length"] = protocol, len(whole) + 14
    row["tuple"]["family"] = 4 if whole[0] >> 4 == 4 else 6
    head = whole[:HEAD]
    row["head_length"] = len(head)
    row["head"][0, : len(head)] = list(head)
    return row


def told(*records: Any) -> list[dict[str, Any]]:
    text = lines(np.concatenate(records), {0: ""}, {}, ACTIONS, Clock(0, 0, 250))
    return [json.loads(line) for line in text.splitlines()]


def test_head_is_as_long_as_the_packet_or_its_first_bytes() -> None:
    packets = [IP() / TCP() / Raw(bytes(range(200))), IP() / ICMP(type=8), IPv6() / ICMPv6EchoRequest()]
    found = told(*(record(packet, 6) for packet in packets))
    assert [bytes.fromhex(event["head"]) for event in found] == [bytes(packet)[:HEAD] for packet in packets]


@pytest.mark.parametrize(
    ("packet", "protocol", "kind"),
    [
        (IP() / ICMP(type=8), 1, "echo-request"),
        (IP() / ICMP(type=3, code=1) / Raw(bytes(40)), 1, "destination-unreachable"),
        (IP(options=b"\x94\x04\x00\x00") / ICMP(type=0), 1, "echo-reply"),
        (IP(flags="MF") / ICMP(type=8), 1, "echo-request"),
        (IP() / ICMP(type=42), 1, "42"),
        (IPv6() / ICMPv6EchoRequest(), 58, "echo-request"),
        (IPv6() / ICMPv6TimeExceeded() / Raw(bytes(48)), 58, "time-exceeded"),
        (IPv6() / ICMPv6Unknown(type=200), 58, "200"),
        (IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / ICMPv6EchoRequest(), 58, "echo-request"),
        (IPv6() / LONG / ICMPv6EchoRequest(), 58, "echo-request"),
        (IPv6() / IPv6ExtHdrFragment(m=1) / ICMPv6EchoRequest(), 58, "echo-request"),
    ],
)
def test_icmp_type_is_named_as_rules_name_it(packet: Packet, protocol: int, kind: str | None) -> None:
    (event,) = told(record(packet, protocol))
    assert event["icmp_type"] == kind


@pytest.mark.parametrize(
    ("packet", "protocol"),
    [
        (IP() / TCP(), 6),
        (IP(frag=100) / ICMP(type=8), 1),
        (IPv6() / IPv6ExtHdrFragment(offset=100) / ICMPv6EchoRequest(), 58),
        (IPv6() / IPv6ExtHdrFragment(m=1) / LONG / ICMPv6EchoRequest(), 58),
        (IPv6() / LONG / LONG / ICMPv6EchoRequest(), 58),
        (IP(proto=58) / ICMP(type=8), 58),
        (IP(proto=1), 1),
        (IPv6(nh=58), 58),
    ],
    ids=[
        "tcp",
        "later fragment",
        "later fragment of IPv6",
        "first byte beyond",
        "header beyond",
        "ICMPv6 in IPv4",
        "cut",
        "cut 6",
    ],
)
def test_icmp_type_that_the_packet_does_not_tell_is_left_out(packet: Packet, protocol: int) -> None:
    (event,) = told(record(packet, protocol))
    assert event["icmp_type"] is None
