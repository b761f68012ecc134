# SPDX-License-Identifier: Apache-2.0
"""What `make bench-firewall` compares is the same: rules in three languages, and packets that are right."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from bench.firewall.frames import FRAME_BYTES, LENGTH_AT, Array, first_packets, frames_of
from bench.firewall.rules import CLIENTS, firewall, iptables, nftables, ruleset
from clearway.compiler.classifier import Condition
from clearway.model import PortRange, config_from_data
from tests.packet.checksums import wrong_checksums

FAMILIES = (4, 6)
SOURCE, DESTINATION = "02:00:00:00:00:01", "02:00:00:00:00:02"
BOTH_ENDS = Condition(
    source=(ip_network("10.0.0.0/8"),),
    destination=(ip_network("192.0.2.1/32"),),
    dport=(PortRange(1024, 65535),),
    protocols=(6,),
)
CLIENT_ALONE = Condition(source=(ip_network("10.0.0.0/8"),), protocols=(17,))


def test_rule_of_nftables_asks_for_the_same() -> None:
    text = nftables([BOTH_ENDS, CLIENT_ALONE], 4).splitlines()
    assert "ip saddr 10.0.0.0/8 ip daddr 192.0.2.1/32 tcp dport 1024-65535 accept" in text
    assert "ip saddr 10.0.0.0/8 meta l4proto udp accept" in text


def test_rule_of_iptables_asks_for_the_same() -> None:
    text = iptables([BOTH_ENDS, CLIENT_ALONE]).splitlines()
    ends = "-p tcp -s 10.0.0.0/8 -d 192.0.2.1/32 -m tcp --dport 1024:65535"
    assert f"-A FORWARD {ends} -j ACCEPT" in text
    assert "-A FORWARD -p udp -s 10.0.0.0/8 -j ACCEPT" in text


def test_rule_of_clearway_asks_for_the_same() -> None:
    config = config_from_data({"firewall": firewall([BOTH_ENDS, CLIENT_ALONE])})
    assert config.firewall is not None
    assert config.firewall.default == "drop"
    for rule, asked in zip(config.firewall.rules, (BOTH_ENDS, CLIENT_ALONE), strict=True):
        assert rule.action == "accept"
        assert (rule.source, rule.destination) == (asked.source, asked.destination)
        assert (rule.destination_ports, rule.protocol) == (asked.dport, asked.protocols)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_last_rule_is_for_its_clients(family: int) -> None:
    *others, last = ruleset(1000, family)
    assert last.source == (CLIENTS[family],)
    for rule in others:
        asked = rule.source or rule.destination
        assert isinstance(asked, tuple)
        # who asks for no source asks for a destination where no other packet goes
        assert not any(network.overlaps(CLIENTS[family]) for network in asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_packet_opens_another_connection(family: int) -> None:
    words = first_packets(ruleset(10, family), 5000, family)
    assert len(np.unique(words, axis=0)) == 5000


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_first_packets(family: int) -> None:
    words = first_packets(ruleset(100, family), 200, family)
    protocols = set()
    for row, octets in zip(words, frames_of(words, family, SOURCE, DESTINATION), strict=True):
        frame = Ether(octets.tobytes())
        assert len(octets) == FRAME_BYTES[family]
        assert (frame.src, frame.dst) == (SOURCE, DESTINATION)
        assert wrong_checksums(octets.tobytes()) == []
        layer3, layer4 = frame[IP if family == 4 else IPv6], frame[TCP if TCP in frame else UDP]
        assert int(ip_address(layer3.src)) == _address(row[:2], family)
        assert int(ip_address(layer3.dst)) == _address(row[2:4], family)
        assert layer4.sport << 16 | layer4.dport == int(row[4]) >> 32
        assert TCP not in frame or layer4.flags == "S"
        protocols.add(type(layer4))
    assert protocols == {TCP, UDP}


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_alike_where_the_sink_looks(family: int) -> None:
    frames = frames_of(first_packets(ruleset(100, family), 200, family), family, SOURCE, DESTINATION)
    at = LENGTH_AT[family]
    assert len(np.unique(frames[:, at : at + 4], axis=0)) == 1


def _address(words: Array, family: int) -> int:
    high, low = (int(word) for word in words)
    return high if family == 4 else high << 64 | low
