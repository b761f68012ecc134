# SPDX-License-Identifier: Apache-2.0
"""What rules are credited with, of made-up connections."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest

from clearway.daemon.accounts import Accounts, Array, Rules, Sum, met
from clearway.daemon.linux_counters import LinuxCounters, Place
from clearway.datapath.flows import CONNECTION
from clearway.linux.ruleset import Ruleset
from clearway.proof import Kind

NAMES = {2: "lan", 3: "wan"}
NOBODY = np.zeros(0, CONNECTION)


def chain(name: str, hook: str = "", **more: Any) -> dict[str, Any]:
    content = {"family": "inet", "table": "t", "name": name, "handle": 100 + len(name), **more}
    if hook:
        content |= {"type": "filter", "hook": hook, "prio": 0, "policy": "accept"}
    return {"chain": content}


def rule(chain: str, handle: int, *expressions: Any) -> dict[str, Any]:
    content = {"family": "inet", "table": "t", "chain": chain, "handle": handle, "expr": list(expressions)}
    return {"rule": content}


def meets(key: str, value: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": value}}


def goes_to(address: str) -> dict[str, Any]:
    protocol = "ip" if "." in address else "ip6"
    left = {"payload": {"protocol": protocol, "field": "daddr"}}
    return {"match": {"op": "==", "left": left, "right": address}}


COUNTER: dict[str, Any] = {"counter": {"packets": 0, "bytes": 0}}
ACCEPT: dict[str, Any] = {"accept": None}


def ruleset(*objects: dict[str, Any], made: int = 1) -> Ruleset:
    table = {"table": {"family": "inet", "name": "t", "handle": made}}
    return Ruleset(1, json.dumps({"nftables": [table, *objects]}), {}, frozenset())


def rules_of(found: Ruleset) -> Rules:
    return Rules.of(found)


def connection(client: str = "10.0.0.2", server: str = "192.0.2.1", **fields: Any) -> Array:
    """One of TCP from lan to wan, which has carried 3 packets of 100 bytes there, 5 of 1000 back."""
    row = np.zeros(1, CONNECTION)
    row["family"], row["proto"], row["paired"], row["born"] = ip_address(client).version, 6, True, 7
    for name, address, port in (("client", client, 40000), ("destination", server, 80)):
        octets = np.frombuffer(ip_address(address).packed, np.uint8)
        for column in (name, {"client": "source_out", "destination": "destination_out"}[name]):
            row[column][0, : len(octets)] = octets
            row[f"{column}_port"] = port
    row["inside"], row["ifindex"], row["reply_inside"], row["reply_ifindex"] = 2, 3, 3, 2
    row["packets"], row["bytes"], row["reply_packets"], row["reply_bytes"] = 3, 300, 5, 5000
    for name, value in fields.items():
        row[name] = value
    return row


SIMPLE = (
    chain("allowed", "forward"),
    rule("allowed", 5, COUNTER),
    rule("allowed", 6, meets("iifname", "lan"), COUNTER, ACCEPT),
    rule("allowed", 7, COUNTER),
)


def place(handle: int, kind: str = "rule", made: int = 1) -> Place:
    return Place(kind, "inet", "t", made, handle)


@pytest.fixture
def accounts() -> Accounts:
    made = Accounts()
    made.go_on_with(rules_of(ruleset(*SIMPLE)))
    return made


ONCE = {place(5): Sum(8, 5300), place(6): Sum(3, 300), place(7): Sum(5, 5000)}


def test_each_direction_meets_its_own_rules(accounts: Accounts) -> None:
    accounts.settle(connection(), NOBODY, NAMES)
    assert accounts.sums == ONCE


def test_only_what_has_come_since_is_credited(accounts: Accounts) -> None:
    for packets in (3, 3, 4):
        accounts.settle(connection(packets=packets, bytes=100 * packets), NOBODY, NAMES)
    accounts.settle(NOBODY, connection(packets=6, bytes=600), NAMES)
    assert accounts.sums[place(6)] == Sum(6, 600)
    assert accounts.sums[place(7)] == ONCE[place(7)]


def test_end_that_is_told_late_counts_once(accounts: Accounts) -> None:
    """It was freed before the table was read, and its record was written after the ring was."""
    accounts.settle(connection(), NOBODY, NAMES)
    accounts.settle(NOBODY, NOBODY, NAMES)
    accounts.settle(NOBODY, connection(), NAMES)
    assert accounts.sums == ONCE


def test_end_that_comes_while_the_table_is_read_counts_once(accounts: Accounts) -> None:
    accounts.settle(connection(packets=1, bytes=100), connection(), NAMES)
    assert accounts.sums == ONCE


def test_end_alone_is_credited(accounts: Accounts) -> None:
    accounts.settle(connection(packets=1, bytes=100), NOBODY, NAMES)
    accounts.settle_ended(connection(), NAMES)
    accounts.settle(NOBODY, NOBODY, NAMES)
    assert accounts.sums == ONCE


def test_another_connection_of_the_same_addresses_is_another(accounts: Accounts) -> None:
    accounts.settle(connection(), NOBODY, NAMES)
    accounts.settle(connection(born=8), connection(), NAMES)
    assert accounts.sums[place(6)] == Sum(6, 600)


def test_rules_keep_their_accounts_and_new_ones_begin(accounts: Accounts) -> None:
    accounts.settle(connection(), NOBODY, NAMES)
    changed = (SIMPLE[0], rule("allowed", 9, COUNTER), *SIMPLE[2:])
    accounts.go_on_with(rules_of(ruleset(*changed)))
    accounts.settle(connection(packets=4, bytes=400), NOBODY, NAMES)
    assert accounts.sums == {place(9): Sum(1, 100), place(6): Sum(4, 400), place(7): Sum(5, 5000)}


def test_table_made_again_begins_with_nothing(accounts: Accounts) -> None:
    accounts.settle(connection(), NOBODY, NAMES)
    accounts.go_on_with(rules_of(ruleset(*SIMPLE, made=2)))
    assert accounts.sums == {}
    accounts.settle(connection(packets=4, bytes=400), NOBODY, NAMES)
    assert accounts.sums[place(6, made=2)] == Sum(1, 100)


def test_counter_with_a_name_is_met_through_every_rule() -> None:
    named = {"counter": {"family": "inet", "table": "t", "name": "c", "handle": 2, "packets": 0, "bytes": 0}}
    twice = [rule("allowed", handle, {"counter": "c"}) for handle in (5, 6)]
    found = rules_of(ruleset(named, chain("allowed", "forward"), *twice))
    accounts = Accounts()
    accounts.go_on_with(found)
    accounts.settle(connection(), NOBODY, NAMES)
    assert accounts.sums == {place(2, "counter"): Sum(16, 10600)}


def test_map_of_objects_is_left_to_linux_and_has_no_account() -> None:
    port = {"payload": {"protocol": "tcp", "field": "dport"}}
    mapped = {"map": {"key": port, "data": {"set": [[80, "c"]]}}}
    named = {"counter": {"family": "inet", "table": "t", "name": "c", "handle": 2, "packets": 3, "bytes": 90}}
    kinds = ("counter", "quota", "limit", "ct helper")
    rules = [rule("allowed", 5 + n, {kind: mapped}, ACCEPT) for n, kind in enumerate(kinds)]
    found = rules_of(ruleset(named, chain("allowed", "forward"), *rules))
    assert [(one.place, one.packets) for one in found.counters.counters] == [(place(2, "counter"), 3)]
    assert [(one.kind, one.name.text) for one in found.proof.rules] == [
        (Kind.OPAQUE, f"{said} tcp dport map {{ 80 : c }} accept")
        for said in ("counter name", "quota name", "limit name", "ct helper set")
    ]


def test_policy_of_iptables_counts_what_comes_through() -> None:
    written = "-A FORWARD -i lan -p tcp -m tcp --dport 80 -j ACCEPT"
    save = f"*filter\n:FORWARD ACCEPT [7:70]\n[1:10] {written}\nCOMMIT\n"
    head = {"family": "ip", "table": "filter"}
    base = {**head, "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0}
    matched = {**head, "chain": "FORWARD", "handle": 4}
    objects = [
        {"table": {"family": "ip", "name": "filter", "handle": 3}},
        {"chain": {**base, "policy": "accept"}},
        {"rule": {**matched, "expr": [{"xt": None}, {"counter": {"packets": 1, "bytes": 10}}, ACCEPT]}},
    ]
    found = Ruleset(1, json.dumps({"nftables": objects}), {"ip": save}, frozenset())
    accounts, known = Accounts(), rules_of(found)
    accounts.go_on_with(known)
    accounts.settle(connection(), NOBODY, NAMES)
    told = {one.text: (one.packets, one.bytes, accounts.sums[one.place]) for one in known.counters.counters}
    assert told == {
        written: (1, 10, Sum(3, 300)),
        "policy accept": (7, 70, Sum(5, 5000)),
    }


@pytest.mark.parametrize(("client", "server"), [("10.0.0.2", "192.0.2.1"), ("fd00::2", "2001:db8::1")])
def test_rules_see_addresses_as_they_are_where_they_stand(client: str, server: str) -> None:
    """A translated source is the destination of what comes back only until it is translated."""
    outside = "192.0.2.77" if "." in client else "2001:db8::77"
    octets = np.frombuffer(ip_address(outside).packed, np.uint8)
    flow = connection(client, server, source_out_port=50000)
    flow["source_out"][0, : len(octets)] = octets
    early = {"type": "filter", "hook": "prerouting", "prio": -150, "policy": "accept"}
    found = rules_of(
        ruleset(
            {"chain": {**chain("early")["chain"], **early}},
            rule("early", 5, goes_to(outside), COUNTER),
            rule("early", 6, goes_to(client), COUNTER),
            chain("allowed", "forward"),
            rule("allowed", 7, goes_to(outside), COUNTER),
            rule("allowed", 8, goes_to(client), COUNTER),
        )
    )
    credited = {counted.rule.handle: carried for counted, carried in met(found.proof, flow, NAMES)}
    assert credited == {5: Sum(5, 5000), 8: Sum(5, 5000)}


def test_interfaces_without_a_name_are_none_that_rules_name() -> None:
    found = rules_of(ruleset(*SIMPLE))
    flow = connection(inside=99, reply_ifindex=99)
    credited = {counted.rule.handle: carried for counted, carried in met(found.proof, flow, NAMES)}
    assert credited == {5: Sum(8, 5300), 7: Sum(8, 5300)}


def test_a_hundred_thousand_connections_are_credited_to_the_rule_that_they_meet() -> None:
    objects = [chain("allowed", "forward")]
    objects += [rule("allowed", 10 + n, goes_to(f"198.51.{n >> 8}.{n & 255}"), COUNTER) for n in range(1000)]
    found = rules_of(ruleset(*objects, rule("allowed", 5000, COUNTER)))
    flows = np.repeat(connection(), 100_000)
    flows["client_port"], flows["client"][:, 1] = np.arange(100_000) & 0xFFFF, np.arange(100_000) >> 16
    accounts = Accounts()
    accounts.go_on_with(found)
    for _ in range(2):
        accounts.settle(flows, NOBODY, NAMES)
    assert accounts.sums == {place(5000): Sum(800_000, 530_000_000)}


def test_rules_that_are_unknown_have_no_account(accounts: Accounts) -> None:
    assert accounts.rules is not None
    accounts.go_on_with(replace(accounts.rules, counters=LinuxCounters()))
    accounts.settle(connection(), NOBODY, NAMES)
    assert accounts.sums == {}
