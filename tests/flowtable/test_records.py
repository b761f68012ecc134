# SPDX-License-Identifier: Apache-2.0
"""Records of connections that end: none is lost to a reader that keeps up."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.flowtable.kernel import UDP, Kernel, Link, Way, address

HELD = 27_594
"""Records that the ring holds."""


def link(family: int, number: int, seconds_idle: float = 0) -> Link:
    return Link(
        Way(UDP, address(family, 10, number), 1000, address(family, 20, 1), 53),
        Way(UDP, address(family, 10, number), 1000, address(family, 40, 1), 53),
        idle=(seconds_idle, seconds_idle),
    )


def test_what_the_ring_does_not_hold_is_counted(kernel: Kernel, family: int) -> None:
    lost = kernel.datapath.lost_records()
    with kernel.datapath.records() as read:
        assert kernel.reuse(link(family, 1), HELD + 100) == 0
        assert len(read()) == HELD
        assert kernel.datapath.lost_records() - lost == 100
        assert kernel.reuse(link(family, 1), HELD) == 0
        assert len(read()) == HELD
    assert kernel.datapath.lost_records() - lost == 100


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "sleeps"])
def test_sweep_waits_for_whoever_reads_the_ring(kernel: Kernel, family: int, reads: bool) -> None:
    """A while: connections end in any case."""
    assert kernel.open(link(family, 2, seconds_idle=100_000)) == "created"
    with kernel.datapath.records() as read, ThreadPoolExecutor(1) as pool:
        assert kernel.reuse(link(family, 1), HELD - 1000) == 0
        begin = time.monotonic()
        sweeping = pool.submit(kernel.datapath.sweep)
        time.sleep(0.1)
        assert not sweeping.done()
        if reads:
            assert len(read()) == HELD - 1000
        assert sweeping.result().expired == 1
        assert reads or time.monotonic() - begin > 0.4
        assert len(read()) == (1 if reads else HELD - 999)


def test_sweep_waits_for_nobody_else(kernel: Kernel, family: int) -> None:
    with kernel.datapath.records() as read:
        assert kernel.reuse(link(family, 1), HELD - 1000) == 0
        assert len(read()) == HELD - 1000
        assert kernel.reuse(link(family, 1), HELD - 1000) == 0
    begin = time.monotonic()
    kernel.datapath.sweep()
    assert time.monotonic() - begin < 0.4
