# SPDX-License-Identifier: Apache-2.0
"""Program time of packets of established flows: the flow table beside a kernel hash map."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from bench.flows.node import Node
from bench.flows.shapes import conversation
from bench.flows.traffic import CLEARWAY, EMPTY, HOOKS, Generator, held_flows, open_flows
from bench.flows.yardstick import KERNEL_HASH, Yardstick
from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on

TIME = "program time of a hit"
MEMORY = "memory of a connection"
MEMORY_AT_MOST = 192  # bytes, IPv4
ROUNDS = 21
SEED = 1
# Ratios to the kernel hash, by family and number of flows
AT_MOST = {4: {1000: 0.5, 1_000_000: 0.6}, 6: {1000: 0.6, 1_000_000: 0.7}}
# How many flows, and how many of their packets make a burst: some ten milliseconds
BURSTS = {1000: 200_000, 100_000: 50_000, 1_000_000: 50_000}


def case_of(family: int, flows: int, hook: str) -> str:
    return f"IPv{family}, {flows:,} flows, {hook}"


def measure(node: Node, report: Report, progress: Progress, cpu: int) -> None:
    """Established UDP flows, hit in a random order."""
    with ExitStack() as stack:
        yardstick = stack.enter_context(Yardstick(node))
        generators = {
            hook: stack.enter_context(
                Generator(node, hook, {KERNEL_HASH: yardstick.programs[hook]}, numbers=node.max_flows)
            )
            for hook in HOOKS
        }
        for family, limits in AT_MOST.items():
            before = 0
            for flows, burst in BURSTS.items():
                with progress.step(f"hits, IPv{family}, {flows:,} flows"):
                    open_flows(generators["tc"], conversation(family), before, flows - before)
                    yardstick.fill(family)
                    _all_hooks(generators, family, flows, burst, report, cpu)
                before = flows
                if flows in limits:
                    for hook in HOOKS:
                        report.expect(case_of(family, flows, hook), TIME, limits[flows], at_most=True)
            _memory(node, yardstick, family, report)
    report.expect_at_most(f"IPv4, {CLEARWAY}", MEMORY, MEMORY_AT_MOST)


def _all_hooks(
    generators: dict[str, Generator], family: int, flows: int, burst: int, report: Report, cpu: int
) -> None:
    for hook, generator in generators.items():
        numbers = np.random.default_rng(SEED).permutation(held_flows(generator.node, family))
        generator.aim_at(conversation(family)[0], numbers)
        times = _take_turns(generator, (EMPTY, CLEARWAY, KERNEL_HASH), burst, cpu)
        mine, reference = case_of(family, flows, hook), case_of(family, flows, f"{hook} on a {KERNEL_HASH}")
        report.add(
            TIME,
            "ns",
            {
                reference: _above(times[KERNEL_HASH], times[EMPTY]),
                mine: _above(times[CLEARWAY], times[EMPTY]),
            },
            reference,
        )


def _take_turns(generator: Generator, targets: Sequence[str], burst: int, cpu: int) -> dict[str, list[int]]:
    """One burst of each a round, every second round in the opposite order; nanoseconds a packet."""
    times: dict[str, list[int]] = {target: [] for target in targets}
    for number in range(-1, ROUNDS):
        for target in targets if number % 2 == 0 else reversed(targets):
            with alone_on(cpu):
                if target == EMPTY:
                    taken = generator.send(burst, target)
                else:
                    taken = generator.burst(burst, target, "forward_flow")
            if number >= 0:  # the first round is for caches
                times[target].append(taken)
    return times


def _above(times: Sequence[int], empty: Sequence[int]) -> list[float]:
    return [float(mine - least) for mine, least in zip(times, empty, strict=True)]


def _memory(node: Node, yardstick: Yardstick, family: int, report: Report) -> None:
    """What both take, by the connections that the flow table holds."""
    held = node.connections(family)
    with node.datapath.flow_tables() as tables:
        mine = sum(table.rows.nbytes for table in tables if table.family == family)
    reference = f"IPv{family}, {KERNEL_HASH}"
    samples = {reference: [yardstick.bytes(family) / held], f"IPv{family}, {CLEARWAY}": [mine / held]}
    report.add(MEMORY, "bytes", samples, reference)
