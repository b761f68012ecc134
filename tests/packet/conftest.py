# SPDX-License-Identifier: Apache-2.0
"""One world a test process; every test begins with an empty flow table and no configuration."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from zlib import crc32

import pytest

from tests.packet.addresses import NETS, Net
from tests.packet.node import Node
from tests.packet.wire import Wire
from tests.packet.world import World, remove_leftovers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sample", action="store_true", help="each test with one of its parameters")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """--sample: for emulated machines, where all cases take hours. The choice is always the same."""
    if not config.getoption("sample", False):
        return
    cases: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = [same[crc32(test.encode()) % len(same)] for test, same in cases.items()]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("packet tests load BPF programs and need root")
    remove_leftovers()
    built = World(os.getpid())
    try:
        yield built
    finally:
        built.remove()


@pytest.fixture(params=["xdp", "tc"])
def hook(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def net(request: pytest.FixtureRequest) -> Net:
    """The addresses of one family."""
    return NETS[request.param]


@pytest.fixture
def node(world: World, hook: str) -> Node:
    made = Node(world, hook)
    made.reset()
    return made


@pytest.fixture(scope="session")
def open_wire(world: World) -> Iterator[Wire]:
    with closing(Wire(world)) as wire:
        yield wire


@pytest.fixture
def wire(open_wire: Wire, node: Node) -> Wire:
    """The far ends of the links of a node that has just been reset; nothing is under way."""
    assert node.flows.entries() == 0
    open_wire.clear()
    return open_wire


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """What counts for each CPU, or stays there from one packet to the next, shows."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)
