# SPDX-License-Identifier: Apache-2.0
"""Whole configurations: what is valid, what is refused, and with which words and line."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.model import (
    Config,
    ConfigError,
    PortRange,
    Service,
    config_from_data,
    load_config,
    parse_config,
    to_data,
    to_yaml,
)
from clearway.model.values import next_prime

COMPLETE = """\
interfaces:
  - {name: eth0, hook: auto}
services:
  - name: web
    address: 203.0.113.10        # IPv4 or IPv6
    port: 80
    protocol: tcp
    mode: nat                    # nat | full-nat
    algorithm: maglev            # maglev | round-robin
    endpoints:
      - {address: 10.0.0.2, port: 8080, weight: 1}
nat:
  - {name: out, source: 10.0.0.0/8, interface: eth0, masquerade: true}
conntrack: {max_flows: 1048576, timeouts: {tcp_established: 2h, udp: 60s}}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse_config(text)
    return str(refused.value).splitlines()


def test_complete_configuration_is_read() -> None:
    config = parse_config(COMPLETE)
    assert [(i.name, i.hook) for i in config.interfaces] == [("eth0", "auto")]
    web = config.services[0]
    assert (web.name, web.address, web.port, web.protocol) == ("web", IPv4Address("203.0.113.10"), 80, "tcp")
    assert (web.mode, web.algorithm, web.ports) == ("nat", "maglev", None)
    assert web.endpoints[0].address == IPv4Address("10.0.0.2")
    assert config.nat[0].masquerade
    assert config.conntrack.timeouts.tcp_established == 7_200_000
    assert config.conntrack.timeouts.udp == 60_000
    assert config.conntrack.timeouts.icmp == 60_000


def test_every_section_may_be_left_out() -> None:
    config = parse_config("interfaces: []")
    assert config == Config()
    assert (config.conntrack.max_flows, config.conntrack.midstream) == (65_536, "pick-up")
    assert config.limits.wheel_slots == 2_097_152


def test_configuration_cannot_be_changed() -> None:
    service = parse_config(COMPLETE).services[0]
    for name in Service.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(service, name, None)


def test_where_it_was_read_from_makes_no_difference() -> None:
    moved = parse_config("\n\n" + COMPLETE, "elsewhere")
    assert moved == parse_config(COMPLETE)
    assert moved.origin.line(("services", 0, "port")) == 8


SERVICE = """\
services:
  - name: web
    address: {address}
    port: 80
    protocol: tcp
"""
WEB = SERVICE.format(address="203.0.113.10")
NAT = "nat:\n  - {name: out, source: 10.0.0.0/8, interface: eth0, "
RULE = "firewall:\n  rules:\n    - {name: r, action: drop, protocol: tcp, "
FIRST_RULE = "firewall.rules[0]"
QUOTES = "put the whole value of tcp_flags in quotes, because within braces a comma ends it"

REFUSED = {
    "unknown key": (
        WEB + "    algoritm: maglev\n",
        "services[0].algoritm (line 6): unknown key; did you mean algorithm?",
    ),
    "unknown section": (
        "policies: []",
        "policies (line 1): unknown key; known here: interfaces, services, nat, firewall, scrub, conntrack,"
        " limits",
    ),
    "unknown timeout": (
        "conntrack:\n  timeouts:\n    tcp_establised: 2h",
        "conntrack.timeouts.tcp_establised (line 3): unknown key; did you mean tcp_established?",
    ),
    "missing key": (
        "services:\n  - name: web\n    address: 203.0.113.10\n    protocol: tcp",
        "services[0].port (line 2): is missing; add it: port that clients connect to",
    ),
    "missing key of few values": (
        "services:\n  - name: web\n    address: 203.0.113.10\n    port: 80",
        "services[0].protocol (line 2): is missing; add it: protocol of the service (tcp, udp)",
    ),
    "number in quotes": (
        WEB.replace("80", '"80"'),
        'services[0].port (line 4): "80" is not a whole number; write it without quotes',
    ),
    "fraction": (
        WEB.replace("80", "80.5"),
        "services[0].port (line 4): 80.5 is not a whole number; use a whole number",
    ),
    "fraction in quotes": (
        WEB.replace("80", '"80.5"'),
        'services[0].port (line 4): "80.5" is not a whole number; use a whole number',
    ),
    "word for a number": (
        WEB.replace("80", "http"),
        'services[0].port (line 4): "http" is not a whole number; use a whole number',
    ),
    "number for a name": (
        WEB.replace("web", "12"),
        'services[0].name (line 2): 12 without quotes is a number, not a name; write it in quotes ("12")',
    ),
    "fraction for a name": (
        WEB.replace("web", "1.10"),
        "services[0].name (line 2): 1.1 without quotes is a number, not a name; write it in quotes",
    ),
    "required key mistyped": (
        WEB + "    endpoints: [{adress: 10.0.0.2, port: 80}]",
        "services[0].endpoints[0].adress (line 6): unknown key; did you mean address?",
    ),
    "key mistyped while one is missing that is less alike": (
        WEB.replace("protocol:", "prot:"),
        "services[0].prot (line 5): unknown key; did you mean protocol?",
    ),
    "key of a level below": (
        WEB + "    weight: 2",
        "services[0].weight (line 6): unknown key; it belongs to endpoints[]",
    ),
    "key of another section": (
        WEB + "    pool: 198.51.100.8",
        "services[0].pool (line 6): unknown key; it belongs to nat[]",
    ),
    "key of several levels below": (
        "endpoints: []",
        "endpoints (line 1): unknown key; it belongs to services[] or limits",
    ),
    "key known elsewhere and alike": ("nats: []", "nats (line 1): unknown key; did you mean nat?"),
    "key of nftables": (
        RULE + "dport: 22}",
        f"{FIRST_RULE}.dport (line 3): unknown key; did you mean destination_ports?",
    ),
    "key known elsewhere by its name": (
        RULE + "port: 22}",
        f"{FIRST_RULE}.port (line 3): unknown key; did you mean destination_ports?",
    ),
    "required key by another name": (
        "firewall:\n  rules:\n    - {name: r, target: drop}",
        f"{FIRST_RULE}.target (line 3): unknown key; did you mean action?",
    ),
    "default by another name": (
        "firewall: {policy: drop}",
        "firewall.policy (line 1): unknown key; did you mean default?",
    ),
    "name that has no meaning here": (
        WEB + "    policy: drop",
        "services[0].policy (line 6): unknown key; known here: name, address, port, protocol,"
        " mode, algorithm, maglev_size, ports, netfilter, endpoints",
    ),
    "TCP flags without quotes": (
        RULE + "tcp_flags: fin/fin,syn}",
        f"{FIRST_RULE}.syn (line 3): unknown key; {QUOTES}",
    ),
    "TCP flags without quotes, a slash behind the comma": (
        RULE + "tcp_flags: ack,syn/syn}",
        f"{FIRST_RULE}.syn/syn (line 3): unknown key; {QUOTES}",
    ),
    "port too large": (
        WEB.replace("80", "65536"),
        "services[0].port (line 4): 65536 is too large; use 65535 or less",
    ),
    "port too small": (WEB.replace("80", "0"), "services[0].port (line 4): 0 is too small; use 1 or more"),
    "unknown word": (
        WEB + "    mode: dnat",
        'services[0].mode (line 6): "dnat" is not known here; use nat or full-nat',
    ),
    "neither true nor false": (
        NAT + "masquerade: yes}",
        'nat[0].masquerade (line 2): "yes" is neither true nor false; write true or false',
    ),
    "empty section": (
        "services:\n",
        "services (line 1): a list is needed here, not nothing; "
        "begin each item with a dash, or remove the key",
    ),
    "mapping instead of list": (
        "services: {name: web}",
        "services (line 1): a list is needed here, not a mapping; "
        "begin each item with a dash, or remove the key",
    ),
    "text instead of mapping": (
        "interfaces:\n  - eth0",
        'interfaces[0] (line 2): a mapping is needed here, not "eth0"; '
        "write keys and values (name, hook) or remove the key",
    ),
    "multicast service": (
        SERVICE.format(address="224.0.0.1"),
        "services[0].address (line 3): 224.0.0.1 is a multicast address; "
        "give a unicast address that packets can be routed to",
    ),
    "endpoint of the other family": (
        WEB + '    endpoints: [{address: "2001:db8::2", port: 80}]',
        "services[0].endpoints[0].address (line 6): 2001:db8::2 is IPv6, the service's address is IPv4; "
        "use an IPv4 address such as 10.0.0.2",
    ),
    "endpoint of the other family, IPv6": (
        SERVICE.format(address="2001:db8::1") + "    endpoints:\n      - address: 10.0.0.2\n        port: 80",
        "services[0].endpoints[0].address (line 7): 10.0.0.2 is IPv4, the service's address is IPv6; "
        "use an IPv6 address such as 2001:db8::2",
    ),
    "endpoint twice": (
        WEB + "    endpoints:\n      - {address: 10.0.0.2, port: 80}\n      - {address: 10.0.0.2, port: 80}",
        "services[0].endpoints[1] (line 8): service web already has 10.0.0.2:80; "
        "list it once and give it a larger weight",
    ),
    "endpoint is the service": (
        WEB + "    endpoints: [{address: 203.0.113.10, port: 80}]",
        "services[0].endpoints[0].address (line 6): 203.0.113.10:80 is the service itself; "
        "give the address and port of a server",
    ),
    "negative weight": (
        WEB + "    endpoints: [{address: 10.0.0.2, port: 80, weight: -1}]",
        "services[0].endpoints[0].weight (line 6): -1 is too small; use 0 or more",
    ),
    "ports in mode nat": (
        WEB + "    ports: 1024-2000",
        "services[0].ports (line 6): mode nat keeps the client's port; remove it, or set mode: full-nat",
    ),
    "wheel not prime": (
        WEB + "    maglev_size: 65536",
        "services[0].maglev_size (line 6): 65536 is not a prime number; use 65537 or 65521",
    ),
    "wheel too small": (
        WEB
        + "    maglev_size: 101\n"
        + "    endpoints: [{address: 10.0.0.2, port: 80}, {address: 10.0.0.3, port: 80}]",
        "services[0].maglev_size (line 6): 101 slots are too few to share within 1 %, "
        "these endpoints need 200; "
        "use 211 or a larger prime",
    ),
    "wheel too small for the weights": (
        WEB + "    endpoints: [{address: 10.0.0.2, port: 80}, {address: 10.0.0.3, port: 80, weight: 999}]",
        "services[0].maglev_size (line 2): 65537 slots are too few to share within 1 %, "
        "these endpoints need 100000; use 100003 or a larger prime",
    ),
    "weights that no wheel holds": (
        WEB + "    endpoints: [{address: 10.0.0.2, port: 80}, {address: 10.0.0.3, port: 80, weight: 65535}]",
        "services[0].maglev_size (line 2): 65537 slots are too few to share within 1 %, these endpoints need "
        "6553600; use fewer endpoints or weights that differ less, or round-robin",
    ),
    "round robin too long": (
        WEB
        + "    algorithm: round-robin\n    endpoints:\n      - {address: 10.0.0.2, port: 80, weight: 65535}\n"
        "      - {address: 10.0.0.3, port: 80, weight: 2}",
        "services[0].endpoints (line 7): these weights need a wheel of 65537 slots, "
        "at most 65536 are allowed; "
        "use smaller weights, or weights with a common divisor",
    ),
    "service name twice": (
        WEB + "  - {name: web, address: 203.0.113.11, port: 80, protocol: tcp}",
        "services[1].name (line 6): there is already a service web; give every one a name of its own",
    ),
    "services overlap": (
        WEB + "  - {name: web2, address: 203.0.113.10, port: 80, protocol: tcp}",
        "services[1].address (line 6): 203.0.113.10:80/tcp already belongs to service web; "
        "use another address, port or protocol, or put the endpoints into one service",
    ),
    "interface twice": (
        "interfaces:\n  - name: eth0\n  - name: eth0\n    hook: tc",
        "interfaces[1].name (line 3): there is already an interface eth0; list the interface once",
    ),
    "nat name twice": (
        "nat:\n  - {name: a, source: 10.0.0.0/8, interface: eth0, masquerade: true}\n"
        "  - {name: a, source: 10.0.0.0/9, interface: eth0, masquerade: true}",
        "nat[1].name (line 3): there is already a NAT rule a; give every one a name of its own",
    ),
    "nat rules overlap": (
        "nat:\n  - {name: a, source: 10.0.0.0/8, interface: eth0, masquerade: true}\n"
        "  - {name: b, source: 10.0.0.0/8, interface: eth0, masquerade: true}",
        "nat[1].source (line 3): 10.0.0.0/8 on eth0 already belongs to rule a; "
        "use another prefix or interface, or remove one of the rules",
    ),
    "masquerade and pool": (
        NAT + "masquerade: true, pool: 198.51.100.8}",
        "nat[0].pool (line 2): masquerade is set too; keep one of masquerade and pool",
    ),
    "neither masquerade nor pool": (
        NAT + "masquerade: false}",
        "nat[0] (line 2): neither masquerade nor pool says what to translate to; "
        'set masquerade: true, or for example pool: "198.51.100.8/29"',
    ),
    "pool of the other family": (
        NAT + 'pool: "2001:db8::/120"}',
        "nat[0].pool (line 2): 2001:db8::-2001:db8::ff is IPv6, the source is IPv4; use IPv4 addresses",
    ),
    "pool reversed": (
        NAT + "pool: 198.51.100.9-198.51.100.8}",
        'nat[0].pool (line 2): "198.51.100.9-198.51.100.8" is reversed; write 198.51.100.8-198.51.100.9',
    ),
    "pool too large": (
        NAT + "pool: 198.18.0.0/15}",
        'nat[0].pool (line 2): "198.18.0.0/15" has 131072 addresses; use at most 65536',
    ),
    "ports reversed": (
        NAT + "masquerade: true, ports: 2000-1000}",
        'nat[0].ports (line 2): "2000-1000" is reversed; write "1000-2000"',
    ),
    "port zero": (
        NAT + "masquerade: true, ports: 0-1000}",
        'nat[0].ports (line 2): "0-1000" leaves the ports 1-65535; use ports from 1 to 65535',
    ),
    "too few flows": (
        "conntrack: {max_flows: 10}",
        "conntrack.max_flows (line 1): 10 is too small; use 1024 or more",
    ),
    "huge number": (
        "conntrack: {max_flows: " + "9" * 39 + "}",
        "conntrack.max_flows (line 1): " + "9" * 39 + " is too large; use 67108864 or less",
    ),
    "more rules than the data path can tell apart": (
        "limits: {nats: 65536}",
        "limits.nats (line 1): 65536 is too large; use 65535 or less",
    ),
    "too many services": (
        WEB + "  - {name: dns, address: 203.0.113.10, port: 53, protocol: udp}\nlimits: {services: 1}",
        "limits.services (line 7): 1 is too few, this configuration needs 2 services; use 2 or more",
    ),
    "too many endpoints": (
        WEB
        + "    endpoints: [{address: 10.0.0.2, port: 80}, {address: 10.0.0.3, port: 80}]\n"
        + "limits: {endpoints: 1}",
        "limits.endpoints (line 7): 1 is too few, this configuration needs 2 endpoints; use 2 or more",
    ),
    "too many rules": (
        "limits: {nats: 1}\nnat:\n  - {name: a, source: 10.0.0.0/8, interface: eth0, masquerade: true}\n"
        "  - {name: b, source: 10.0.0.0/9, interface: eth0, masquerade: true}",
        "limits.nats (line 1): 1 is too few, this configuration needs 2 NAT rules; use 2 or more",
    ),
    "too few wheel slots": (
        WEB + "    endpoints: [{address: 10.0.0.2, port: 80}]\nlimits:\n  wheel_slots: 100000",
        "limits.wheel_slots (line 8): 100000 is too few, this configuration needs 131074 slots "
        "(twice the 65537 of all wheels); use 131074 or more",
    ),
}


def test_every_piece_of_flags_without_quotes_is_told() -> None:
    first, *others = problems(RULE + "tcp_flags: syn/fin,syn,rst,ack}")
    assert 'write for example "syn/fin,syn,rst,ack", with the quotes' in first
    assert others == [
        f"{FIRST_RULE}.{flag} (line 3): unknown key; {QUOTES}" for flag in ("syn", "rst", "ack")
    ]
    parse_config(RULE + 'tcp_flags: "syn/fin,syn,rst,ack"}')


@pytest.mark.parametrize(("text", "problem"), REFUSED.values(), ids=REFUSED)
def test_refused_with_place_and_advice(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_every_problem_has_a_line_of_its_own_in_the_order_of_the_file() -> None:
    found = problems(
        COMPLETE.replace("hook: auto", "hook: ebpf")
        .replace("port: 80\n", "port: 0\n")
        .replace("masquerade: true", "masquerde: true")
        .replace("udp: 60s", "udp: 60 s")
    )
    assert [line.split(":")[0] for line in found] == [
        "interfaces[0].hook (line 2)",
        "services[0].port (line 6)",
        "nat[0].masquerde (line 13)",
        "conntrack.timeouts.udp (line 14)",
    ]


def test_same_port_of_another_protocol_is_another_service() -> None:
    config = parse_config(WEB + "  - {name: quic, address: 203.0.113.10, port: 80, protocol: udp}")
    assert [service.protocol for service in config.services] == ["tcp", "udp"]


def test_same_source_on_another_interface_is_another_rule() -> None:
    rules = parse_config(
        NAT + "masquerade: true}\n  - {name: b, source: 10.0.0.0/8, interface: eth1, masquerade: true}"
    ).nat
    assert [rule.interface for rule in rules] == ["eth0", "eth1"]


def test_draining_does_not_change_what_is_valid() -> None:
    """A wheel that is too small is refused whichever endpoints drain: ending a drain is then always valid."""
    text = WEB + "    maglev_size: 101\n    endpoints:\n"
    text += "      - {address: 10.0.0.2, port: 80}\n      - {address: 10.0.0.3, port: 80, drain: true}"
    assert problems(text)[0].startswith("services[0].maglev_size (line 6): 101 slots are too few")


def test_endpoints_without_weight_need_no_slots() -> None:
    config = parse_config(
        WEB + "    endpoints: [{address: 10.0.0.2, port: 80, weight: 0}]\nlimits: {wheel_slots: 2}"
    )
    assert config.services[0].endpoints[0].weight == 0


def test_full_nat_takes_ports() -> None:
    config = parse_config(WEB + "    mode: full-nat\n    ports: 2000-3000")
    assert config.services[0].ports == PortRange(2000, 3000)


def test_json_is_checked_as_the_file_is() -> None:
    data = json.loads(json.dumps(to_data(parse_config(COMPLETE))))
    assert config_from_data(data) == parse_config(COMPLETE)
    data["services"][0]["prot"] = 1
    with pytest.raises(ConfigError) as refused:
        config_from_data(data)
    assert str(refused.value) == "services[0].prot: unknown key; did you mean port?"
    assert refused.value.problems[0].to_dict() == {
        "path": "services[0].prot",
        "line": None,
        "what": "unknown key",
        "fix": "did you mean port?",
    }


@pytest.mark.parametrize("data", [None, [], "web", 3, True])
def test_request_that_is_no_mapping_is_refused(data: object) -> None:
    with pytest.raises(ConfigError, match=r"^request: a mapping is needed, not "):
        config_from_data(data)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda p: p.name
)
def test_example_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.interfaces
    assert config.services or config.nat or config.firewall


# ---- configurations of any kind ----

HOSTS4 = st.integers(int(IPv4Address("10.0.0.1")), int(IPv4Address("10.0.255.254"))).map(IPv4Address)
HOSTS6 = st.integers(int(IPv6Address("fd00::1")), int(IPv6Address("fd00::ffff:ffff"))).map(IPv6Address)
PORTS = st.integers(1, 65535)
DURATIONS = st.integers(100, 864_000_000)


@st.composite
def services(draw: st.DrawFn, index: int) -> dict[str, object]:
    hosts = draw(st.sampled_from([HOSTS4, HOSTS6]))
    version = draw(hosts).version
    endpoints = draw(st.lists(st.tuples(hosts, PORTS), max_size=4, unique=True))
    weights = [draw(st.integers(0, 9)) for _ in endpoints]
    positive = [weight for weight in weights if weight] or [1]
    return {
        "name": f"service{index}",
        "address": f"203.0.113.{index + 1}" if version == 4 else f"2001:db8::{index + 1:x}",
        "port": draw(PORTS),
        "protocol": draw(st.sampled_from(["tcp", "udp"])),
        "mode": draw(st.sampled_from(["nat", "full-nat"])),
        "algorithm": draw(st.sampled_from(["maglev", "round-robin"])),
        "maglev_size": next_prime(-(-100 * sum(positive) // min(positive)) + draw(st.integers(0, 100))),
        "endpoints": [
            {"address": str(address), "port": port, "weight": weight, "drain": draw(st.booleans())}
            for (address, port), weight in zip(endpoints, weights, strict=True)
        ],
    }


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, object]:
    return {
        "interfaces": [{"name": "eth0", "hook": draw(st.sampled_from(["auto", "xdp", "xdp-generic", "tc"]))}],
        "services": [draw(services(index)) for index in range(draw(st.integers(0, 3)))],
        "nat": [
            {"name": "out", "source": "fd00::/8", "interface": "eth0", "pool": "2001:db8::1-2001:db8::9"}
        ],
        "conntrack": {
            "timeouts": {"udp": f"{draw(DURATIONS)}ms"},
            "midstream": draw(st.sampled_from(["drop", "reset"])),
        },
    }


@settings(max_examples=50)
@given(configurations())
def test_configuration_survives_being_written(data: dict[str, object]) -> None:
    config = config_from_data(data)
    assert parse_config(to_yaml(config)) == config
    assert config_from_data(to_data(config, complete=True)) == config
