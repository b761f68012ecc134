# SPDX-License-Identifier: Apache-2.0
"""The round-robin wheel: a sequence of turns, in proportion to weights and without bursts."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np
from numpy.typing import NDArray

Members = NDArray[np.uint32]
"""One entry a slot or turn: the index of a member."""


def round_robin_wheel(weights: Sequence[int]) -> Members:
    """The shortest wheel on which every member (weight at least 1) has exactly its share.

    nginx's smooth weighted round robin (src/http/ngx_http_upstream_round_robin.c): before each turn, every
    member gains its weight as credit; the turn goes to the largest credit, the first of equals, and costs
    the sum of all weights. After as many turns as that sum, all credits are zero again: that is the wheel.
    """
    weight = np.asarray(weights, dtype=np.int64) // gcd(*weights)
    total = int(weight.sum())
    credit = np.zeros_like(weight)
    wheel = np.empty(total, dtype=np.uint32)
    for turn in range(total):
        credit += weight
        member = credit.argmax()
        credit[member] -= total
        wheel[turn] = member
    return wheel
