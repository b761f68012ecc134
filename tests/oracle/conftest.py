# SPDX-License-Identifier: Apache-2.0
"""A pair of labs for each hook, kept up for many cases."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.oracle.lab import Pair


def pytest_configure(config: pytest.Config) -> None:
    """SIGTERM ends the run as Ctrl-C does, with every fixture torn down, instead of leaving namespaces."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


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
