# SPDX-License-Identifier: Apache-2.0
"""The table by which Linux balances and translates what its rules keep from clearway."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np
import pytest

from clearway.compiler.maglev import Member, maglev_wheel
from clearway.compiler.nft_table import NftTable, nft_tables, removal
from clearway.compiler.tables import EndpointRow, NatRow, ServiceRow, Tables, Wheel
from clearway.model import AddressRange, PortRange

INTERFACES = {7: "wan", 8: "lan"}
PORTS = ("wan", "lan")
LOCAL = (32768, 60999)
VIP = {4: "203.0.113.10", 6: "2001:db8::10"}
NETWORK = {4: "10.0.0.0/24", 6: "fd00::/120"}
RANGE = PortRange(1024, 32767)


def wheel(family: int, weights: tuple[int, ...], size: int) -> tuple[Wheel, tuple[EndpointRow, ...]]:
    first = ip_network(NETWORK[family])[2]
    rows = tuple(EndpointRow(number, 1, first + number, 8080, False) for number in range(len(weights)))
    members = [Member.of(row.address, row.port, weight) for row, weight in zip(rows, weights, strict=True)]
    return Wheel.of(maglev_wheel(members, size)), rows


def service(family: int, slots: Wheel, **other: Any) -> ServiceRow:
    row = ServiceRow(1, ip_address(VIP[family]), 80, "tcp", "nat", "maglev", None, 0, slots)
    return replace(row, **other)


def made(tables: Tables, family: int) -> NftTable:
    return nft_tables(tables, "clearway", INTERFACES, PORTS, LOCAL)[family]


def shares(table: NftTable) -> Counter[str]:
    [rule] = table.services.values()
    return Counter(re.findall(r"\d+ : (\S+) \. 8080", rule))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("weights", [(1,), (1, 1, 1), (1, 2, 5), (2, 3)])
def test_shares_are_those_of_the_wheel(family: int, weights: tuple[int, ...]) -> None:
    slots, endpoints = wheel(family, weights, 65537)
    found = shares(made(Tables(1, services=(service(family, slots),), endpoints=endpoints), family))
    size = sum(found.values())
    assert size <= 1 + 2 * 100 * sum(weights) // min(weights)
    for row, weight in zip(endpoints, weights, strict=True):
        share = found[str(row.address)] / size
        assert share == pytest.approx(weight / sum(weights), rel=0.015)


def test_a_small_wheel_is_taken_as_it_is() -> None:
    slots, endpoints = wheel(4, (1, 1, 1), 251)
    table = made(Tables(1, services=(service(4, slots),), endpoints=endpoints), 4)
    [rule] = table.services.values()
    ends = {row.id: f"{row.address} . 8080" for row in endpoints}
    wanted = ", ".join(f"{slot} : {ends[number]}" for slot, number in enumerate(slots.slots.tolist()))
    assert f"mod 251 seed 0xfb map {{ {wanted} }}" in rule


def test_what_bypasses_rules_is_not_in_it() -> None:
    slots, endpoints = wheel(4, (1,), 11)
    nat = NatRow(1, ip_network("10.1.0.0/16"), 7, None, RANGE, bypass=True)
    tables = Tables(1, services=(service(4, slots, bypass=True),), endpoints=endpoints, nats=(nat,))
    assert nft_tables(tables, "clearway", INTERFACES, PORTS, LOCAL) == {}
    assert nft_tables(Tables(), "clearway", INTERFACES, PORTS, LOCAL) == {}


def test_nat_has_ports_of_the_host_and_the_longest_prefix_first() -> None:
    pool = AddressRange(ip_address("198.51.100.4"), 4)
    rows = (
        NatRow(1, ip_network("10.0.0.0/8"), 7, None, RANGE),
        NatRow(2, ip_network("10.1.0.0/16"), 7, pool, RANGE),
        NatRow(3, ip_network("10.2.0.0/16"), 99, None, RANGE),  # of an interface that is away
    )
    rules = made(Tables(1, nats=rows), 4).postrouting
    assert [rule.split("oifname ")[1] for rule in rules] == [
        '"wan" ip saddr 10.1.0.0/16 meta l4proto { tcp, udp } snat to'
        " 198.51.100.4-198.51.100.7:32768-60999 persistent",
        '"wan" ip saddr 10.1.0.0/16 meta l4proto { icmp, icmpv6 } snat to'
        " 198.51.100.4-198.51.100.7 persistent",
        '"wan" ip saddr 10.0.0.0/8 meta l4proto { tcp, udp } masquerade to :32768-60999',
        '"wan" ip saddr 10.0.0.0/8 meta l4proto { icmp, icmpv6 } masquerade',
    ]


def test_only_what_is_new_is_told() -> None:
    slots, endpoints = wheel(4, (1, 1), 11)
    other = service(4, slots, id=2, port=81)
    mine = tuple(replace(row, service=2) for row in endpoints)
    one = made(Tables(1, services=(service(4, slots),), endpoints=endpoints), 4)
    both = Tables(1, services=(service(4, slots), other), endpoints=(*endpoints, *mine))
    two = made(both, 4)
    [name] = one.services
    [added] = set(two.services) - set(one.services)
    commands = two.commands(frozenset(one.services))
    assert f"add chain ip clearway {added}\n" in commands
    assert f"add chain ip clearway {name}\n" not in commands
    back = one.commands(frozenset(two.services))
    assert back.index("flush chain ip clearway prerouting") < back.index(f"delete chain ip clearway {added}")
    assert "delete table" not in back
    assert "delete table ip clearway\n" in one.commands(None)


def test_the_same_slots_with_another_address_are_another_chain() -> None:
    slots, endpoints = wheel(4, (1, 1), 11)
    moved = (replace(endpoints[0], address=ip_address("10.0.0.77")), endpoints[1])
    chains = [
        set(made(Tables(1, services=(service(4, slots),), endpoints=rows), 4).services)
        for rows in (endpoints, moved)
    ]
    assert chains[0] != chains[1]


def test_round_robin_goes_by_turns_and_nobody_to_take_them_is_left_out() -> None:
    slots = Wheel.of(np.array([0, 1, 0], np.uint32))
    _slots, endpoints = wheel(4, (1, 1), 11)
    row = service(4, slots, algorithm="round-robin", mode="full-nat", ports=RANGE)
    table = made(Tables(1, services=(row,), endpoints=endpoints), 4)
    [rule] = table.services.values()
    assert "numgen inc mod 3 map { 0 : 10.0.0.2 . 8080, 1 : 10.0.0.3 . 8080, 2 : 10.0.0.2 . 8080 }" in rule
    assert "ct original proto-dst 80 masquerade to :32768-60999" in table.postrouting[0]
    empty = service(4, Wheel.of(np.zeros(0, np.uint32)))
    assert nft_tables(Tables(1, services=(empty,)), "clearway", INTERFACES, PORTS, LOCAL) == {}


def test_removal_does_not_mind_what_is_not_there() -> None:
    assert removal("x") == ("add table ip x\ndelete table ip x\nadd table ip6 x\ndelete table ip6 x\n")
