# SPDX-License-Identifier: Apache-2.0
"""What opening a flow takes, and whether every flow finds its place."""

from __future__ import annotations

from bench.flows.node import Node
from bench.flows.shapes import handshake, opening
from bench.flows.traffic import CLEARWAY, EMPTY, HOOKS, Generator, open_flows
from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on

TIME = "program time of a first packet"
TIME_AT_MOST = 900  # ns
FAILED = "connections refused on the way to 80 % load"
FAILED_AT_MOST = 0.1  # %
HELD = "connections held"
ROUNDS = 15
BURST = 1000  # SYNs, each of another flow
HALF = 0.625  # of the connections that a table is made for: half of its places
OTHERS = 1 << 31  # numbers of flows that are opened besides


def first_packets(node: Node, report: Report, progress: Progress, cpu: int) -> None:
    """SYNs to a service of eight endpoints, balanced and translated, in a table that is half full."""
    for family in (4, 6):
        with progress.step(f"first packets, IPv{family}"), Generator(node, "tc") as filler:
            new = ROUNDS * BURST * len(HOOKS)
            open_flows(filler, handshake(family), 0, round(HALF * node.max_flows) - new // 2)
            for number, hook in enumerate(HOOKS):
                case = f"IPv{family}, {hook}"
                with Generator(node, hook) as generator:
                    times = _take_turns(generator, family, OTHERS + number * ROUNDS * BURST, cpu)
                report.add(TIME, "ns", {case: times})
                report.expect_at_most(case, TIME, TIME_AT_MOST)
    node.forget()


def _take_turns(generator: Generator, family: int, first: int, cpu: int) -> list[float]:
    """Nanoseconds a packet, of each round."""
    times = []
    for number in range(ROUNDS):
        generator.aim(opening(family), first + number * BURST, BURST)
        with alone_on(cpu):
            before = generator.send(BURST, EMPTY)
            times.append(float(generator.burst(BURST, CLEARWAY, "forward_new") - before))
    return times


def fill(node: Node, report: Report, progress: Progress) -> None:
    """As many established connections as the table is made for: first clients one after the other, port by
    port, then (and these stay) without any order.

    What is established is not evicted: a connection that finds both of its buckets full is refused.
    """
    for order, scattered in (("in a row", False), ("scattered", True)):
        node.forget()
        with progress.step(f"{node.max_flows:,} TCP connections, {order}"), Generator(node, "tc") as filler:
            before = node.reasons()["drop_table_full"]
            open_flows(filler, handshake(4), 0, node.max_flows, scattered=scattered)
            held = node.connections(4)
            refused = node.reasons()["drop_table_full"] - before
            progress.note(f"  {held:,} held, {refused:,} SYNs refused")
        case = f"IPv4, clients {order}"
        report.add(FAILED, "%", {case: [100 * (1 - held / node.max_flows)]})
        report.add(HELD, "", {case: [held]})
        report.expect_at_most(case, FAILED, FAILED_AT_MOST)
