# SPDX-License-Identifier: Apache-2.0
"""What `make bench-transparent` puts in the way of packets, and what it makes of its samples."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bench.results import Report
from bench.roads import BEHIND_CLIENT
from bench.transparent import established, first, vm
from bench.transparent.emulated import System, flowtable
from bench.transparent.router import EMPTY, Sample
from bench.transparent.rules import ELSEWHERE, ESTABLISHED, containers, filter_rules, no_filter
from clearway.lab import Topology

FAMILIES = (4, 6)
CLIENTS = [plan for plan in Topology(clients=2, servers=0).hosts() if plan.name.startswith("client")]


def rules_of(text: str) -> list[str]:
    """The lines between the chain's policy and its end."""
    lines = [line.strip() for line in text.splitlines()]
    start = next(number for number, line in enumerate(lines) if "policy drop;" in line)
    return lines[start + 1 : lines.index("}", start)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 100, 1000])
def test_packets_go_through_all_rules_or_none(family: int, count: int) -> None:
    *rules, accepting, _ = rules_of(filter_rules(count, family, established_first=False))
    assert (len(set(rules)), accepting) == (count, ESTABLISHED)
    accepting, *same, _ = rules_of(filter_rules(count, family, established_first=True))
    assert (same, accepting) == (rules, ESTABLISHED)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_rule_asks_for_who_takes_part(family: int) -> None:
    taking_part = [ip_network(BEHIND_CLIENT[family])]
    for plan in Topology().hosts():
        taking_part.append((plan.ipv4 if family == 4 else plan.ipv6).network)
    assert not any(ELSEWHERE[family].overlaps(network) for network in taking_part)
    for rule in rules_of(filter_rules(1000, family, established_first=False))[:1000]:
        words = rule.split()
        address = words[1 + next(at for at, word in enumerate(words) if word in ("saddr", "daddr"))]
        assert ip_network(address).subnet_of(ELSEWHERE[family])  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_take_the_place_of_the_last_ones(family: int) -> None:
    assert filter_rules(1, family, established_first=False).startswith(no_filter(family))


def test_first_container_has_a_published_port() -> None:
    text = containers(CLIENTS, 4).splitlines()
    assert "-A DOCKER ! -i client1 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.1.2:80" in text
    assert "-A POSTROUTING -s 10.1.2.0/24 ! -o client2 -j MASQUERADE" in text
    assert "-A DOCKER -d 10.1.1.2 ! -i client1 -o client1 -p tcp -m tcp --dport 80 -j ACCEPT" in text


def test_address_of_ipv6_stands_in_brackets_before_a_port() -> None:
    assert "--to-destination [fd00:1:1::2]:80" in containers(CLIENTS, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_chain_that_is_jumped_to_is_declared(family: int) -> None:
    for table in containers(CLIENTS, family).split("COMMIT\n")[:-1]:
        lines = table.splitlines()
        declared = {line[1:].split()[0] for line in lines if line.startswith(":")}
        targets = {line.rpartition("-j ")[2].split()[0] for line in lines if line.startswith("-A")}
        assert targets - declared <= {"ACCEPT", "DROP", "RETURN", "MASQUERADE", "DNAT"}


def test_flowtable_is_between_the_clients_and_the_outside() -> None:
    assert "devices = { client1, uplink };" in flowtable(4)


def samples(rate: float, left: float = 0.0) -> list[Sample]:
    return [Sample(rate, 1e9 / rate, left)] * 3


def test_speed_of_linux_is_not_taken_for_clearways() -> None:
    report = Report({})
    case = established.case_of(4, 1000, established.TARGET_RULES, established_first=False)
    measured = {"plain": samples(1e6), "tc": samples(2e6), "xdp": samples(6e6, left=1.0)}
    established.report_case(report, case, measured)
    established.set_targets(report, 4, 1000, measured)
    assert {target.name: target.met for target in report.targets} == {
        f"{case}, tc: packets per second": True,
        f"{case}, tc: packets that clearway left to Linux": True,
        f"{case}, xdp: packets per second": True,
        f"{case}, xdp: packets that clearway left to Linux": False,
    }


@pytest.mark.parametrize(("more", "met"), [(399.0, True), (401.0, False)])
def test_first_packet_is_held_to_its_difference(more: float, met: bool) -> None:
    report = Report({})
    samples = {"plain": [2000.0, 9000.0], "tc": [2000 + more, 9000 + more]}
    empty = {system: [3000.0, 9500.0] for system in EMPTY}  # tells how much of it is the hook's: no target
    first.report_costs(report, 4, first.FIRST, samples | empty)
    assert [(target.name.partition(":")[0], target.met) for target in report.targets] == [("IPv4, tc", met)]
    assert len([one for one in report.results if one.metric == first.more(first.FIRST)]) == 1 + len(EMPTY)


def test_adopted_masquerade_is_held_to_both_of_the_kernels() -> None:
    report = Report({})
    above = {
        System.FORWARD: [2600.0],
        System.MASQUERADE: [4900.0],
        System.FLOWTABLE: [2100.0],
        System.ADOPTED: [2000.0],
        System.IPVS_BARE: [4000.0],
        System.IPVS: [4200.0],
        System.LEARNED: [2000.0],
    }
    vm.report_family(report, "IPv4", above, {System.ADOPTED: [0.0], System.LEARNED: [0.0]})
    assert {target.name: target.met for target in report.targets} == {
        "IPv4, clearway: instructions per packet above generator": True,
        "IPv4, clearway: instructions per packet above generator, beside nf_flowtable": False,
        "IPv4, clearway beside IPVS: instructions per packet above generator": True,
        "IPv4, clearway: packets that clearway left to Linux": True,
        "IPv4, clearway beside IPVS: packets that clearway left to Linux": True,
    }
