# SPDX-License-Identifier: Apache-2.0
"""A flood of SYNs against a table full of established connections."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from bench.flows.node import Node
from bench.flows.opening import OTHERS
from bench.flows.shapes import handshake, opening
from bench.flows.traffic import AS_EXPECTED, CLEARWAY, EMPTY, Generator, held_flows
from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on
from clearway.lab import LabError

LOST = "established connections lost"
RATE = "SYNs per second"
TIME = "program time of a hit during the flood"
BURST = 20_000
PAUSE_S = 0.01  # between bursts of hits
QUIET_S = 1.0


@dataclass
class Flood:
    """SYNs of ever other flows, from a thread on a CPU of its own, until `ending`."""

    node: Node
    cpu: int
    sent: int = 0
    ending: threading.Event = field(default_factory=threading.Event)
    failed: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        try:
            os.sched_setaffinity(threading.get_native_id(), {self.cpu})
            with self.node.inside.entered(), Generator(self.node, "tc") as generator:
                generator.aim(opening(4), OTHERS, OTHERS)
                while not self.ending.is_set():
                    generator.send(BURST)
                    self.sent += BURST
        except BaseException as error:
            self.failed.append(error)


def measure(node: Node, report: Report, progress: Progress, cpu: int, seconds: float) -> None:
    """The flood on one CPU, hits on another."""
    established = held_flows(node, 4)
    other = min(os.sched_getaffinity(0) - {cpu}, default=cpu)
    flood = Flood(node, other)
    with progress.step(f"flood, {seconds:g} s"), Generator(node, "tc", numbers=len(established)) as generator:
        generator.aim_at(handshake(4)[2], np.random.default_rng(0).permutation(established))
        quiet = _hits(generator, cpu, QUIET_S)
        before = node.reasons()["forward_flow"]
        thread = threading.Thread(target=flood.run)
        thread.start()
        try:
            began = time.monotonic()
            flooded = _hits(generator, cpu, seconds)
            took = time.monotonic() - began
        finally:
            flood.ending.set()
            thread.join()
        if flood.failed:
            raise LabError(f"the flood broke off: {flood.failed[0]}")
        hits = node.reasons()["forward_flow"] - before
        lost = int(np.count_nonzero(~np.isin(established, held_flows(node, 4))))
        progress.note(f"  {flood.sent:,} SYNs, {len(flooded) * BURST:,} hits of which {hits:,} were served")
    if hits < AS_EXPECTED * len(flooded) * BURST:
        raise LabError(f"of {len(flooded) * BURST:,} hits during the flood only {hits:,} were served as such")
    case = f"IPv4, {node.max_flows:,} connections"
    report.add(LOST, "", {case: [lost]})
    report.add(RATE, "1/s", {case: [flood.sent / took]})
    for what, of in (("median", median), ("worst burst", max)):
        samples = {f"{what}, quiet": [float(of(quiet))], f"{what}, flood": [float(of(flooded))]}
        report.add(TIME, "ns", samples, f"{what}, quiet")
    report.expect_at_most(case, LOST, 0)


def _hits(generator: Generator, cpu: int, seconds: float) -> list[int]:
    """Nanoseconds a packet of bursts, for so long."""
    times, ends = [], time.monotonic() + seconds
    while time.monotonic() < ends:
        with alone_on(cpu):
            empty = generator.send(BURST, EMPTY)
            times.append(generator.send(BURST, CLEARWAY) - empty)
        time.sleep(PAUSE_S)
    return times
