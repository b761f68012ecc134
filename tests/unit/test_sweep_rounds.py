# SPDX-License-Identifier: Apache-2.0
"""How much of the flow table is swept at a time."""

from __future__ import annotations

from itertools import pairwise

from clearway.daemon.rounds import SMALLEST_SHARE, SweepRounds
from clearway.datapath.calls import SweepResult

BUDGET = 0.05
LARGE = 1 << 26  # connections


def sweep(rounds: SweepRounds, whole_takes: float, parts: int) -> list[float]:
    """Shares of so many parts, on a machine that takes `whole_takes` seconds for a whole round."""
    shares, position = [], 0.0
    for _ in range(parts):
        share = min(rounds.share, 1.0 - position)
        position += share
        shares.append(share)
        ended = position >= 1.0
        rounds.take(SweepResult(round(1000 * share), 1, ended, share), share * whole_takes, 0.0)
        position = 0.0 if ended else position
    return shares


def test_small_table_is_soon_swept_whole() -> None:
    assert sweep(SweepRounds(BUDGET, LARGE), 0.01, 20)[-1] == 1.0


def test_default_table_is_swept_whole_from_the_start() -> None:
    assert SweepRounds(BUDGET, 65536).share == 1.0


def test_large_table_is_swept_in_parts_that_keep_to_the_budget() -> None:
    shares = sweep(SweepRounds(BUDGET, LARGE), 0.4, 40)
    assert 0.1 <= max(shares) <= 0.13


def test_share_grows_no_faster_than_to_twice() -> None:
    shares = sweep(SweepRounds(BUDGET, LARGE), 0.001, 6)
    assert shares[0] == SMALLEST_SHARE
    assert all(later <= 2 * earlier for earlier, later in pairwise(shares))


def test_slow_machine_still_ends_its_rounds() -> None:
    assert sweep(SweepRounds(BUDGET, LARGE), 1000.0, 64)[-1] >= SMALLEST_SHARE


def test_a_round_tells_the_sum_of_its_parts() -> None:
    rounds = SweepRounds(BUDGET, LARGE)
    assert rounds.take(SweepResult(100, 3, ended=False, share=0.6), 0.01, 10.0) is None
    done = rounds.take(SweepResult(50, 4, ended=True, share=0.4), 0.02, 11.0)
    assert done is not None
    assert (done.connections, done.expired, done.at) == (150, 7, 11.0)
    assert 0.029 < done.seconds < 0.031
    again = rounds.take(SweepResult(1, 0, ended=True), 0.01, 12.0)
    assert again is not None and again.connections == 1
