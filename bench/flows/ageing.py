# SPDX-License-Identifier: Apache-2.0
"""What a sweep through a full table costs, and how long it keeps packets waiting."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from statistics import median

from bench.flows.node import Node
from bench.flows.shapes import handshake
from bench.flows.ticker import Ticker, has_ticks
from bench.flows.traffic import CLEARWAY, Generator, held_flows
from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on
from clearway.datapath import Datapath
from clearway.lab import LabError

CPU = "CPU of a sweep"
CPU_AT_MOST = 0.25  # s
DELAY = "worst delay of a packet"
ADDED = "worst delay of a packet, added by the sweep"
ADDED_AT_MOST = 200  # us
SWEEPS = 7
BURST = 64  # hits
TRIAL_S = 1.0
TRIALS = 5
START_S = 10


def measure(node: Node, report: Report, progress: Progress, cpu: int) -> None:
    """A table full of established connections, none of which has expired."""
    with progress.step("sweep"):
        _sweeps(node, report, cpu)
    other = min(os.sched_getaffinity(0) - {cpu}, default=cpu)
    with progress.step("packets during sweeps"), Generator(node, "tc", numbers=node.max_flows) as generator:
        generator.aim_at(handshake(4)[2], held_flows(node, 4))
        generator.burst(node.max_flows, CLEARWAY, "forward_flow")
        _delays(node, report, "sweep on another CPU", other, lambda: _longest_burst(generator, cpu))
    if has_ticks():
        with progress.step("softirqs during sweeps"):
            _delays(node, report, "sweep on the same CPU", cpu, lambda: _latest_tick(cpu))
    else:
        progress.note("this kernel cannot tell how late softirqs run on a CPU that sweeps")


def _sweeps(node: Node, report: Report, cpu: int) -> None:
    held = node.connections(4)
    times = []
    for _ in range(SWEEPS):
        with alone_on(cpu):
            began = time.thread_time()
            result = node.datapath.sweep()
            times.append(time.thread_time() - began)
        if (result.visited, result.expired) != (held, 0):
            raise LabError(f"a sweep of {held:,} connections said {result}")
    case = f"IPv4, {node.max_flows:,} connections"
    report.add(CPU, "s", {case: times})
    report.expect_at_most(case, CPU, CPU_AT_MOST)


def _delays(node: Node, report: Report, case: str, sweep_cpu: int, worst: Callable[[], float]) -> None:
    """The worst of TRIAL_S, in turns without and with one sweep after the other; medians of TRIALS."""
    quiet, swept = [], []
    for _ in range(TRIALS):
        quiet.append(worst())
        with _sweeping(node, sweep_cpu):
            swept.append(worst())
    report.add(DELAY, "us", {f"{case}, quiet": quiet, f"{case}, sweeping": swept})
    report.add(ADDED, "us", {case: [median(swept) - median(quiet)]})
    report.expect_at_most(case, ADDED, ADDED_AT_MOST)


def _longest_burst(generator: Generator, cpu: int) -> float:
    """Microseconds that the slowest BURST packets took in the program."""
    ends, longest = time.perf_counter() + TRIAL_S, 0
    with alone_on(cpu):
        while time.perf_counter() < ends:
            longest = max(longest, BURST * generator.send(BURST))
    return longest / 1000


def _latest_tick(cpu: int) -> float:
    """Microseconds that a softirq, which is what brings packets, had to wait."""
    with Ticker(cpu) as ticker:
        time.sleep(TRIAL_S)
        return ticker.latest()


@contextmanager
def _sweeping(node: Node, cpu: int) -> Iterator[None]:
    """Another process sweeps, one round after the other, for the time of the `with` block."""
    context = multiprocessing.get_context("fork")
    begun, ending = context.Event(), context.Event()
    process = context.Process(target=_sweep_on, args=(node.name, cpu, begun, ending), daemon=True)
    process.start()
    try:
        if not begun.wait(START_S):
            raise LabError("the process that sweeps does not begin")
        yield
    finally:
        ending.set()
        process.join(START_S)
        if process.is_alive():
            process.kill()
            process.join()


def _sweep_on(instance: str, cpu: int, begun: Event, ending: Event) -> None:
    """As the daemon: one process among others, without the benchmark's precedence."""
    os.setsid()
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    os.sched_setaffinity(0, {cpu})
    with Datapath.open(instance) as datapath:
        while not ending.is_set():
            datapath.sweep()
            begun.set()
