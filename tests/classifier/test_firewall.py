# SPDX-License-Identifier: Apache-2.0
"""A compiled firewall, looked up in the kernel as the data path does, decides as its rules read."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.classifier.lookups import NO_RULE, Lookups
from clearway.compiler.explain import Packet, decide
from clearway.compiler.firewall import compile_rules
from clearway.model import Config, ConfigError, config_from_data
from clearway.model.protocols import TYPES_OF
from tests.classifier import reference

INTERFACES = {"eth0": 2, "eth1": 3, "eth2": 4}
NETWORKS = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "0.0.0.0/0",
    "192.0.2.0/25",
    "2001:db8::/32",
    "2001:db8:1::/64",
    "2001:db8:1::7",
    "::/0",
    "@some",
    "@none",
]
ADDRESSES = {
    4: ["10.0.0.1", "10.1.2.3", "10.1.2.4", "192.0.2.127", "192.0.2.128", "8.8.8.8"],
    6: ["2001:db8::1", "2001:db8:1::7", "2001:db8:1::8", "2001:db9::1", "::1"],
}
PORTS = [22, 80, "1000-2000", "0-65535", "@web"]
NUMBERS = [0, 21, 22, 23, 80, 443, 999, 1000, 2000, 2001, 65535]
TYPES = ["echo-request", "echo-reply", "time-exceeded", "packet-too-big", "redirect"]
SETS = {"some": ["10.1.0.0/17", "2001:db8:1::/65"], "none": [], "web": [80, 443, "8000-8100"]}


def one_or_more(values: list[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(values) | st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


@st.composite
def protocols(draw: st.DrawFn) -> dict[str, Any]:
    """What a rule asks of layer 4."""
    kind = draw(st.sampled_from(["none", "tcp", "ports", "icmp", "number"]))
    if kind == "tcp":
        return {"protocol": "tcp", "tcp_flags": draw(st.sampled_from(["syn", "syn/syn,ack", "none/rst"]))}
    if kind == "ports":
        keys = draw(st.sets(st.sampled_from(["source_ports", "destination_ports"])))
        return {
            "protocol": draw(one_or_more(["tcp", "udp"])),
            **{key: draw(one_or_more(PORTS)) for key in keys},
        }
    if kind == "icmp":
        types = {"icmp_types": draw(one_or_more(TYPES))} if draw(st.booleans()) else {}
        return {"protocol": draw(one_or_more(["icmp", "icmpv6"])), **types}
    return {"protocol": draw(one_or_more([47, "esp", 6]))} if kind == "number" else {}


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """A rule, most of the time one that can be."""
    rule: dict[str, Any] = {"action": draw(st.sampled_from(["accept", "drop", "reject"]))}
    optional = {
        "direction": st.sampled_from(["through", "local", "any"]),
        "source": one_or_more(NETWORKS),
        "destination": one_or_more(NETWORKS),
        "dscp": one_or_more([0, "ef", "cs1"]),
        "vlan": one_or_more([0, 7, 4094]),
        "interface_in": one_or_more([*INTERFACES, "ppp0"]),
    }
    for key, values in optional.items():
        if draw(st.integers(0, 3)) == 0:
            rule[key] = draw(values)
    rule |= draw(protocols())
    if rule.get("direction") != "local" and draw(st.integers(0, 3)) == 0:
        rule["interface_out"] = draw(one_or_more([*INTERFACES]))
        rule["after_translation"] = "source_ports" not in rule and draw(st.booleans())
    return rule


@st.composite
def firewalls(draw: st.DrawFn) -> Config:
    """Rules that cannot be are left out."""
    kept: list[dict[str, Any]] = []
    for rule in draw(st.lists(rules(), max_size=10)):
        candidate = [*kept, {"name": f"rule{len(kept)}", **rule}]
        try:
            config_from_data({"firewall": {"sets": SETS, "rules": candidate}})
        except ConfigError:
            continue
        kept = candidate
    default = draw(st.sampled_from(["accept", "drop"]))
    return config_from_data({"firewall": {"default": default, "sets": SETS, "rules": kept}})


@st.composite
def asked(draw: st.DrawFn, family: int) -> tuple[Packet, Packet]:
    """A packet as it arrives, and as it leaves."""
    protocol = draw(st.sampled_from([6, 6, 17, 17, 47, 50, 1 if family == 4 else 58]))
    local = draw(st.booleans())
    ported = protocol in (6, 17)
    kinds = [*TYPES_OF.get(protocol, {"": 0}).values()]

    def address() -> IPv4Address | IPv6Address:
        text = draw(st.sampled_from(ADDRESSES[family]))
        return IPv4Address(text) if family == 4 else IPv6Address(text)

    packet = Packet(
        protocol=protocol,
        source=address(),
        destination=address(),
        source_port=draw(st.sampled_from(NUMBERS)) if ported else 0,
        destination_port=draw(st.sampled_from(NUMBERS)) if ported else 0,
        icmp_type=draw(st.sampled_from([n for n in kinds if n < 130])) if protocol in (1, 58) else None,
        tcp_flags=draw(st.sampled_from([0x02, 0x12, 0x10, 0x04])) if protocol == 6 else 0,
        dscp=draw(st.sampled_from([0, 8, 46])),
        vlan=draw(st.sampled_from([0, 7, 4094])),
        local=local,
        interface_in=draw(st.sampled_from([*INTERFACES])),
        interface_out=None if local else draw(st.sampled_from([*INTERFACES])),
    )
    port = draw(st.sampled_from(NUMBERS)) if ported else 0
    return packet, replace(packet, source=address(), destination=address(), destination_port=port)


def words(packet: Packet) -> list[int]:
    """As the data path asks (bpf/firewall.h, fields_write)."""
    of_icmp = packet.icmp_type is not None
    return reference.Packet(
        source=packet.source,
        destination=packet.destination,
        protocol=packet.protocol,
        sport=packet.source_port,
        dport=packet.icmp_type or 0 if of_icmp else packet.destination_port,
        dscp=packet.dscp,
        tcp_flags=packet.tcp_flags,
        local=bool(packet.local),
        inside=INTERFACES[packet.interface_in or ""],
        outside=INTERFACES[packet.interface_out] if packet.interface_out else 0,
        vlan=packet.vlan,
    ).words()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_firewall_decides_as_its_rules_read(lookups: Lookups, family: int, data: st.DataObject) -> None:
    config = data.draw(firewalls())
    assert config.firewall is not None
    classifiers = compile_rules(config.firewall, INTERFACES, [])
    pairs = data.draw(st.lists(asked(family), min_size=1, max_size=10))
    found = []
    for number, (after, of_family) in enumerate(classifiers):
        lookups.put(classifiers[after, of_family], number)
        if of_family == family:
            packets = np.array([words(pair[after]) for pair in pairs], np.uint64)
            found.append(lookups.ask(packets, number))
    first = np.minimum.reduce(found).tolist()
    count = len(config.firewall.rules)
    expected = [decide(config, packet, leaves).number - 1 for packet, leaves in pairs]
    assert [count if rule == NO_RULE else rule for rule in first] == expected


@pytest.mark.parametrize("count", [256, 65_536, 100_000])
def test_last_of_many_rules_decides(lookups: Lookups, family: int, count: int) -> None:
    """Before it there are rules for other hosts."""
    hosts = ip_network("10.0.0.0/8" if family == 4 else "2001:db8::/104")
    many = [
        {
            "name": f"r{n}",
            "action": "drop",
            "protocol": "tcp",
            "source": str(hosts[n + 1]),
            "destination_ports": n % 5,
        }
        for n in range(count - 1)
    ]
    last = {"name": "last", "action": "accept", "protocol": "tcp", "destination_ports": 443}
    config = config_from_data({"firewall": {"rules": [*many, last]}, "limits": {"rules": count}})
    assert config.firewall is not None
    classifier = compile_rules(config.firewall, INTERFACES, [])[False, family]
    lookups.put(classifier)
    nobody = hosts[0]
    packet = Packet(6, nobody, nobody, 4000, 443, None, 2, 0, 0, False, "eth0", "eth1")
    places = (0, count // 2, count - 2)
    met = [replace(packet, source=hosts[n + 1], destination_port=n % 5) for n in places]
    asked = [words(one) for one in (packet, *met, replace(packet, destination_port=444))]
    assert lookups.ask(np.array(asked, np.uint64)).tolist() == [count - 1, *places, NO_RULE]
