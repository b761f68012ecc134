# SPDX-License-Identifier: Apache-2.0
"""Counters that begin again at zero: the clock's lower half, and how often a slot has changed."""

from __future__ import annotations

import pytest

from tests.flowtable.kernel import LOW, TCP, TIMEOUTS, UDP, Kernel, Link, Way, address

LIFE = 0xFFFF
"""The part of a mark that counts."""


def connection(family: int, proto: int = TCP, number: int = 1) -> Link:
    return Link(
        Way(proto, address(family, 10, number), 1000 + number, address(family, 20, 1), 80),
        Way(proto, address(family, 30, 1), 20000 + number, address(family, 40, 1), 8080),
    )


# ---- time ----


@pytest.mark.parametrize(
    "now, seen, idle",
    [
        (1000, 1000, 0),
        (1000, 900, 100),
        (5, -5, 10),
        (0, -1, 1),
        (-1, -11, 10),
        (1 << 31, 1, (1 << 31) - 1),
        (1000, 1001, 0),
        (-1, 0, 0),
        (-5, 5, 0),
    ],
)
def test_time_since_a_packet_is_right_across_the_wrap(kernel: Kernel, now: int, seen: int, idle: int) -> None:
    """A stamp of the future is not old: a packet came after the clock was read."""
    assert kernel.idle(now, seen) == idle


class Clock:
    """The clock of the sweep, so many seconds after its lower half has begun again."""

    def __init__(self, kernel: Kernel, seconds: float) -> None:
        self.kernel = kernel
        self.now = round(seconds * kernel.hz)
        kernel.set_clock_ahead(self.now - kernel.datapath.clock().jiffies & LOW)

    def seen(self, link: Link, idle: float, reply_idle: float | None = None) -> None:
        for key, seconds in zip(link.ways, (idle, idle if reply_idle is None else reply_idle), strict=True):
            self.kernel.write(key, seen=self.now - round(seconds * self.kernel.hz) & LOW)


@pytest.mark.parametrize("after", [-20, -0.2, 0.0, 20, 290])
@pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
def test_connection_expires_in_time_across_the_wrap(
    kernel: Kernel, family: int, after: float, proto: int
) -> None:
    """after: seconds from the wrap to the sweep; both connections were seen well before."""
    clock = Clock(kernel, after)
    patience = TIMEOUTS["tcp_established" if proto == TCP else "udp_stream"]
    fresh, old = (connection(family, proto, number) for number in (1, 2))
    for link, idle in ((fresh, patience - 10), (old, patience + 10)):
        assert kernel.open(link) == "created"
        clock.seen(link, idle)
    assert kernel.sweep_here(family).expired == 1
    assert [kernel.look(link.client) is not None for link in (fresh, old)] == [True, False]
    assert kernel.ended() == {"expired": 1}


@pytest.mark.parametrize("side", [0, 1], ids=["client", "reply"])
def test_packet_after_the_wrap_keeps_a_connection_from_before(kernel: Kernel, family: int, side: int) -> None:
    clock, link = Clock(kernel, 1), connection(family)
    assert kernel.open(link) == "created"
    idle = (0.5, 1000)
    clock.seen(link, idle[side], idle[1 - side])
    assert kernel.sweep_here(family, thorough=True).expired == 0
    entries = [kernel.look(key) for key in link.ways]
    stamps = {entry.seen for entry in entries if entry}
    assert stamps == {clock.now - round(0.5 * kernel.hz)}  # the silent one's too


def test_packet_that_comes_while_the_sweep_runs_is_not_old(kernel: Kernel, family: int) -> None:
    """The sweep began just before the wrap, the packet came just after it."""
    clock, link = Clock(kernel, -10), connection(family)
    assert kernel.open(link) == "created"
    clock.seen(link, -20)
    assert kernel.sweep_here(family, thorough=True).expired == 0
    assert kernel.look(link.client) is not None


def test_python_tells_the_idle_time_across_the_wrap(kernel: Kernel, family: int) -> None:
    """However long this machine has run: one of these was before its clock's lower half began again."""
    link = connection(family)
    assert kernel.open(link) == "created"
    uptime_s = kernel.datapath.clock().jiffies % (LOW + 1) / kernel.hz
    for seconds in (uptime_s / 2, uptime_s + 1000):
        if seconds < (1 << 31) / kernel.hz:
            kernel.age(link, seconds)
            (flow,) = kernel.datapath.flows()
            assert abs(float(flow["idle_s"]) - seconds) < max(2, seconds / 1e5)


# ---- lives of a slot ----


def test_slot_that_was_used_70000_times_is_found_right(kernel: Kernel, family: int) -> None:
    link = connection(family)
    assert kernel.reuse(link, times=70_000) == 0
    assert kernel.ended() == {"reopened": 70_000}
    assert kernel.entries() == 0


def test_next_hop_that_changed_70000_times_is_found_right(kernel: Kernel, family: int) -> None:
    assert kernel.reuse(connection(family), times=2, turns=35_000) == 0


@pytest.mark.parametrize("life", range(LIFE - 15, LIFE, 2))
def test_every_step_of_a_life_may_wrap(kernel: Kernel, family: int, life: int) -> None:
    """Claimed, written, in force, its next hop exchanged, ended: the count begins again at one of these."""
    link = connection(family)
    with kernel.table(family) as table:
        table.rows["marks"]["mark"] = life  # every slot is free, and has changed so often
    assert kernel.open(link) == "created"
    assert kernel.open(link) == "taken"
    for hop, key in enumerate(link.ways, 2):
        before = kernel.look(key)
        assert kernel.resolve(key, hop)
        after = kernel.look(key)
        assert before is not None and after is not None and after.hit and after.paired
        assert (after.stamp, after.mark >> 16) == (hop, before.mark >> 16)
        assert after.mark - before.mark & LIFE == 2
    (flow,) = kernel.datapath.flows()
    assert flow["paired"]
    assert kernel.end(link.reply)
    assert (kernel.entries(), kernel.ended()) == (0, {"reopened": 1})
    assert kernel.open(link) == "created"
