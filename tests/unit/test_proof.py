# SPDX-License-Identifier: Apache-2.0
"""What a proof says of rules, of what cannot be read, and of counters; and what is compiled of it."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random
from typing import Any

import numpy as np
import pytest

from clearway.compiler.classifier import TooBigError, compile_classifier
from clearway.proof import (
    Counted,
    Kind,
    Mangle,
    Obstacle,
    Passage,
    Passages,
    Proof,
    Region,
    Sources,
    View,
    classifiers,
    compiled,
    prove,
    prove_claimed,
)
from clearway.proof.compiled import question
from tests.unit.proof_reference import as_nft, random_passage, random_ruleset

TCP = 6
INTERFACES = {"lan0": 2, "wan": 4}


def passage(source: str = "10.1.0.5", destination: str = "192.0.2.1", **other: Any) -> Passage:
    seen = (ip_address(source), 40000, ip_address(destination), 443)
    values = {"protocol": TCP, "arrives": seen, "leaves": seen, "inside": "lan0", "outside": "wan"}
    return Passage(**{"family": seen[0].version, **values, **other})


SIX = passage("2001:db8::5", "2001:db8:9::1")


def save(*rules: str, table: str = "filter", chains: str = ":FORWARD ACCEPT [0:0]") -> str:
    return "\n".join([f"*{table}", chains, *rules, "COMMIT", ""])


def of_iptables(*rules: str, **other: Any) -> Proof:
    return prove(Sources(saves={"ip": save(*rules, **other)}))


def of_nft(*expressions: list[Any], policy: str = "accept", called: str = "", **chain: Any) -> Proof:
    """called: the name of an empty chain beside it."""
    where = {"family": "inet", "table": "t"}
    base = {"type": "filter", "hook": "forward", "prio": 0, "policy": policy, **chain}
    rules = [
        {"rule": {**where, "chain": "c", "handle": 10 + number, "expr": one}}
        for number, one in enumerate(expressions)
    ]
    chains = [{"chain": {**where, "name": "c", **base}}, {"chain": {**where, "name": called}}]
    objects = [{"table": {"family": "inet", "name": "t"}}, *chains[: 2 if called else 1], *rules]
    return prove(Sources(json.dumps({"nftables": objects})))


# ---- what rules change ----

SET_EF = {"mangle": {"key": {"payload": {"protocol": "ip", "field": "dscp"}}, "value": "ef"}}
EF = Mangle(tos_keep=3, tos_flip=46 << 2)


def test_what_is_accepted_before_a_change_is_not_changed() -> None:
    port = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 443}}
    near = {
        "match": {
            "op": "==",
            "left": {"payload": {"protocol": "ip", "field": "saddr"}},
            "right": {"prefix": {"addr": "10.1.0.0", "len": 16}},
        }
    }
    proof = of_nft([near, port, {"accept": None}], [SET_EF])
    assert proof.why_kept(passage()) is None
    assert [proof.mangle(one) for one in (passage(), passage("10.2.0.5"), SIX)] == [Mangle(), EF, Mangle()]


def test_changes_are_made_one_after_the_other() -> None:
    rules = ("-j TOS --set-tos 0xff/0xf0", "-i lan0 -j TOS --set-tos 0x01/0x11", "-j TTL --ttl-dec 3")
    proof = of_iptables(*(f"-A FORWARD {one}" for one in rules), table="mangle")
    there, back = proof.mangle(passage()), proof.mangle(passage(inside="wan"))
    assert [there.tos(tos) for tos in (0, 0xFF)] == [0xEF, 0xE1]
    assert [back.tos(tos) for tos in (0, 0xFF)] == [0xFF, 0xF0]
    assert (there.hops(64), back.hops(64)) == (60, 60)


def test_more_changes_than_the_data_path_has_room_for_are_kept() -> None:
    rules = [f"-A FORWARD -p tcp -m tcp --dport {443 + one} -j TTL --ttl-set {one + 9}" for one in range(40)]
    assert of_iptables(*rules[:31], table="mangle").why_kept(passage()) is None
    assert of_iptables(*rules, table="mangle").why_kept(passage()) is not None


def test_change_that_cannot_be_said_exactly_keeps_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PREFIXES_MAX", 2)
    proof = of_iptables("-A FORWARD -m iprange --src-range 10.0.0.1-10.0.0.9 -j DSCP --set-dscp 8")
    told = classifiers(proof, INTERFACES)
    assert (set(told.classifiers), set(told.mangles)) == ({(View.BETWEEN, 4)}, set())
    assert "exactly" in told.keeps[-1].why


# ---- what a rule is called, and is ----


def test_no_rules_keep_nothing() -> None:
    proof = prove(Sources())
    assert (proof.keeps, proof.rules, proof.why_kept(passage())) == ((), (), None)


def test_rule_has_the_words_that_its_administrator_knows() -> None:
    drop = [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lan0"}}, {"drop": None}]
    keep = of_nft([{"counter": {"packets": 1, "bytes": 60}}], drop).why_kept(passage())
    assert keep is not None
    assert str(keep.rule) == 'inet t c handle 11: iifname "lan0" drop'
    assert keep.why == "drops it"
    keep = of_iptables("-A FORWARD -i wan", "-A FORWARD -i lan0 -j DROP").why_kept(passage())
    assert keep is not None
    assert str(keep.rule) == "ip filter FORWARD rule 2: -A FORWARD -i lan0 -j DROP"


def test_policy_is_a_rule_of_its_own() -> None:
    keep = of_iptables(chains=":FORWARD DROP [0:0]").why_kept(passage())
    assert keep is not None
    assert str(keep.rule) == "ip filter FORWARD: policy drop"


KINDS = (
    ("-A FORWARD -j ACCEPT", Kind.RESTORABLE, False),
    ("-A FORWARD -p tcp -m tcp --dport 443 -j DROP", Kind.RESTORABLE, True),
    ("-A FORWARD -m limit --limit 1/sec -j ACCEPT", Kind.OPAQUE, True),
    ("-A FORWARD -m conntrack --ctstate NEW -m limit --limit 1/sec -j LOG", Kind.OPAQUE, False),
    ("-A FORWARD -m dscp --dscp 46 -j ACCEPT", Kind.OPAQUE, True),
    ("-A FORWARD -m unheard --of it -j ACCEPT", Kind.OPAQUE, True),
    ("-A FORWARD --unheard of -j ACCEPT", Kind.OPAQUE, True),
    ("-A FORWARD -j UNHEARD --of it", Kind.OPAQUE, True),
    ("-A FORWARD -m set --match-set hosts src -j ACCEPT", Kind.OPAQUE, True),
    ("-A INPUT -j DROP", Kind.ELSEWHERE, False),
    ("-A lonely -j DROP", Kind.ELSEWHERE, False),
)


@pytest.mark.parametrize(("rule", "kind", "keeps"), KINDS, ids=[one[0] for one in KINDS])
def test_rule_is_of_a_kind(rule: str, kind: Kind, keeps: bool) -> None:
    chains = ":FORWARD ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:lonely - [0:0]"
    [classified] = of_iptables(rule, chains=chains).rules
    assert (classified.kind, classified.keeps) == (kind, keeps)
    assert classified.why


LIMIT = "-A FORWARD -m limit --limit 1/sec -j ACCEPT"


@pytest.mark.parametrize(
    ("rules", "keeps", "keeps_all"),
    [
        ((LIMIT,), True, True),
        (("-A FORWARD -m dscp --dscp 46 -j ACCEPT",), True, True),
        (("-A FORWARD -m conntrack --ctstate NEW -j ACCEPT", LIMIT), True, True),
        (("-A FORWARD -i lan0 -m limit --limit 1/sec -j ACCEPT",), True, False),
        (("-A FORWARD -p tcp -m limit --limit 1/sec -j ACCEPT",), True, False),
        (("-A FORWARD -i lan0 -j ACCEPT", LIMIT), True, False),
        (("-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", LIMIT), False, False),
    ],
)
def test_rule_keeps_all_some_or_nothing(rules: tuple[str, ...], keeps: bool, keeps_all: bool) -> None:
    *_before, classified = of_iptables(*rules).rules
    assert (classified.keeps, classified.keeps_all) == (keeps, keeps_all)


def test_rules_of_nft_without_counters_are_invariant() -> None:
    [classified] = of_nft([{"accept": None}]).rules
    assert classified.kind is Kind.FLOW_INVARIANT


def test_rules_of_nat_meet_first_packets_only() -> None:
    proof = of_iptables(
        "-A POSTROUTING -m statistic --mode random --probability 0.5 -j MASQUERADE",
        table="nat",
        chains=":POSTROUTING ACCEPT [0:0]",
    )
    assert proof.why_kept(passage()) is None
    assert [rule.kind for rule in proof.rules] == [Kind.RESTORABLE]


# ---- what cannot be read, and what is no rule ----


@pytest.mark.parametrize("text", ["{", "[]", '{"nftables": [{"rule": {}}]}', "table inet t { }"])
def test_nft_that_cannot_be_read_keeps_everything(text: str) -> None:
    proof = prove(Sources(text))
    assert proof.why_kept(passage()) is not None
    assert proof.why_kept(SIX) is not None


@pytest.mark.parametrize("text", ["*filter\n-A NONE -j ACCEPT\nCOMMIT\n", "iptables: no chain by that name"])
def test_save_that_cannot_be_read_keeps_its_family(text: str) -> None:
    proof = prove(Sources(saves={"ip6": text}))
    assert proof.why_kept(passage()) is None
    assert proof.why_kept(SIX) is not None


STRANGE: tuple[dict[str, Any], ...] = (
    {"unheard": {"of": 1}},
    {"match": {"left": 3}},
    {"match": {"op": "==", "left": {"unheard": {}}, "right": 1}},
    {"mangle": {}},
    {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@none"}},
    {"jump": {"target": "none"}},
    {"counter": {"map": {}}},
    {"xt": {"type": "match", "name": "unheard"}},
    {"xt": None},
)


@pytest.mark.parametrize("statement", STRANGE, ids=[json.dumps(one) for one in STRANGE])
def test_strange_statement_keeps_all_that_comes_there(statement: dict[str, Any]) -> None:
    lan = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lan0"}}
    proof = of_nft([lan, statement, {"accept": None}])
    assert proof.why_kept(passage()) is not None
    assert proof.why_kept(passage(inside="lan1")) is None


# ---- what goes on behind a verdict map ----

DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
CONTINUE, ACCEPT, DROP = {"continue": None}, {"accept": None}, {"drop": None}
ASIDE = {"jump": {"target": "aside"}}


def branch(key: Any, *elements: tuple[Any, Any]) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": [list(one) for one in elements]}}}


def state(name: str) -> dict[str, Any]:
    return {"ct": {"key": name}}


BRANCHES: tuple[tuple[dict[str, Any], bool], ...] = (
    (branch(DPORT, (22, CONTINUE)), False),
    (branch(DPORT, (22, CONTINUE), (443, CONTINUE)), True),
    (branch(DPORT, (443, CONTINUE), (22, DROP)), True),
    (branch(DPORT, (443, ASIDE)), False),
    (branch({"payload": {"protocol": "ip6", "field": "saddr"}}, ("2001:db8::5", CONTINUE)), False),
    (branch(state("state"), ("invalid", DROP), ("related", CONTINUE)), False),
    (branch(state("state"), ("invalid", DROP), ("established", CONTINUE)), True),
    (branch(state("mark"), (1, CONTINUE)), False),
    (branch(state("mark"), (0, CONTINUE)), True),
    (branch({"meta": {"key": "mark"}}, (1, CONTINUE), (2, ASIDE)), False),
    (branch({"meta": {"key": "mark"}}, (0, ASIDE)), False),
    (branch({"meta": {"key": "mark"}}, (0, CONTINUE)), True),
)


@pytest.mark.parametrize(("mapped", "goes_on"), BRANCHES, ids=[json.dumps(one) for one, _ in BRANCHES])
def test_only_continue_goes_on_behind_a_verdict_map(mapped: dict[str, Any], goes_on: bool) -> None:
    """Neither who is not in it, nor who comes back from a chain."""
    count = {"counter": {"packets": 0, "bytes": 0}}
    for behind in ([ACCEPT], [count, ACCEPT], [{"goto": {"target": "aside"}}], [ASIDE, ACCEPT]):
        proof = of_nft([mapped, *behind], [DROP], called="aside")
        assert (proof.why_kept(passage()) is None) == goes_on
    counted = of_nft([mapped, count], called="aside").traversed(passage())
    assert bool(counted) == goes_on


def test_what_stands_behind_a_flowtable_is_not_for_all() -> None:
    flow = {"flow": {"op": "add", "flowtable": "@fast"}}
    assert of_nft([flow]).why_kept(passage()) is None
    keep = of_nft([flow, ACCEPT], [DROP]).why_kept(passage())
    assert keep is not None
    assert "handle 10" in str(keep.rule)


@pytest.mark.parametrize(("exists", "kept"), [(True, False), (False, True)])
def test_headers_that_nothing_has_are_not_met(exists: bool, kept: bool) -> None:
    """Whether IPv4 meets `missing` depends on what nft puts before it."""
    header = {"match": {"op": "==", "left": {"exthdr": {"name": "frag"}}, "right": exists}}
    proof = of_nft([header, {"drop": None}])
    assert (proof.why_kept(passage()) is not None, proof.why_kept(SIX) is not None) == (kept, kept)


def test_comment_that_looks_like_an_option_is_none() -> None:
    proof = of_iptables('-A FORWARD -m comment --comment "-f" -j DROP')
    assert proof.why_kept(passage()) is not None


def test_tables_of_iptables_are_read_as_it_prints_them_where_json_does_not_tell() -> None:
    """And base chains that it prints and that are not there count nothing."""
    where = {"family": "ip", "table": "filter"}
    expressions = [{"xt": {"type": "match", "name": "connmark"}}, {"counter": None}, {"accept": None}]
    objects = [
        {"table": {"family": "ip", "name": "filter"}},
        {
            "chain": {
                **where,
                "name": "FORWARD",
                "type": "filter",
                "hook": "forward",
                "prio": 0,
                "policy": "accept",
            }
        },
        {"rule": {**where, "chain": "FORWARD", "handle": 3, "expr": expressions}},
    ]
    text = json.dumps({"nftables": objects})
    saved = save(
        "-A FORWARD -m connmark --mark 1 -j ACCEPT", chains=":FORWARD ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]"
    )
    assert prove(Sources(text)).why_kept(passage()) is not None
    proof = prove(Sources(text, {"ip": saved}))
    assert proof.why_kept(passage()) is None
    assert proof.why_kept(passage(mark=1)) is None
    assert texts(proof.traversed(passage())) == ["policy accept"]


def test_chains_that_lead_to_each_other_keep_everything() -> None:
    proof = of_nft([{"jump": {"target": "c"}}])
    keep = proof.why_kept(passage())
    assert keep is not None
    assert "call each other" in keep.why


def test_legacy_tables_keep_their_family() -> None:
    proof = prove(Sources(legacy=frozenset({6})))
    assert proof.why_kept(passage()) is None
    assert proof.why_kept(SIX) is not None


def test_obstacle_keeps_what_meets_it() -> None:
    proof = prove(
        Sources(obstacles=(Obstacle(None, None, "wan", "tc filters"), Obstacle(6, "lan1", None, "xfrm")))
    )
    keep = proof.why_kept(passage())
    assert keep is not None
    assert keep.why == "tc filters"
    assert proof.why_kept(passage(inside="lan1", outside="lan0")) is None
    assert proof.why_kept(replace(SIX, inside="lan1", outside="lan0")) is not None


POLICY = Obstacle(
    4,
    None,
    None,
    "a policy",
    source=ip_network("10.1.0.0/16"),
    destination=ip_network("192.0.2.0/24"),
    protocol=TCP,
    dport=443,
)


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({}, True),
        ({"dport": 80}, False),
        ({"dport": None, "protocol": 17}, False),
        ({"destination": ip_network("198.51.100.0/24")}, False),
        ({"source": None, "destination": None}, True),
    ],
)
def test_obstacle_is_about_whom_it_names(changed: dict[str, Any], kept: bool) -> None:
    proof = prove(Sources(obstacles=(replace(POLICY, **changed),)))
    assert (proof.why_kept(passage()) is not None) is kept
    assert proof.why_kept(SIX) is None


def test_obstacle_sees_addresses_before_and_behind_translation() -> None:
    proof = prove(Sources(obstacles=(POLICY,)))
    inside = (ip_address("10.1.0.5"), 40000, ip_address("192.0.2.1"), 443)
    outside = (ip_address("203.0.113.1"), 40000, ip_address("192.0.2.1"), 443)
    assert proof.why_kept(passage(arrives=inside, leaves=outside)) is not None
    assert proof.why_kept(passage(arrives=outside, leaves=inside)) is not None
    assert proof.why_kept(passage(arrives=outside, leaves=outside)) is None


@pytest.mark.parametrize(
    ("flags", "kept"), [(["dormant"], False), ("dormant", False), ("t", True), ([], True)]
)
def test_dormant_table_is_not_in_force_if_that_can_be_told(flags: Any, kept: bool) -> None:
    """nftables 1.0.6 has the name of some table there, whatever the flag is."""
    chain = {"family": "inet", "table": "t", "name": "c", "type": "filter", "hook": "forward", "prio": 0}
    table = {"family": "inet", "name": "t", "flags": flags}
    text = json.dumps({"nftables": [{"table": table}, {"chain": {**chain, "policy": "drop"}}]})
    assert (prove(Sources(text)).why_kept(passage()) is not None) == kept


# ---- counters ----


def texts(met: tuple[Counted, ...]) -> list[str]:
    return [counted.counter or counted.rule.text for counted in met]


def test_counters_come_as_often_as_packets_meet_them() -> None:
    proof = of_iptables(
        "-A FORWARD -i lan0 -j twice",
        "-A FORWARD -o wan -j twice",
        "-A twice -s 10.1.0.5",
        "-A twice -s 10.9.0.0/16",
        chains=":FORWARD ACCEPT [0:0]\n:twice - [0:0]",
    )
    jump, again = "-A FORWARD -i lan0 -j twice", "-A FORWARD -o wan -j twice"
    assert texts(proof.traversed(passage())) == [
        jump,
        "-A twice -s 10.1.0.5",
        again,
        "-A twice -s 10.1.0.5",
        "policy accept",
    ]
    assert texts(proof.traversed(passage(inside="x", outside="y"))) == ["policy accept"]


def test_bridge_that_filters_has_counted_what_comes_in_by_it() -> None:
    proof = of_nft([{"counter": "early"}], hook="prerouting", prio=-150)
    filtering = replace(proof, filtering={4: frozenset({"lan0"})})
    passages = [passage(), passage(inside="wan", outside="lan0"), SIX]
    counted = [texts(filtering.traversed(one)) for one in passages]
    assert counted == [[], ["early"], ["early"]]


def test_counter_before_a_condition_counts_all() -> None:
    condition = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lan1"}}
    assert texts(of_nft([{"counter": "all"}, condition, {"counter": "few"}]).traversed(passage())) == ["all"]


def test_counting_at_the_priority_of_nat_is_kept() -> None:
    counting = of_nft([{"counter": None}], hook="postrouting", prio=100)
    assert counting.why_kept(passage()) is not None
    assert of_nft([{"accept": None}], hook="postrouting", prio=100).why_kept(passage()) is None


def test_many_passages_at_once_are_counted_as_each_alone() -> None:
    for seed in range(20):
        random = Random(seed)
        proof = prove(as_nft(random_ruleset(random, exact=True, iptables=False)))
        passages = [one for one in (random_passage(random) for _ in range(60)) if proof.why_kept(one) is None]
        if not passages:
            continue
        alone: list[list[Counted]] = [[] for _ in passages]
        for counted, rows in proof.counted(Passages.of(passages)):
            for row in rows.tolist():
                alone[row].append(counted)
        assert alone == [list(proof.traversed(one)) for one in passages]


def test_addresses_of_ipv6_are_whole_numbers() -> None:
    rule = "-A FORWARD -s 2001:db8::/64 -d ::/1"
    proof = prove(Sources(saves={"ip6": save(rule)}))
    sources = [
        "2001:db8::5",
        "2001:db8:0:1::5",
        "2001:db8::",
        "2001:db8::ffff:ffff:ffff:ffff",
        "2001:db7:ffff::",
    ]
    passages = Passages.of([passage(source, "7fff::1") for source in sources])
    [(counted, rows), _policy] = proof.counted(passages)
    assert (counted.rule.text, rows.tolist()) == (rule, [0, 2, 3])


def test_passages_of_both_families_are_refused() -> None:
    with pytest.raises(ValueError, match="unpack"):
        Passages.of([passage(), SIX])


# ---- compiled ----


def test_classifiers_are_absent_where_nothing_is_kept() -> None:
    compiled_ = classifiers(of_iptables("-A FORWARD -s 10.0.0.0/8 -j DROP"), INTERFACES)
    assert set(compiled_.classifiers) == {(View.BETWEEN, 4)}
    assert classifiers(prove(Sources()), INTERFACES).classifiers == {}


def test_what_passes_first_comes_first_in_a_classifier() -> None:
    """A thousand accepted networks cannot be taken out of what the policy drops; they stand before it."""
    rules = [f"-A FORWARD -s 10.{n // 200}.{n % 200}.0/24 -j ACCEPT" for n in range(1000)]
    proof = of_iptables(*rules, chains=":FORWARD DROP [0:0]")
    asked = question(proof, (View.BETWEEN, 4), INTERFACES)
    assert list(asked.told) == [0] * 1000 + [1]
    assert proof.why_kept(passage("10.4.199.1")) is None
    assert proof.why_kept(passage("10.5.0.1")) is not None


def test_two_chains_that_keep_all_but_many_keep_what_either_keeps() -> None:
    first = [f"-A FORWARD -s 10.1.{n}.0/24 -j ACCEPT" for n in range(200)]
    second = [f"-A FORWARD -d 192.0.2.{n}/32 -j ACCEPT" for n in range(100)]
    text = save(*first, chains=":FORWARD DROP [0:0]") + save(
        *second, table="security", chains=":FORWARD DROP [0:0]"
    )
    proof = prove(Sources(saves={"ip": text}))
    assert proof.why_kept(passage("10.1.0.5", "198.51.100.1")) is not None
    assert proof.why_kept(passage("10.9.0.5", "192.0.2.1")) is not None


def test_interfaces_all_but_one_are_written_out() -> None:
    proof = of_iptables("-A FORWARD ! -i lan0 -o wan -j DROP")
    [condition] = question(proof, (View.BETWEEN, 4), {"lan0": 2, "lan1": 3, "wan": 4}).conditions
    assert (condition.interfaces_in, condition.interfaces_out) == ((3, 4), (4,))


def test_too_many_interfaces_are_said_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "ROWS_MAX", 1)
    proof = of_iptables("-A FORWARD ! -i lan0 -o wan -j DROP")
    [condition] = question(proof, (View.BETWEEN, 4), {"lan0": 2, "lan1": 3, "wan": 4}).conditions
    assert (condition.interfaces_in, condition.interfaces_out) == (None, (4,))


def test_too_many_prefixes_are_said_larger_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PREFIXES_MAX", 1)
    three = "-m iprange --src-range 10.0.0.1-10.0.0.4"
    [condition] = question(
        of_iptables(f"-A FORWARD {three} -j DROP"), (View.BETWEEN, 4), INTERFACES
    ).conditions
    assert condition.source is None


def test_classifier_that_is_too_big_keeps_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def once(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise TooBigError("too many")
        return compile_classifier(*arguments)

    monkeypatch.setattr(compiled, "compile_classifier", once)
    proof = of_iptables("-A FORWARD -s 10.0.0.0/8 -j DROP")
    found = classifiers(proof, INTERFACES)
    assert [keep.why for keep in found.keeps] == ["drops it", "too many"]
    assert calls[1][3] == [2]
    assert found.classifiers[View.BETWEEN, 4].rows == 1


def test_addresses_are_of_their_words() -> None:
    """What numpy holds of an address is what it is."""
    sides = Passages.of([passage(str(IPv6Address((1 << 127) + 5)), "::1")]).arrives
    assert (sides.source.high.tolist(), sides.source.low.tolist()) == ([1 << 63], [5])
    four = Passages.of([passage(str(IPv4Address(7)))]).arrives
    assert np.array_equal(four.source.low, np.array([7], np.uint64))


# ---- what clearway's own configuration claims ----


@pytest.mark.parametrize(
    ("rule", "first", "later"),
    [
        ("-A FORWARD -p tcp --dport 443 -j DROP", True, True),
        ("-A FORWARD -m conntrack --ctstate NEW -p tcp -m tcp --dport 443 -j DROP", True, False),
        ("-A FORWARD -m conntrack --ctstate ESTABLISHED -m limit --limit 1/sec -j ACCEPT", False, True),
        ("-A FORWARD -m conntrack --ctstate INVALID -j DROP", False, False),
        ("-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu", True, True),
        ("-A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN -j DROP", False, False),
        (
            "-A FORWARD -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m state --state NEW -j DROP",
            False,
            False,
        ),
        ("-A FORWARD -p tcp -m tcp --dport 80 -j LOG", False, False),
    ],
)
def test_first_and_later_packets_of_what_is_claimed(rule: str, first: bool, later: bool) -> None:
    proof = of_iptables(rule)
    kept = [prove_claimed(proof, region).why_kept(passage()) for region in (Region.FIRST, Region.LATER)]
    assert [keep is not None for keep in kept] == [first, later]


def nat_chain(name: str, hook: str, priority: int, *expressions: Any) -> list[Any]:
    where = {"family": "ip", "table": "nat"}
    chain = {**where, "name": name, "type": "nat", "hook": hook, "prio": priority, "policy": "accept"}
    return [{"chain": chain}, {"rule": {**where, "chain": name, "handle": 9, "expr": list(expressions)}}]


def dport(protocol: str, port: int) -> Any:
    left = {"payload": {"protocol": protocol, "field": "dport"}}
    return {"match": {"op": "==", "left": left, "right": port}}


def test_translation_of_somebody_else_is_linux_own() -> None:
    objects = [
        {"table": {"family": "ip", "name": "nat"}},
        *nat_chain("p", "prerouting", -100, dport("tcp", 8443), {"dnat": {"addr": "10.0.0.9"}}),
        *nat_chain("q", "postrouting", 100, dport("udp", 53), {"masquerade": None}),
    ]
    proof = prove(Sources(json.dumps({"nftables": objects})))
    first, later = (prove_claimed(proof, region) for region in (Region.FIRST, Region.LATER))
    assert proof.keeps == () and later.keeps == ()
    assert sorted(str(keep.view) for keep in first.keeps) == ["before", "between"]
    assert first.asked == {4}
    assert later.asked == set()


def test_obstacles_are_for_adopted_connections_alone() -> None:
    proof = prove(Sources(obstacles=(Obstacle(None, "lan", None, "tc has filters"),)))
    assert proof.keeps
    assert prove_claimed(proof, Region.FIRST).asked == set()


def test_what_cannot_be_read_keeps_what_is_claimed_as_well() -> None:
    proof = prove(Sources(legacy=frozenset({4})))
    for region in (Region.FIRST, Region.LATER):
        rulings = prove_claimed(proof, region)
        assert rulings.asked == {4}
        assert rulings.why_kept(passage()) is not None


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ("raw", "-A PREROUTING -m rpfilter --invert -j DROP"),
        ("mangle", "-A PREROUTING -j DSCP --set-dscp 0x2e"),
        ("mangle", "-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff"),
    ],
)
def test_what_is_made_up_for_keeps_what_is_claimed(table: str, rule: str) -> None:
    """Adopted connections are carried past these; nobody asks, changes or marks for clearway's own."""
    proof = of_iptables(rule, table=table, chains=":PREROUTING ACCEPT [0:0]")
    assert proof.why_kept(passage()) is None
    for region in (Region.FIRST, Region.LATER):
        assert prove_claimed(proof, region).why_kept(passage()) is not None
