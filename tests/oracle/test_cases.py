# SPDX-License-Identifier: Apache-2.0
"""Cases by chance: what Linux does with clearway running beside it is what Linux does alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.oracle.case import Case
from tests.oracle.cases import cases
from tests.oracle.check import check
from tests.oracle.lab import Pair
from tests.oracle.play import Played

LEAST_ARRIVALS = 4  # frames a case, on average: others say little
# the same cases in every run; `make oracle` has others
REPEATABLE = settings(
    derandomize=True,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def all_played() -> Iterator[list[Played]]:
    """Where a test notes what became of each of its cases."""
    all_of_them: list[Played] = []
    yield all_of_them
    assert sum(one.arrived for one in all_of_them) > LEAST_ARRIVALS * len(all_of_them)


@pytest.mark.timeout(900)
@settings(REPEATABLE, max_examples=60)
@given(case=cases(legacy=False))
def test_nobody_can_tell_clearway_from_linux(pair: Pair, all_played: list[Played], case: Case) -> None:
    all_played.append(check(pair, case))


def test_much_of_it_was_carried_by_clearway(pair: Pair) -> None:
    assert pair.carried() > 0


@pytest.mark.timeout(900)
@settings(REPEATABLE, max_examples=20)
@given(case=cases(legacy=True))
def test_nobody_can_tell_clearway_from_linux_under_xtables(
    pair: Pair, all_played: list[Played], case: Case
) -> None:
    """In labs where the tables of iptables-legacy stay for good, so last."""
    all_played.append(check(pair, case))
