# SPDX-License-Identifier: Apache-2.0
"""A pair of labs for each hook, kept up for many cases."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.oracle.lab import Pair


@pytest.fixture(scope="module", params=["tc", "xdp"])
def hook(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def pair(hook: str) -> Iterator[Pair]:
    """Both labs; shared by a module's tests, of which each begins with a reset."""
    if os.geteuid() != 0:
        pytest.skip("the oracle makes namespaces and needs root")
    with Pair(hook) as both:
        yield both
