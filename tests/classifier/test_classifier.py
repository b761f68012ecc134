# SPDX-License-Identifier: Apache-2.0
"""A compiled classifier, looked up in the kernel, says what going through the rules one by one says."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.classifier.lookups import NO_RULE, Lookups
from bench.classifier.rules import conditions as realistic
from bench.classifier.rules import packets as realistic_packets
from clearway.compiler.classifier import Condition, Sets, TooBigError, build, compile_classifier
from clearway.compiler.classifier.conditions import IFINDEX_MAX
from clearway.compiler.classifier.relax import GROUPS
from clearway.datapath import bpf
from clearway.datapath.loader import load_object
from clearway.model import IPAddress, IPNetwork, PortRange
from tests.classifier.reference import Packet, first_rule
from tests.classifier.strategies import CONDITIONS, SETS, WIDTH, packets
from tools.build_bpf import Unit, command_of

ROOT = Path(__file__).parents[2]
NO_SETS = Sets()
ANYBODY: dict[int, IPAddress] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8:ffff::1")}
SERVER: dict[int, IPAddress] = {4: IPv4Address("10.0.0.1"), 6: IPv6Address("2001:db8::1")}


def ask(lookups: Lookups, packets: Sequence[Packet], place: int = 0) -> list[int | None]:
    """The first rule of each, by number."""
    found = lookups.ask(np.array([packet.words() for packet in packets], np.uint64), place).tolist()
    return [None if rule == NO_RULE else rule for rule in found]


def check(
    lookups: Lookups, conditions: Sequence[Condition], sets: Sets, family: int, asked: Sequence[Packet]
) -> None:
    lookups.put(compile_classifier(conditions, sets, family, told(conditions)))
    assert ask(lookups, asked) == [first_rule(conditions, sets, packet) for packet in asked]
    check_told(lookups, asked)


def told(conditions: Sequence[Condition]) -> list[int]:
    return [0xFFFF_FFFF - number for number in range(len(conditions))]


def check_told(lookups: Lookups, asked: Sequence[Packet]) -> None:
    """What is told belongs to the rule that was found."""
    rules, words = lookups.answers(np.array([packet.words() for packet in asked], np.uint64))
    met = rules != NO_RULE
    assert (words[met] == 0xFFFF_FFFF - rules[met]).all()


def packet(family: int, **of_it: Any) -> Packet:
    return replace(Packet(ANYBODY[family], SERVER[family]), **of_it)


def network(family: int, number: int, length: int) -> IPNetwork:
    """A prefix inside 10.0.0.0/8 or 2001:db8::/32."""
    base, low = (10 << 24 if family == 4 else 0x20010DB8 << 96), WIDTH[family] - length
    number = (base | number) >> low << low
    return IPv4Network((number, length)) if family == 4 else IPv6Network((number, length))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_first_rule_is_found(lookups: Lookups, family: int, data: st.DataObject) -> None:
    sets = data.draw(SETS)
    conditions = data.draw(st.lists(CONDITIONS, max_size=12))
    asked = data.draw(st.lists(packets(conditions, sets, family), min_size=1, max_size=12))
    check(lookups, conditions, sets, family, asked)


# ---- one field at a time ----


@pytest.mark.parametrize(
    ("condition", "meets", "does_not"),
    [
        (Condition(protocols=(6, 17)), {"protocol": 17}, {"protocol": 1}),
        (Condition(dport=(PortRange(23, 23), PortRange(2323, 2330))), {"dport": 2330}, {"dport": 2331}),
        (Condition(sport=(PortRange(1024, 65535),)), {"sport": 1024}, {"sport": 1023}),
        (Condition(dscp=(46,)), {"dscp": 46}, {"dscp": 45}),
        (Condition(tcp_flags=(0x12, 0x02)), {"tcp_flags": 0x03}, {"tcp_flags": 0x12}),
        (Condition(local=True), {"local": True}, {"local": False}),
        (Condition(local=False), {"local": False}, {"local": True}),
        (Condition(interfaces_in=(3,)), {"inside": 3}, {"inside": 4}),
        (Condition(interfaces_out=(3, 5)), {"outside": 5}, {"outside": 4}),
        (Condition(vlans=(100,)), {"vlan": 100}, {"vlan": 0}),
        (Condition(marks=(0, 127)), {"mark": 127}, {"mark": 63}),
    ],
)
def test_each_field_counts(
    lookups: Lookups, family: int, condition: Condition, meets: dict[str, int], does_not: dict[str, int]
) -> None:
    lookups.put(compile_classifier([condition], NO_SETS, family))
    assert ask(lookups, [packet(family, **meets), packet(family, **does_not)]) == [0, None]


def test_interfaces_with_large_indexes_are_nobody_elses(lookups: Lookups, family: int) -> None:
    """They have 26 bits; those that do not fit are all alike, and no rule can ask for them."""
    lookups.put(compile_classifier([Condition(interfaces_in=(IFINDEX_MAX,))], NO_SETS, family))
    indexes = (IFINDEX_MAX, IFINDEX_MAX + 1, IFINDEX_MAX + 2, (1 << 31) - 1, (1 << 26 | IFINDEX_MAX))
    assert ask(lookups, [packet(family, inside=index) for index in indexes]) == [0, None, None, None, None]


def test_no_rule_and_no_classifier_are_no_match(lookups: Lookups, family: int) -> None:
    lookups.put(compile_classifier([], NO_SETS, family))
    assert ask(lookups, [packet(family)]) == [None]
    assert ask(lookups, [packet(family)], place=15) == [None]
    assert ask(lookups, [packet(family)], place=99) == [None]


def test_rules_of_the_other_family_do_not_count(lookups: Lookups, family: int) -> None:
    other = network(10 - family, 0, 8)
    conditions = [Condition(source=(other,)), Condition(source=(other, network(family, 0, 0)))]
    assert compile_classifier(conditions, NO_SETS, family).shadowed == {0: ()}
    check(lookups, conditions, NO_SETS, family, [packet(family)])


def test_classifiers_do_not_disturb_each_other(lookups: Lookups, family: int) -> None:
    for place in range(4):
        rules = [Condition(dport=(PortRange(80, 80),))] * place + [Condition(dport=(PortRange(81, 81),))]
        lookups.put(compile_classifier(rules, NO_SETS, family), place)
    for place in range(4):
        assert ask(lookups, [packet(family, dport=81)], place) == [place]


# ---- many ----


@pytest.mark.parametrize("count", [1, 256, 65_536, 100_000])
def test_last_of_many_rules_decides(lookups: Lookups, family: int, count: int) -> None:
    """All but the last ask for other clients, each for one."""
    clients = [network(family, 1 + n << 1, WIDTH[family]) for n in range(count - 1)]
    others = [Condition(source=(client,)) for client in clients]
    classifier = compile_classifier([*others, Condition(dport=(PortRange(22, 22),))], NO_SETS, family)
    lookups.put(classifier)
    found = ask(lookups, [packet(family, dport=22), packet(family, dport=23)])
    assert found == [count - 1, None]
    step = max(1, count // 500)
    asked = [packet(family, source=client[0], dport=22) for client in clients[::step]]
    assert not asked or ask(lookups, asked) == list(range(0, count - 1, step))


def test_rules_by_the_thousand(lookups: Lookups, family: int) -> None:
    rules = realistic(5000, family)
    asked = realistic_packets(rules, 400, family)
    lookups.put(compile_classifier(rules, NO_SETS, family))
    found = lookups.ask(asked).tolist()
    make = IPv4Address if family == 4 else IPv6Address
    for words, rule in zip(asked.tolist(), found, strict=True):
        client, server = (
            make(words[at] if family == 4 else words[at] << 64 | words[at + 1]) for at in (0, 2)
        )
        fourth = words[4]
        same = Packet(client, server, fourth >> 24 & 0xFF, fourth >> 48, fourth >> 32 & 0xFFFF)
        assert rule == first_rule(rules, NO_SETS, same)


def _most_lengths(rule: Condition) -> int:
    """The most special ones first."""
    assert isinstance(rule.source, tuple) and isinstance(rule.destination, tuple)
    return -sum(one.prefixlen for one in rule.source + rule.destination)


def test_more_kinds_of_rules_than_groups(lookups: Lookups, family: int) -> None:
    """All lengths of prefixes on both sides, with and without ports: looser masks, and chains behind them."""
    chance = random.Random(family)
    width = WIDTH[family]

    def some_network() -> tuple[IPNetwork, ...]:
        return (network(family, chance.choice((0, 1, 3, 255, 256)), chance.randrange(8, width + 1)),)

    rules = [
        Condition(some_network(), some_network(), dport=(PortRange(80, 80 + chance.randrange(4)),))
        for _ in range(2000)
    ]
    rules.sort(key=_most_lengths)  # or many would stand behind more general ones
    classifier = compile_classifier(rules, NO_SETS, family)
    assert GROUPS / 2 < classifier.groups <= GROUPS
    make = IPv4Address if family == 4 else IPv6Address
    base = int(network(family, 0, 8).network_address) if family == 4 else 0x20010DB8 << 96
    ends = [make(base + chance.choice((0, 1, 2, 3, 4, 255, 256, 257, 1 << 20))) for _ in range(600)]
    asked = [
        packet(family, source=one, destination=other, dport=chance.randrange(79, 85))
        for one, other in zip(ends[:300], ends[300:], strict=True)
    ]
    check(lookups, rules, NO_SETS, family, asked)


# ---- sets ----


def test_sets_that_overlap(lookups: Lookups, family: int) -> None:
    """Prefixes within each other, hundreds deep; rules ask for two sets of addresses and two of ports."""
    width = WIDTH[family]
    nested = {f"n{n}": [network(family, 1, width - n % 20)] for n in range(200)}
    ports = {f"p{n}": [PortRange(100 - n, 100 + n)] for n in range(100)}
    sets = Sets(nested, ports)
    chance = random.Random(1)
    names, services = list(nested), list(ports)
    rules = [
        Condition(
            source=chance.choice(names),
            destination=chance.choice(names),
            sport=chance.choice(services),
            dport=chance.choice(services),
            protocols=(chance.choice((6, 17, 132)),),
        )
        for _ in range(1000)
    ]
    make = IPv4Address if family == 4 else IPv6Address
    base = int(network(family, 0, 8).network_address) if family == 4 else 0x20010DB8 << 96
    asked = [
        packet(
            family,
            source=make(base + chance.choice((0, 1, 2, 1 << 10, 1 << 19))),
            destination=make(base + chance.choice((0, 1, 2, 1 << 10, 1 << 19))),
            sport=100 + chance.randrange(-100, 101) if chance.random() < 0.5 else 100,
            dport=100 + chance.randrange(-100, 101),
            protocol=chance.choice((6, 17)),
        )
        for _ in range(300)
    ]
    check(lookups, rules, sets, family, asked)


@pytest.mark.parametrize("parts", [(0,), (1,), (2,), (3,), (1, 2), (0, 3), (0, 1, 2, 3)])
def test_both_halves_of_all_addresses(lookups: Lookups, family: int, parts: tuple[int, ...]) -> None:
    """The uppermost bit of an IPv6 address tells which of two trees has it; quarters are on either side, or
    next to that bound.
    """
    width = WIDTH[family]
    make, prefix = (IPv4Address, IPv4Network) if family == 4 else (IPv6Address, IPv6Network)
    quarter = 1 << width - 2
    rules = [Condition(source=(prefix((part * quarter, 2)),)) for part in parts]
    asked = [
        packet(family, source=make(part * quarter + at)) for part in range(4) for at in (0, 1, quarter - 1)
    ]
    check(lookups, rules, NO_SETS, family, asked)


def test_set_of_many_prefixes(lookups: Lookups, family: int) -> None:
    """Every second one of 100,000 hosts, also where 50,000 of them share the upper half of an address."""
    width = WIDTH[family]
    bad = [network(family, 2 * n, width) for n in range(50_000)]
    sets = Sets({"bad": bad})
    lookups.put(compile_classifier([Condition(source="bad")], sets, family))
    make = IPv4Address if family == 4 else IPv6Address
    base = int(bad[0].network_address)
    numbers = [-1, 0, 1, 2, 3, 4998, 4999, 99_998, 99_999, 100_000]
    found = ask(lookups, [packet(family, source=make(base + number)) for number in numbers])
    assert found == [None, 0, None, 0, None, 0, None, 0, None, None]


def test_set_that_changes_leaves_rules_alone(lookups: Lookups, family: int) -> None:
    rules = [Condition(source="office"), Condition()]
    for prefixes in ([network(family, 0, WIDTH[family])], [], [network(family, 0, 0)]):
        lookups.put(compile_classifier(rules, Sets({"office": prefixes}), family))
        client = packet(family, source=network(family, 0, WIDTH[family])[0])
        everybody = bool(prefixes) and prefixes[0].prefixlen == 0
        assert ask(lookups, [client, packet(family)]) == [int(not prefixes), int(not everybody)]


def test_set_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match="office"):
        compile_classifier([Condition(source="office")], NO_SETS, 4)


# ---- what cannot be, and what is told ----


def test_rules_behind_the_same_ones_are_told() -> None:
    ssh = Condition(dport=(PortRange(22, 22),), protocols=(6,))
    rules = [ssh, Condition(), ssh, Condition(protocols=(6,)), Condition()]
    assert compile_classifier(rules, NO_SETS, 4).shadowed == {2: (0,), 3: (1,), 4: (1,)}


@pytest.mark.parametrize(
    ("earlier", "later", "covers"),
    [
        (Condition(), Condition(protocols=(6,)), True),
        (Condition(protocols=(6,)), Condition(), False),
        (Condition(protocols=(6,)), Condition(protocols=(6, 17)), False),
        (Condition(protocols=(6, 17)), Condition(protocols=(17,)), True),
        (Condition(dport=(PortRange(1, 1000),)), Condition(dport=(PortRange(22, 22),)), True),
        (Condition(dport=(PortRange(23, 1000),)), Condition(dport=(PortRange(22, 22),)), False),
        (Condition(source="s"), Condition(source="s", dport=(PortRange(22, 22),)), True),
        (Condition(source="s"), Condition(source="t"), False),
        (Condition(source="s", protocols=(6,)), Condition(source="s"), False),
        (Condition(local=True), Condition(local=True, dscp=(8,)), True),
        (Condition(local=True), Condition(local=False), False),
    ],
)
def test_rules_behind_more_general_ones_are_told(
    lookups: Lookups, family: int, earlier: Condition, later: Condition, covers: bool
) -> None:
    sets = Sets({"s": [network(family, 0, 16)], "t": [network(family, 1 << 20, 16)]})
    assert compile_classifier([earlier, later], sets, family).shadowed == ({1: (0,)} if covers else {})


def test_rule_behind_a_network_is_told(family: int) -> None:
    wide, narrow = network(family, 0, 16), network(family, 1, WIDTH[family])
    rules = [Condition(source=(wide,)), Condition(source=(narrow,)), Condition(destination=(narrow,))]
    assert compile_classifier(rules, NO_SETS, family).shadowed == {1: (0,)}
    several = [Condition(protocols=(6,)), Condition(protocols=(17,)), Condition(protocols=(6, 17))]
    assert compile_classifier(several, NO_SETS, family).shadowed == {2: (0, 1)}


def test_too_many_lists_are_refused_with_the_figure() -> None:
    hosts = [IPv4Network((2 * host, 32)) for host in range(20 + 17)]

    def some(number: int) -> tuple[IPNetwork, ...]:
        return (*hosts[:20], *(host for bit, host in enumerate(hosts[20:]) if number >> bit & 1))

    rules = [Condition(source=some(number)) for number in range(65_536)]
    with pytest.raises(TooBigError, match="more than 65,535 different sets and longer lists of sources"):
        compile_classifier(rules, NO_SETS, 4)


def test_too_many_look_ups_are_refused_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [Condition(source=(network(4, 0, length),)) for length in range(19, 8, -1)]
    monkeypatch.setattr(build, "STEPS_MAX", 11)
    assert compile_classifier(rules, NO_SETS, 4).steps == 11
    monkeypatch.setattr(build, "STEPS_MAX", 10)
    with pytest.raises(TooBigError, match="could take 11 look-ups for one packet"):
        compile_classifier(rules, NO_SETS, 4)


def test_every_field_of_a_condition_is_asked_for_somewhere() -> None:
    """A rule that asks for anything is not the rule that asks for nothing."""
    samples: dict[str, Any] = {
        "source": (network(4, 0, 8),),
        "destination": "a",
        "sport": (PortRange(1, 3),),
        "dport": "b",
        "protocols": (6,),
        "dscp": (1,),
        "tcp_flags": (2, 2),
        "local": False,
        "interfaces_in": (1,),
        "interfaces_out": (1,),
        "vlans": (1,),
        "marks": (1,),
    }
    assert set(samples) == {field.name for field in fields(Condition)}
    sets = Sets({"a": []}, {"b": []})
    for name, value in samples.items():
        condition = replace(Condition(), **{name: value})
        assert compile_classifier([condition, Condition()], sets, 4).shadowed == {}


@pytest.mark.parametrize("compiler", ["clang", "clang-19"])
def test_program_passes_the_verifier(tmp_path: Path, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    output = tmp_path / "classify.bpf.o"
    command = command_of(Unit(Path("bench/classify.bpf.c"), "classify"), compiler)
    subprocess.run([*command, "-o", str(output)], cwd=ROOT, check=True, capture_output=True)
    with load_object(output, log_dir=tmp_path) as loaded:
        assert bpf.program_info(loaded.program_fd("ask_all")).verified_insns < 100_000
