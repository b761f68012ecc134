# SPDX-License-Identifier: Apache-2.0
"""Maglev: shares within 1 %, few slots that move, and the same wheel on every node."""

from __future__ import annotations

import time
from fractions import Fraction
from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clearway.compiler.maglev import Member, maglev_wheel, take_turns
from clearway.model.values import next_prime


def members(count: int, weights: list[int] | None = None, first: str = "10.0.0.1") -> list[Member]:
    base = ip_address(first)
    return [Member.of(base + index, 8080, weights[index] if weights else 1) for index in range(count)]


def largest_error(wheel: NDArray[np.uint32], weights: list[int]) -> float:
    """How far the share of any member is from the ideal, relative to the ideal."""
    counts = np.bincount(wheel, minlength=len(weights))
    ideal = len(wheel) * np.asarray(weights) / sum(weights)
    return float(np.abs(counts / ideal - 1).max())


def chosen(wheel: NDArray[np.uint32], of: list[Member]) -> NDArray[np.object_]:
    """Slot -> member, to compare wheels of different lists."""
    identities = np.array([member.address + member.port.to_bytes(2, "big") for member in of], dtype=object)
    return identities[wheel]


@pytest.mark.parametrize("first", ["10.0.0.1", "2001:db8::1"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 50, 200, 655])
def test_equal_weights_share_within_one_percent(count: int, first: str) -> None:
    wheel = maglev_wheel(members(count, first=first), 65537)
    assert len(wheel) == 65537
    assert largest_error(wheel, [1] * count) <= 0.01


def test_smallest_wheel_that_is_allowed_shares_within_one_percent() -> None:
    assert largest_error(maglev_wheel(members(100), next_prime(100 * 100)), [1] * 100) <= 0.01


@settings(max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=25))
def test_weights_share_within_one_percent(weights: list[int]) -> None:
    size = next_prime(100 * sum(weights) // min(weights))
    assert largest_error(maglev_wheel(members(len(weights), weights), size), weights) <= 0.01


def test_weights_that_differ_much_share_within_one_percent() -> None:
    weights = [1, 1000, 10, 100]
    assert largest_error(maglev_wheel(members(4, weights), next_prime(111_100)), weights) <= 0.01


@pytest.mark.parametrize(("size", "counts"), [(65537, [2, 3, 5, 10, 20, 50, 100, 128]), (16381, [2, 10, 60])])
def test_one_that_goes_moves_at_most_twice_its_share(size: int, counts: list[int]) -> None:
    for count in counts:
        before = members(count)
        full = chosen(maglev_wheel(before, size), before)
        for gone in {0, count // 2, count - 1}:
            after = before[:gone] + before[gone + 1 :]
            moved = int((full != chosen(maglev_wheel(after, size), after)).sum())
            own = int((full == before[gone].address + (8080).to_bytes(2, "big")).sum())
            assert own <= moved <= 2 * own


def test_one_of_different_weights_that_goes_moves_at_most_twice_its_share() -> None:
    before = members(10, [1, 2, 3, 4, 5, 5, 4, 3, 2, 1])
    full = chosen(maglev_wheel(before, 65537), before)
    for gone, member in enumerate(before):
        after = before[:gone] + before[gone + 1 :]
        moved = int((full != chosen(maglev_wheel(after, 65537), after)).sum())
        own = int((full == member.address + (8080).to_bytes(2, "big")).sum())
        assert own <= moved <= 2 * own


@settings(max_examples=30)
@given(st.data())
def test_order_of_listing_makes_no_difference(data: st.DataObject) -> None:
    listed = members(8, data.draw(st.lists(st.integers(1, 9), min_size=8, max_size=8)))
    shuffled = data.draw(st.permutations(listed))
    one, other = maglev_wheel(listed, 7919), maglev_wheel(shuffled, 7919)
    assert (chosen(one, listed) == chosen(other, shuffled)).all()


def test_scale_of_weights_makes_no_difference() -> None:
    assert (maglev_wheel(members(3, [1, 2, 3]), 7919) == maglev_wheel(members(3, [10, 20, 30]), 7919)).all()


def test_every_node_builds_the_same_wheel() -> None:
    """Fixed slots: a change of hash, order or arithmetic moves the connections of everybody who upgrades."""
    wheel = maglev_wheel(members(3), 65537)
    assert wheel[:24].tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 2, 2, 0, 1, 1, 2, 0, 1, 0, 0, 0, 2, 2, 1, 1]
    assert int(wheel.astype(np.int64) @ np.arange(65537)) == 2146826129


def test_another_port_is_another_member() -> None:
    both = [Member.of(ip_address("10.0.0.1"), 80, 1), Member.of(ip_address("10.0.0.1"), 81, 1)]
    assert largest_error(maglev_wheel(both, 65537), [1, 1]) <= 0.01


def test_a_hundred_endpoints_take_well_below_half_a_second() -> None:
    def seconds() -> float:
        begin = time.process_time()
        maglev_wheel(members(100), 65537)
        return time.process_time() - begin

    assert min(seconds() for _ in range(3)) < 0.3


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_turns_are_in_the_order_they_are_due(weights: list[int]) -> None:
    """Against exact fractions: rounding does not change the order."""
    count = 3 * sum(weights)
    due = sorted(
        (Fraction(2 * turn + 1, 2 * weight), member)
        for member, weight in enumerate(weights)
        for turn in range(3 * weight + len(weights) + 1)
    )
    assert take_turns(weights, count).tolist() == [member for _, member in due[:count]]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 65535), min_size=1, max_size=20), st.integers(1, 5000))
def test_any_number_of_turns_is_dealt_out_evenly(weights: list[int], count: int) -> None:
    turns = np.bincount(take_turns(weights, count), minlength=len(weights))
    assert turns.sum() == count
    for weight, dealt in zip(weights, turns.tolist(), strict=True):
        ideal = Fraction(count * weight, sum(weights))
        assert abs(dealt - ideal) <= Fraction(1, 2) + Fraction(weight * len(weights), 2 * sum(weights))
