# SPDX-License-Identifier: Apache-2.0
"""Turns by weight: exact shares, no bursts, and a wheel that is no longer than it must be."""

from __future__ import annotations

from collections import Counter
from math import gcd

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearway.compiler.wheel import round_robin_wheel

WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("weights", "wheel"),
    [
        ([1], [0]),
        ([7], [0]),
        ([1, 1, 1], [0, 1, 2]),
        ([5, 5], [0, 1]),
        ([2, 1], [0, 1, 0]),
        ([5, 1, 1], [0, 0, 1, 0, 2, 0, 0]),
        ([4, 2], [0, 1, 0]),
        ([3, 1, 1, 1], [0, 1, 0, 2, 3, 0]),
    ],
)
def test_wheel(weights: list[int], wheel: list[int]) -> None:
    assert round_robin_wheel(weights).tolist() == wheel


@given(WEIGHTS)
def test_every_member_has_exactly_its_share(weights: list[int]) -> None:
    wheel = round_robin_wheel(weights).tolist()
    divisor = gcd(*weights)
    assert Counter(wheel) == {index: weight // divisor for index, weight in enumerate(weights)}


@given(WEIGHTS)
def test_nobody_waits_for_long(weights: list[int]) -> None:
    """At most about twice as long as if its turns were spread evenly."""
    wheel = np.tile(round_robin_wheel(weights), 2)
    for member, weight in enumerate(weights):
        places = np.flatnonzero(wheel == member)
        longest = int(np.diff(places).max()) if len(places) > 1 else len(wheel)
        assert longest <= 2 * sum(weights) / weight + 1


def test_largest_weights_take_turns_exactly() -> None:
    wheel = round_robin_wheel([65535, 1])
    assert Counter(wheel.tolist()) == {0: 65535, 1: 1}
