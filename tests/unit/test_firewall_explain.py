# SPDX-License-Identifier: Apache-2.0
"""`clearway firewall test`: packets as people write them, and why a rule decides."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from clearway.compiler.explain import Decision, Packet, QuestionError, decide, leaving, parse_packet
from clearway.model import config_from_data


def decided(text: str, *rules: dict[str, Any], leaves: str | None = None, **known: Any) -> Decision:
    given = [{"name": f"r{n}", "action": "accept", **rule} for n, rule in enumerate(rules, 1)]
    services = known.pop("services", [])
    data = {
        "firewall": {"sets": {"s": ["10.0.0.0/8"]}, "rules": given, "default": "drop"},
        "services": services,
    }
    packet = replace(parse_packet(text), **{"local": False, **known})
    return decide(config_from_data(data), packet, leaving(packet, leaves) if leaves else None)


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        (
            "tcp 198.51.100.7:4000 -> 10.0.0.1:22",
            Packet(6, ip_address("198.51.100.7"), ip_address("10.0.0.1"), 4000, 22, None, 2),
        ),
        (
            "udp [2001:db8::7]:1 -> [2001:db8::8]:53",
            Packet(17, ip_address("2001:db8::7"), ip_address("2001:db8::8"), 1, 53),
        ),
        ("icmp 10.0.0.1->10.0.0.2", Packet(1, ip_address("10.0.0.1"), ip_address("10.0.0.2"), icmp_type=8)),
        ("ICMPv6 ::1 -> ::2 packet-too-big", Packet(58, ip_address("::1"), ip_address("::2"), icmp_type=2)),
        ("47 10.0.0.1 -> 10.0.0.2", Packet(47, ip_address("10.0.0.1"), ip_address("10.0.0.2"))),
    ],
)
def test_packet_is_understood(text: str, packet: Packet) -> None:
    assert parse_packet(text) == packet


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tcp 10.0.0.1:1", "is no packet; write for example"),
        ("tpc 10.0.0.1:1 -> 10.0.0.2:2", "'tpc' is no protocol"),
        ("tcp 10.0.0.1 -> 10.0.0.2:2", "10.0.0.1 needs a port"),
        ("gre 10.0.0.1:1 -> 10.0.0.2", "10.0.0.1:1 has no port with that protocol"),
        ("tcp 10.0.0.1:70000 -> 10.0.0.2:2", "70000 is too large for a port"),
        ("tcp 10.0.0.x:1 -> 10.0.0.2:2", "'10.0.0.x:1' is no address"),
        ("tcp 10.0.0.1:1 -> [::1]:2", "are of different families"),
        ("icmp ::1 -> ::2", "icmp is not for IPv6 addresses"),
        ("icmp 10.0.0.1 -> 10.0.0.2 ping", "'ping' is no ICMP type"),
        ("udp 10.0.0.1:1 -> 10.0.0.2:2 syn", "'syn' has no meaning there"),
    ],
)
def test_what_is_no_packet_is_told(text: str, problem: str) -> None:
    with pytest.raises(QuestionError) as caught:
        parse_packet(text)
    assert problem in str(caught.value)


TCP = "tcp 198.51.100.7:4000 -> 10.0.0.1:22"


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"protocol": "udp"}, "protocol is tcp"),
        ({"source": "@s"}, "source 198.51.100.7 is not meant"),
        ({"destination": "10.0.0.2"}, "destination 10.0.0.1 is not meant"),
        ({"protocol": "tcp", "source_ports": "1-3999"}, "source port 4000 is not meant"),
        ({"protocol": "tcp", "destination_ports": 23}, "destination port 22 is not meant"),
        ({"protocol": "tcp", "tcp_flags": "ack"}, "the TCP flags differ"),
        ({"dscp": "ef"}, "DSCP is cs0"),
        ({"vlan": 7}, "VLAN is 0"),
        ({"direction": "local"}, "it is forwarded"),
        ({"interface_in": "eth1"}, "interface_in is eth0"),
    ],
)
def test_rule_that_does_not_decide_says_why(rule: dict[str, Any], why: str) -> None:
    found = decided(TCP, rule, interface_in="eth0")
    assert (found.number, found.rule, found.action) == (2, "", "drop")
    assert [one.why for one in found.before] == [why]


def test_first_rule_decides() -> None:
    found = decided(TCP, {"protocol": "udp"}, {"source": "198.51.100.0/24", "log": True}, {"action": "drop"})
    assert (found.number, found.rule, found.action, found.log) == (2, "r2", "accept", True)


def test_what_is_not_known_is_asked_for_only_where_it_matters() -> None:
    assert decided(TCP, {"interface_in": "eth0", "protocol": "udp"}).number == 2
    with pytest.raises(QuestionError, match="rule r1 asks for interface_in: say it with --in"):
        decided(TCP, {"interface_in": "eth0"})
    with pytest.raises(QuestionError, match="rule r1 asks for direction: say it with --direction"):
        decided(TCP, {"direction": "local"}, local=None)
    assert decided(TCP, {"interface_out": "eth0"}, local=True).number == 2  # it goes out by none


def test_rule_that_sees_what_is_translated_gets_it() -> None:
    after = {"destination": "10.0.0.9", "after_translation": True}
    web = {
        "name": "web",
        "address": "10.0.0.1",
        "port": 22,
        "protocol": "tcp",
        "endpoints": [{"address": "10.0.0.9", "port": 8080}],
    }
    with pytest.raises(QuestionError, match="rule r1 sees the packet after translation by web"):
        decided(TCP, after, services=[web])
    assert decided(TCP, after, services=[web], leaves="tcp 198.51.100.7:4000 -> 10.0.0.9:8080").number == 1
    assert decided(TCP, after).number == 2
    with pytest.raises(QuestionError, match="--translated has another protocol"):
        decided(TCP, after, leaves="udp 198.51.100.7:4000 -> 10.0.0.9:8080")


def test_never_judged_is_said() -> None:
    with pytest.raises(QuestionError, match="not judged on their link"):
        decided("icmpv6 2001:db8::1 -> 2001:db8::2 nd-neighbor-solicit", local=True)
    assert decided("icmpv6 2001:db8::1 -> 2001:db8::2 nd-neighbor-solicit").action == "drop"
    with pytest.raises(QuestionError, match="there is no firewall"):
        decide(config_from_data({}), parse_packet(TCP))
