# SPDX-License-Identifier: Apache-2.0
"""The kernel's side: one program and one table of classifiers a test process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bench.classifier.lookups import Lookups


@pytest.fixture(scope="session")
def lookups() -> Iterator[Lookups]:
    if os.geteuid() != 0:
        pytest.skip("tests of classifiers load BPF programs and need root")
    with Lookups() as loaded:
        yield loaded


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)
