# SPDX-License-Identifier: Apache-2.0
"""One instance a test process; every test begins with empty tables."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.flowtable.kernel import Kernel, remove_leftovers


@pytest.fixture(scope="session")
def loaded() -> Iterator[Kernel]:
    if os.geteuid() != 0:
        pytest.skip("tests of the flow table load BPF programs and need root")
    remove_leftovers()
    kernel = Kernel(os.getpid())
    try:
        yield kernel
    finally:
        kernel.remove()


@pytest.fixture
def kernel(loaded: Kernel) -> Kernel:
    loaded.reset()
    return loaded


@pytest.fixture(scope="session", params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)
