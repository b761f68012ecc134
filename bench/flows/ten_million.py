# SPDX-License-Identifier: Apache-2.0
"""Ten million connections at once: whether they are held, and what that takes. Needs 6 GiB of memory."""

from __future__ import annotations

import time

import numpy as np

from bench.flows.ageing import CPU
from bench.flows.node import open_node
from bench.flows.opening import FAILED, HELD
from bench.flows.shapes import handshake
from bench.flows.traffic import CLEARWAY, Generator, open_flows
from bench.progress import Progress
from bench.results import Report

FLOWS = 10_000_000
BURST = 200_000
SHARE = 20  # hits are sent to one in so many of the connections


def measure(report: Report, progress: Progress) -> None:
    """TCP over IPv4, established; the table of IPv6 is as large and stays empty."""
    case = f"IPv4, {FLOWS:,} connections"
    with (
        progress.step(f"{FLOWS:,} connections"),
        open_node(FLOWS) as node,
        node.inside.entered(),
        Generator(node, "tc", numbers=FLOWS // SHARE) as generator,
    ):
        open_flows(generator, handshake(4), 0, FLOWS)
        held = node.connections(4)
        report.add(HELD, "", {case: [held]})
        report.add(FAILED, "%", {case: [100 * (1 - held / FLOWS)]})
        began = time.thread_time()
        node.datapath.sweep()
        report.add(CPU, "s", {case: [time.thread_time() - began]})
        numbers = np.arange(0, FLOWS, SHARE, dtype=np.uint32)
        generator.aim_at(handshake(4)[2], np.random.default_rng(0).permutation(numbers))
        served = node.reasons()["forward_flow"]
        generator.send(BURST, CLEARWAY)
        served = node.reasons()["forward_flow"] - served
        progress.note(f"  {held:,} held; of {BURST:,} packets of them {served:,} were hits")
