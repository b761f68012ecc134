# SPDX-License-Identifier: Apache-2.0
"""The firewall as people write it: what is understood, what is refused, and what comes of writing it."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from clearway.model import (
    ConfigError,
    FirewallRule,
    PortRange,
    SetName,
    TcpFlags,
    config_from_data,
    holds_ports,
    parse_config,
    parse_members,
    to_data,
    to_yaml,
)

SETS = {"office": ["198.51.100.0/24", "2001:db8:1::/48"], "web": [80, 443, "8000-8100"], "empty": []}


def rule_of(**keys: Any) -> FirewallRule:
    data = {"firewall": {"sets": SETS, "rules": [{"name": "r", "action": "accept", **keys}]}}
    firewall = config_from_data(data).firewall
    assert firewall is not None
    return firewall.rules[0]


def refusal(**keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        rule_of(**keys)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        ("protocol", "tcp", (6,)),
        ("protocol", ["udp", 47, "UDP", "50"], (17, 47, 50)),
        ("source", "10.0.0.0/8", (ip_network("10.0.0.0/8"),)),
        ("source", ["@office", "fe80::/10", "224.0.0.0/4"], None),
        ("destination", "2001:db8::1", (ip_network("2001:db8::1/128"),)),
        ("dscp", ["ef", 8], (46, 8)),
        ("vlan", [0, 4094], (0, 4094)),
        ("interface_in", ["eth0", "wan"], ("eth0", "wan")),
    ],
)
def test_value_is_understood(key: str, written: Any, meant: Any) -> None:
    found = getattr(rule_of(**{key: written}), key)
    assert found == (meant or (SetName("office"), ip_network("fe80::/10"), ip_network("224.0.0.0/4")))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (22, (PortRange(22, 22),)),
        ("22", (PortRange(22, 22),)),
        ([23, "2323-2330", "@web"], (PortRange(23, 23), PortRange(2323, 2330), SetName("web"))),
    ],
)
def test_ports_are_understood(written: Any, meant: Any) -> None:
    assert rule_of(protocol="tcp", destination_ports=written).destination_ports == meant


@pytest.mark.parametrize(
    ("written", "flags", "mask"),
    [
        ("syn", 0x02, 0x02),
        ("syn/fin,syn,rst,ack", 0x02, 0x17),
        ("none/syn,fin", 0, 0x03),
        ("SYN,ACK", 0x12, 0x12),
    ],
)
def test_tcp_flags_are_understood(written: str, flags: int, mask: int) -> None:
    assert rule_of(protocol="tcp", tcp_flags=written).tcp_flags == TcpFlags(flags, mask)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"destination_ports": 22}, "destination_ports: only TCP and UDP are known to have ports"),
        ({"protocol": ["tcp", "sctp"], "source_ports": 22}, "only TCP and UDP are known to have ports"),
        ({"protocol": "tcp", "destination_ports": "30-20"}, '"30-20" is reversed; write 20-30'),
        ({"protocol": "tcp", "destination_ports": 65536}, "65536 is too large for a port"),
        ({"protocol": "tcp", "destination_ports": True}, "true is not a port"),
        ({"protocol": "tcp", "destination_ports": []}, "an empty list of ports meets no packet"),
        ({"protocol": "tpc"}, '"tpc" is not a protocol'),
        ({"protocol": 256}, "256 is out of range for a protocol"),
        ({"icmp_types": "echo-request"}, "only ICMP and ICMPv6 have these types"),
        (
            {"protocol": ["icmp", "icmpv6"], "icmp_types": 8},
            "8 means one thing in ICMP and another",
        ),
        ({"protocol": "icmp", "icmp_types": "packet-too-big"}, "packet-too-big is a type of icmpv6 only"),
        ({"protocol": "icmp", "icmp_types": "nonsense"}, '"nonsense" is not an ICMP type'),
        ({"protocol": "udp", "tcp_flags": "syn"}, "only TCP has these flags"),
        ({"protocol": "tcp", "tcp_flags": "syn/fin"}, "asks for flags that are not among those"),
        ({"protocol": "tcp", "tcp_flags": "sin"}, '"sin" does not name TCP flags'),
        ({"source": "@home"}, "there is no set home; add it to sets; there are: empty, office, web"),
        ({"source": "@web"}, "set web is one of ports"),
        ({"protocol": "tcp", "destination_ports": "@office"}, "set office is one of prefixes"),
        ({"source": "10.0.0.1/8"}, '"10.0.0.1/8" has bits set after its first 8; write 10.0.0.0/8'),
        ({"source": "10.0.0.0/8", "destination": "::/0"}, "source and destination are of different"),
        ({"protocol": "icmpv6", "source": "10.0.0.0/8"}, "these addresses are of the other family"),
        (
            {"direction": "local", "interface_out": "eth0"},
            "what is for this machine goes out by no",
        ),
        ({"direction": "local", "after_translation": True}, "what is for this machine is not translated"),
        (
            {"protocol": "tcp", "source_ports": 1, "after_translation": True},
            "the source port after translation is chosen when the rules have decided",
        ),
        ({"dscp": 64}, "64 is out of range for a DSCP class"),
        ({"vlan": 4095}, "4095 is out of range for a VLAN"),
        ({"interface_in": "a/b"}, '"a/b" is not the name of an interface'),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict[str, Any], problem: str) -> None:
    assert problem in refusal(**keys)


def test_rule_of_a_name_that_is_taken_is_refused_with_its_line() -> None:
    text = """
firewall:
  rules:
    - {name: a, action: accept}
    - {name: a, action: drop}
"""
    with pytest.raises(ConfigError, match=r"rules\[1\]\.name \(line 5\): there is already a rule a"):
        parse_config(text)


def test_more_rules_than_there_is_room_for_are_refused_with_the_figure() -> None:
    rules = [{"name": f"r{n}", "action": "drop"} for n in range(11)]
    with pytest.raises(ConfigError, match="10 is too few, this configuration needs 11 firewall rules"):
        config_from_data({"firewall": {"rules": rules}, "limits": {"rules": 10}})


def test_set_is_of_one_kind() -> None:
    with pytest.raises(ConfigError, match="both prefixes and ports are in it; make a set of each"):
        config_from_data({"firewall": {"sets": {"x": [80, "10.0.0.0/8"]}}})


def test_firewall_survives_being_written() -> None:
    rules = [
        {"name": "a", "action": "accept", "protocol": "tcp", "destination_ports": [22, "@web"], "log": True},
        {"name": "b", "action": "reject", "protocol": ["icmp", "icmpv6"], "icmp_types": ["echo-request"]},
        {"name": "c", "action": "drop", "protocol": ["tcp"], "tcp_flags": "syn/syn,ack", "dscp": ["ef", 3]},
        {"name": "d", "action": "drop", "source": ["@office", "fe80::/10"], "interface_out": ["eth0"]},
        {"name": "e", "action": "drop", "destination": "10.0.0.0/8", "after_translation": True, "vlan": 7},
    ]
    config = config_from_data({"firewall": {"default": "drop", "sets": SETS, "rules": rules}})
    assert parse_config(to_yaml(config)) == config
    assert config_from_data(to_data(config, complete=True)) == config


def test_no_firewall_is_not_an_empty_one() -> None:
    assert config_from_data({}).firewall is None
    assert config_from_data({"firewall": {}}).firewall is not None


def test_members_come_on_lines_with_remarks() -> None:
    members = parse_members(b"# all\n10.0.0.0/8\n\n 2001:db8::1 # one\n10.0.0.0/8\n", "x")
    assert list(members) == [ip_network("10.0.0.0/8"), ip_network("2001:db8::1/128")]
    assert parse_members(b"80\n8000-8100\n", "x") == (PortRange(80, 80), PortRange(8000, 8100))


NO_PREFIX = "is not an IPv4 or IPv6 prefix; write for example 10.0.0.0/8 or 2001:db8::/32"
NO_PORT = "is not a port; write for example 443 or 8000-8100"


@pytest.mark.parametrize(
    ("text", "ports", "problems"),
    [
        (
            b"10.0.0.0/8\nnonsense # here\n\n10.0.0.1/8\n80\n",
            False,
            [
                f'x (line 2): "nonsense" {NO_PREFIX}',
                'x (line 4): "10.0.0.1/8" has bits set after its first 8; write 10.0.0.0/8',
            ],
        ),
        (b"\xff\n", False, [f'x (line 1): "\\ufffd" {NO_PREFIX}']),
        (
            b"80\nhttp\n8000:8100\n10.0.0.300\n70000\n",
            True,
            [
                f'x (line 2): "http" {NO_PORT}',
                f'x (line 3): "8000:8100" {NO_PORT}',
                f'x (line 4): "10.0.0.300" {NO_PORT}',
                'x (line 5): "70000" is too large for a port; use 0 to 65535',
            ],
        ),
        (
            b"# ours\n10.0.0.0/8\n10.1.0.0/16\n443\n2001:db8::/32\n80\n",
            False,
            ["x (line 4): both prefixes and ports are in it; make a set of each"],
        ),
        (
            b"443\n2001:db8::/32\n",
            True,
            ["x (line 2): both prefixes and ports are in it; make a set of each"],
        ),
    ],
    ids=["prefixes", "no text", "ports", "port among prefixes", "prefix among ports"],
)
def test_lines_that_are_no_members_are_told_each(text: bytes, ports: bool, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_members(text, "x", ports)
    assert str(refused.value).splitlines() == problems


def test_of_another_file_the_first_lines_are_told() -> None:
    text = b"10.0.0.0/8\n" + b"<html>\n" * 1300
    with pytest.raises(ConfigError) as refused:
        parse_members(text, "x")
    told = str(refused.value).splitlines()
    assert len(told) == 101
    assert told[99] == f'x (line 101): "<html>" {NO_PREFIX}'
    assert told[100] == (
        "x (line 102): from here on there are 1,200 more lines that are no members; is this the right file?"
    )


@pytest.mark.parametrize("text", [b"", b"\n", b"# nothing\n\n"])
def test_text_without_members_empties_no_set(text: bytes) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_members(text, "x")
    assert str(refused.value) == (
        "x: has no members; to empty the set, write [] for it in the configuration and apply that"
    )


@pytest.mark.parametrize(
    ("sets", "expected"),
    [({}, False), ({"s": []}, False), ({"s": ["10.0.0.0/8"]}, False), ({"s": [80]}, True)],
)
def test_set_of_ports_is_known(sets: dict[str, Any], expected: bool) -> None:
    assert holds_ports(config_from_data({"firewall": {"sets": sets}}), "s") is expected
    assert not holds_ports(config_from_data({}), "s")


# ---- JSON, which is read faster ----


def test_json_is_the_same_as_yaml() -> None:
    text = '{"interfaces": [{"name": "eth0"}], "conntrack": {"timeouts": {"udp": "60s"}}}'
    assert parse_config(text) == parse_config("# yaml\n" + text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"interfaces": [],\n "interfaces": []}', r"interfaces \(line 2\): is given twice"),
        ('{"conntrack":\n {"max_flows": 1}}', r"conntrack.max_flows \(line 2\): 1 is too small"),
        ('{"conntrack":\n {"max_flows": 1}', "the bracket of line 1 is not closed"),
    ],
)
def test_what_is_wrong_with_json_is_told_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(text)
