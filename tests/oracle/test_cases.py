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

LEAST_ARRIVALS = 4  # frames a case, on average: others say little
# the same cases in every run; `make oracle` has others
REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def arrivals() -> Iterator[list[int]]:
    """Where a test notes how many frames each of its cases has brought."""
    counts: list[int] = []
    yield counts
    assert sum(counts) > LEAST_ARRIVALS * len(counts)


@pytest.mark.timeout(900)
@settings(REPEATABLE, max_examples=60)
@given(case=cases(legacy=False))
def test_nobody_can_tell_clearway_from_linux(pair: Pair, arrivals: list[int], case: Case) -> None:
    arrivals.append(check(pair, case))


@pytest.mark.timeout(900)
@settings(REPEATABLE, max_examples=20)
@given(case=cases(legacy=True))
def test_nobody_can_tell_clearway_from_linux_under_xtables(
    pair: Pair, arrivals: list[int], case: Case
) -> None:
    """In labs where the tables of iptables-legacy stay for good, so last."""
    arrivals.append(check(pair, case))
