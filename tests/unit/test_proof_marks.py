# SPDX-License-Identifier: Apache-2.0
"""Marks of packets and connections, followed through rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearway.importer.conditions import Condition
from clearway.importer.errors import InexactError
from clearway.importer.marks import ANY_MARK, MARK_MAX, Mark, Marks
from clearway.proof import Passage, Proof, Region, Sources, View, classifiers, prove, prove_claimed
from clearway.proof.classes import Classes
from clearway.proof.marks import CONNECTION, PACKET, Change, marks_of, number
from clearway.proof.result import Back

FEW = st.integers(0, 7)
CUBES = st.lists(st.tuples(FEW, FEW).map(lambda both: (both[0], both[1] & both[0])), max_size=4)
EIGHT = range(8)


def among(marks: Marks) -> set[int]:
    return {mark for mark in EIGHT if mark in marks}


@given(one=CUBES, other=CUBES)
def test_sets_of_marks_are_exact(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    a, b = Marks.of(one), Marks.of(other)
    assert among(a) == {mark for mark in EIGHT if any(mark & mask == value for mask, value in one)}
    assert among(a & b) == among(a) & among(b)
    assert among(a - b) == among(a) - among(b)
    assert among(a | b) == among(a) | among(b)
    assert a.within(b) == (among(a) <= among(b))


@given(first=st.integers(0, 40), last=st.integers(0, 40))
def test_ranges_of_marks_are_exact(first: int, last: int) -> None:
    marks = Marks.between(first, last)
    assert [mark for mark in range(50) if mark in marks] == list(range(first, last + 1))
    assert MARK_MAX in Marks.between(first, MARK_MAX)


CHANGES = st.recursive(
    st.sampled_from([PACKET, CONNECTION]).map(lambda one: (one, "m" if one is PACKET else "c"))
    | FEW.map(lambda value: (number(value), str(value))),
    lambda inner: st.tuples(inner, st.sampled_from("&|^"), inner).map(
        lambda both: (
            {"&": Change.__and__, "|": Change.__or__, "^": Change.__xor__}[both[1]](both[0][0], both[2][0]),
            f"({both[0][1]} {both[1]} {both[2][1]})",
        )
    ),
)


@given(change=CHANGES, mark=FEW, connmark=FEW, has=st.builds(Mark, FEW, FEW))
def test_changes_are_what_they_are_written_as(
    change: tuple[Change, str], mark: int, connmark: int, has: Mark
) -> None:
    made, written = change
    expected = eval(written, {"m": mark, "c": connmark})
    assert made.of(np.array([mark], np.uint32), np.array([connmark], np.uint32)).tolist() == [expected]
    after = made.made_of(has)
    assert after is not None
    assert after.of(connmark) == eval(written, {"m": has.of(connmark), "c": connmark})


@given(has=st.builds(Mark, FEW, FEW), cubes=CUBES, connmark=FEW)
def test_marks_are_found_by_those_of_their_connections(
    has: Mark, cubes: list[tuple[int, int]], connmark: int
) -> None:
    wanted = Marks.of(cubes)
    assert (connmark in has.where(wanted)) == (has.of(connmark) in wanted)


CONDITIONS: tuple[tuple[str, list[str], str, set[int]], ...] = (
    ("==", ["5"], "", {5}),
    ("==", ["4"], "6", {4, 5}),
    ("==", ["5"], "6", set()),
    ("!=", ["4"], "6", {0, 1, 2, 3, 6, 7}),
    ("==", ["1", "3-5"], "", {1, 3, 4, 5}),
    ("<", ["3"], "", {0, 1, 2}),
    (">=", ["3"], "", {3, 4, 5, 6, 7}),
    ("<", ["0"], "", set()),
    ("in", ["1", "4"], "", {1, 3, 4, 5, 6, 7}),
    ("!", ["1", "4"], "", {0, 2}),
)


@pytest.mark.parametrize(("operator", "elements", "mask", "expected"), CONDITIONS)
def test_conditions_are_exact(operator: str, elements: list[str], mask: str, expected: set[int]) -> None:
    condition = Condition(("meta mark",), operator, tuple((one,) for one in elements), mask)
    assert among(marks_of(condition, {})) == expected


@pytest.mark.parametrize(("elements", "mask"), [(["@none"], ""), (["x"], ""), (["1-3"], "6")])
def test_what_is_not_known_of_marks_is_said_to_be(elements: list[str], mask: str) -> None:
    with pytest.raises(InexactError):
        marks_of(Condition(("meta mark",), "==", tuple((one,) for one in elements), mask), {})


# ---- rules ----


def passage(mark: int = 0, destination: str = "192.0.2.1", **other: Any) -> Passage:
    seen = (ip_address("10.1.0.5"), 40000, ip_address(destination), 443)
    return Passage(
        4, 6, **{"arrives": seen, "leaves": seen, "inside": "lan0", "outside": "wan", **other}, mark=mark
    )


def of_mangle(
    *rules: str, nat: bool = True, more: str = "", translated: frozenset[int] = frozenset()
) -> Proof:
    chains = (
        ":PREROUTING ACCEPT [0:0]",
        ":FORWARD ACCEPT [0:0]",
        ":POSTROUTING ACCEPT [0:0]",
        ":own - [0:0]",
    )
    lines = ["*mangle", *chains, *rules, "COMMIT"]
    lines += ["*nat", ":POSTROUTING ACCEPT [0:0]", "COMMIT"] * nat
    return prove(Sources(saves={"ip": "\n".join([*lines, more, ""])}, translated=translated))


def of_nft(*rules: list[Any], hook: str = "prerouting", priority: int = -150) -> Proof:
    where = {"family": "ip", "table": "t", "name": "c"}
    chain = {**where, "type": "filter", "hook": hook, "prio": priority, "policy": "accept"}
    objects: list[Any] = [{"table": {"family": "ip", "name": "t"}}, {"chain": chain}]
    objects += [
        {"rule": {"family": "ip", "table": "t", "chain": "c", "handle": number_, "expr": one}}
        for number_, one in enumerate(rules, 1)
    ]
    return prove(Sources(json.dumps({"nftables": objects})))


def routed(proof: Proof, mark: int, destination: str = "192.0.2.1") -> int:
    """With which mark packets of such a connection are routed."""
    for box in proof.routed[4].regions:
        if mark in box.connmark and int(ip_address(destination)) in box.destination:
            assert box.has is not None
            return box.has.of(mark)
    raise AssertionError("that is kept")


def kept(proof: Proof, marks: Sequence[int]) -> list[int]:
    return [mark for mark in marks if proof.why_kept(passage(mark)) is not None]


RESTORE = "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff"


def test_a_restored_mark_is_that_of_the_connection() -> None:
    proof = of_mangle(RESTORE)
    assert [routed(proof, mark) for mark in (0, 1, 0x1FF)] == [0, 1, 0xFF]


def test_a_rule_after_it_sees_it() -> None:
    assert kept(of_mangle(RESTORE, "-A FORWARD -m mark --mark 0x1/0x1 -j DROP"), [0, 1, 2, 3, 0x101]) == [
        1,
        3,
        0x101,
    ]


def test_saving_what_is_saved_changes_nothing() -> None:
    save = "-A PREROUTING -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff"
    once = "-A PREROUTING -m mark --mark 0x0/0xff -j MARK --set-xmark 0x1/0xff"
    assert kept(of_mangle(RESTORE, once, save), [0, 1, 2, 0x100]) == [0, 0x100]
    assert kept(of_mangle(RESTORE, save, once), [0, 1, 2, 0x100]) == []


def test_a_mark_set_by_address_is_that_of_its_packets() -> None:
    proof = of_mangle(RESTORE, "-A PREROUTING -d 203.0.113.0/24 -j MARK --set-xmark 0x3/0x3")
    assert [routed(proof, 0x14), routed(proof, 0x14, "203.0.113.9")] == [0x14, 0x17]


def test_a_called_chain_marks_what_was_sent_there() -> None:
    proof = of_mangle(
        "-A PREROUTING -m mark --mark 0x0 -d 203.0.113.0/24 -j own",
        "-A PREROUTING -m mark --mark 0x0 -j MARK --set-xmark 0x9/0xff",
        "-A own -j MARK --set-xmark 0x5/0xff",
        "-A own -m mark --mark 0x5 -j RETURN",
        "-A own -j DROP",
    )
    assert [routed(proof, 0), routed(proof, 0, "203.0.113.9")] == [9, 5]


def test_a_mark_by_what_differs_between_packets_is_linux_own() -> None:
    assert kept(of_mangle("-A PREROUTING -m dscp --dscp 0x2e -j MARK --set-xmark 0x1/0x1"), [0]) == [0]


def test_before_conntrack_its_mark_means_nothing() -> None:
    raw = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j CONNMARK --restore-mark\nCOMMIT"
    assert kept(of_mangle(more=raw), [0]) == [0]


BY_ADDRESS = (
    "-A PREROUTING -d 203.0.113.7/32 -j MARK --set-xmark 0x1/0x1",
    "-A FORWARD -m mark --mark 0x1/0x1 -j DROP",
)


def test_where_nat_hides_who_was_marked_it_stays_in_linux() -> None:
    """A rule behind NAT asks for a mark that was given by the address before it."""
    server = ip_address("10.1.0.9")
    forwarded = passage(leaves=(ip_address("10.1.0.5"), 40000, server, 443))
    assert of_mangle(*BY_ADDRESS).why_kept(forwarded) is not None
    assert of_mangle(*BY_ADDRESS, nat=False).why_kept(passage()) is None
    assert of_mangle(BY_ADDRESS[0]).why_kept(forwarded) is None


def meta_mark(value: Any) -> dict[str, Any]:
    return {"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}}


def asked(key: str, value: Any, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": {key: {"key": "mark"}}, "right": value}}


def test_conditions_of_a_rule_ask_for_the_mark_that_it_has_set() -> None:
    proof = of_nft([asked("meta", 0), meta_mark(1), asked("meta", 1), {"drop": None}])
    assert kept(proof, [0]) == [0]
    proof = of_nft([asked("meta", 0), meta_mark(1), asked("meta", 0), {"drop": None}])
    assert (kept(proof, [0]), routed(proof, 0)) == ([], 1)


def test_the_last_mark_of_a_rule_counts() -> None:
    assert routed(of_nft([meta_mark(1), meta_mark(0)]), 0) == 0


def test_branches_by_mark_are_told_apart() -> None:
    pairs = [[1, {"drop": None}], [2, {"accept": None}]]
    proof = of_nft(
        [{"vmap": {"key": {"ct": {"key": "mark"}}, "data": {"set": pairs}}}], [asked("ct", 3), {"drop": None}]
    )
    assert kept(proof, [0, 1, 2, 3]) == [1, 3]


def test_what_is_not_known_of_a_mark_is_linux_own() -> None:
    shifted = {"<<": [{"ct": {"key": "mark"}}, 1]}
    assert kept(of_nft([meta_mark(shifted)]), [0, 1]) == [0, 1]
    assert routed(of_nft([meta_mark({"<<": [1, 4]})]), 0) == 16


# ---- classes ----


def test_classes_are_told_apart_by_what_is_asked() -> None:
    low, high = Marks.under(0x3, 1), Marks.under(0x10, 0x10)
    classes = Classes.telling([low, high, ANY_MARK, low])
    assert len(classes.parts) == 4
    for marks in (low, high):
        numbers = classes.among(marks)
        assert numbers is not None
        for mark in range(32):
            [mine] = [place for place, part in enumerate(classes.parts) if mark in part]
            assert (mine in numbers) == (mark in marks)
    assert classes.among(ANY_MARK) is None


def test_too_many_classes_leave_connections_without_a_mark() -> None:
    classes = Classes.telling(Marks.under(1 << bit, 1 << bit) for bit in range(7))
    assert [0 in part for part in classes.parts] == [True]
    assert classes.parts == (Marks.under(MARK_MAX, 0),)


def test_rules_without_marks_compile_without_them() -> None:
    proof = prove(
        Sources(saves={"ip": "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i lan0 -j ACCEPT\nCOMMIT\n"})
    )
    compiled = classifiers(proof, {"lan0": 2, "wan": 4})
    assert not compiled.speaks_of_marks
    assert set(compiled.classifiers) == {(View.BETWEEN, 4)}


# ---- where marks meet what else rules do ----


RESTORED = "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff"
CLAIMED = pytest.mark.parametrize("region", [Region.FIRST, Region.LATER])


@pytest.mark.parametrize(("mark", "kept"), [(0, False), (0x100, False), (7, True)])
def test_route_back_by_a_mark_is_only_looked_for_without_one(mark: int, kept: bool) -> None:
    proof = of_mangle(RESTORED, "-A PREROUTING -m rpfilter --validmark --invert -j DROP")
    assert (proof.why_kept(passage(mark=mark)) is not None) == kept
    assert proof.back(passage(mark=mark)) == Back.STRICT


def test_route_back_without_a_mark_is_looked_for_whatever_the_mark() -> None:
    proof = of_mangle(RESTORED, "-A PREROUTING -m rpfilter --invert -j DROP")
    assert proof.why_kept(passage(mark=7)) is None


def test_changes_are_those_of_the_mark() -> None:
    proof = of_mangle("-A FORWARD -m connmark --mark 0x7 -j TTL --ttl-set 33")
    assert [proof.mangle(passage(mark=mark)).hops(64) for mark in (0, 7)] == [63, 33]


@CLAIMED
@pytest.mark.parametrize(
    "rule",
    [
        RESTORED,
        "-A FORWARD -j MARK --set-xmark 0x0/0xff",
        "-A POSTROUTING -j CONNMARK --save-mark",
        "-A FORWARD -m connmark ! --mark 0x0 -j DROP",
        "-A FORWARD -m mark ! --mark 0x0 -j DROP",
    ],
)
def test_what_is_claimed_has_no_mark(region: Region, rule: str) -> None:
    assert prove_claimed(of_mangle(rule), region).why_kept(passage(mark=0)) is None


@CLAIMED
@pytest.mark.parametrize(
    "rule",
    [
        "-A PREROUTING -j MARK --set-xmark 0x7/0xff",
        "-A FORWARD -j CONNMARK --set-xmark 0x7/0xff",
        "-A FORWARD -m connmark --mark 0x0 -j DROP",
    ],
)
def test_who_would_give_it_one_keeps_it(region: Region, rule: str) -> None:
    assert prove_claimed(of_mangle(rule), region).why_kept(passage(mark=0)) is not None


def test_what_others_translate_is_as_unclear_as_behind_nat() -> None:
    server = ip_address("10.1.0.9")
    forwarded = passage(leaves=(ip_address("10.1.0.5"), 40000, server, 443))
    for translated in (frozenset[int](), frozenset({4})):
        assert (of_mangle(*BY_ADDRESS, nat=False, translated=translated).why_kept(forwarded) is None) == (
            not translated
        )
