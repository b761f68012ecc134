# SPDX-License-Identifier: Apache-2.0
"""Labs for the network tests: real namespaces, real daemons, real servers and clients."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from clearway.lab import Daemon, Lab, Topology, reap
from tests.net.configuration import standard


@pytest.fixture(scope="session")
def lab_names() -> Iterator[str]:
    """Names no other test process uses; what killed processes left behind is removed first."""
    if os.geteuid() != 0:
        pytest.skip("network tests make namespaces and need root")
    reap()
    return (f"t{os.getpid()}-{number}" for number in itertools.count())


@pytest.fixture(scope="module", params=["tc", "xdp"])
def hook(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def topology() -> Topology:
    """Modules that need another one override this fixture."""
    return Topology()


@pytest.fixture(scope="module")
def lab(lab_names: Iterator[str], hook: str, topology: Topology) -> Iterator[Lab]:
    """A lab whose hosts are set up for the hook; shared by a module's tests."""
    with Lab(next(lab_names), topology) as built:
        built.prepare_for(hook)
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab, hook: str) -> Iterator[Daemon]:
    """A daemon with the standard configuration, shared by a module's tests, which leave it as it is."""
    with lab.daemon(standard(lab, hook)) as running:
        yield running


@pytest.fixture
def own_daemon(lab: Lab, hook: str) -> Iterator[Daemon]:
    """A daemon of the test's own, to reconfigure, kill and take down."""
    with lab.daemon(standard(lab, hook)) as running:
        yield running


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """For sockets and processes a test opens: closed at its end, whatever happens."""
    with ExitStack() as closing:
        yield closing
