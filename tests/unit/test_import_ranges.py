# SPDX-License-Identifier: Apache-2.0
"""Sets of numbers and names, boxes of packets, flags: against what they mean member by member."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearway.importer.box import ANY_STATE, Box, common, everything, limited, whole, without
from clearway.importer.errors import InexactError
from clearway.importer.express import _cubes
from clearway.importer.ranges import Names, Ranges
from clearway.importer.words import addresses, prefixes_of

SMALL = st.frozensets(st.integers(0, 20))
NAMES = st.builds(
    lambda names, others: Names(frozenset(names), others),
    st.frozensets(st.sampled_from(["eth0", "eth1", "lo", "wg0"])),
    st.booleans(),
)


@given(SMALL, SMALL)
def test_numbers(one: frozenset[int], other: frozenset[int]) -> None:
    mine, theirs = Ranges.numbers(one), Ranges.numbers(other)
    assert set(mine) == one
    assert set(mine & theirs) == one & other
    assert set(mine | theirs) == one | other
    assert set(mine - theirs) == one - other
    assert mine.within(theirs) == (one <= other)
    assert bool(mine) == bool(one)
    assert len(mine) == len(one)


@given(NAMES, NAMES, st.sampled_from(["eth0", "eth1", "lo", "wg0", "another"]))
def test_names(one: Names, other: Names, name: str) -> None:
    assert (name in one & other) == (name in one and name in other)
    assert (name in one - other) == (name in one and name not in other)


def test_label_stays_while_the_numbers_do() -> None:
    labelled = Ranges.of([(1, 5), (9, 9)], "few")
    assert (labelled & Ranges(((0, 100),))).label == "few"
    assert (Ranges(((0, 100),)) & labelled).label == "few"
    assert (labelled & Ranges(((0, 4),))).label is None
    assert (Ranges(((0, 100),)) - labelled).label is None


BOX = st.builds(
    lambda family, protocol, sport, inside: replace(
        whole(family), protocol=Ranges.numbers(protocol), sport=Ranges.numbers(sport), inside=inside
    ),
    st.sampled_from([4, 6]),
    st.frozensets(st.integers(0, 3), min_size=1),
    st.frozensets(st.integers(0, 3), min_size=1),
    NAMES.filter(bool),
)


def holds(box: Box, family: int, protocol: int, sport: int, inside: str) -> bool:
    return box.family == family and protocol in box.protocol and sport in box.sport and inside in box.inside


@given(
    BOX, BOX, st.sampled_from([4, 6]), st.integers(0, 3), st.integers(0, 3), st.sampled_from(["eth0", "x"])
)
def test_boxes(one: Box, other: Box, family: int, protocol: int, sport: int, inside: str) -> None:
    where = (family, protocol, sport, inside)
    here, there = holds(one, *where), holds(other, *where)
    assert any(holds(box, *where) for box in common([one], [other])) == (here and there)
    pieces = [box for box in one.minus(other) if holds(box, *where)]
    assert len(pieces) == int(here and not there)  # pieces do not overlap
    if one.within(other):
        assert there or not here


def test_a_difference_in_too_many_pieces_is_refused() -> None:
    odd = [replace(whole(4), sport=Ranges.numbers([n]), dport=Ranges.numbers([n])) for n in range(1, 200, 2)]
    with pytest.raises(InexactError, match="more than 64 rules"):
        without(everything([4]), odd)


def test_limiting_drops_what_is_empty() -> None:
    assert limited(everything(), state=Ranges(())) == ()
    assert len(limited(everything(), state=ANY_STATE)) == 2


@given(st.frozensets(st.integers(0, 255)))
def test_flags_fall_into_disjoint_masks(values: frozenset[int]) -> None:
    cubes = list(_cubes(values))
    for number in range(256):
        assert sum(number & cube.mask == cube.set for cube in cubes) == int(number in values)


def test_addresses_of_other_masks_than_prefixes_are_refused() -> None:
    assert addresses("10.0.0.0/255.0.0.0", 4) == addresses("10.0.0.0/8", 4)
    for text in ("10.0.0.0/0.0.0.255", "10.0.0.0/255.0.255.0", "10.0.0.1-2001:db8::1", "example.net"):
        with pytest.raises(InexactError):
            addresses(text, 4)
    with pytest.raises(InexactError, match="not of IPv4"):
        addresses("2001:db8::/32", 4)


def test_prefixes_are_counted_as_they_are_written() -> None:
    assert prefixes_of(addresses("10.0.0.5-10.0.0.12", 4), 4) == 4
    assert prefixes_of(addresses("::/0", 6), 6) == 1
    assert prefixes_of(addresses("0.0.0.0/0", 4) - addresses("10.0.0.1", 4), 4) == 32
