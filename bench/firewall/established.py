# SPDX-License-Identifier: Apache-2.0
"""What rules cost the packets of a connection that goes on: nothing."""

from __future__ import annotations

from contextlib import ExitStack

from bench.firewall.first import NONE
from bench.flows.node import Node
from bench.flows.shapes import conversation
from bench.flows.traffic import CLEARWAY, EMPTY, HOOKS, Generator, open_flows
from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on
from clearway.compiler import Tables

TIME = "program time of a hit"
AT_MOST = 1.05  # of the time without a firewall
FLOWS = 1000
BURST = 100_000
ROUNDS = 21


def measure(
    node: Node, family: int, firewalls: dict[str, Tables], report: Report, progress: Progress, cpu: int
) -> None:
    """UDP through a service, which can do without a firewall (NONE, the first), and with others by what they
    are called. They take turns in one data path.
    """
    most = list(firewalls)[-1]
    with progress.step(f"hits, IPv{family}"), ExitStack() as stack:
        generators = {hook: stack.enter_context(Generator(node, hook)) for hook in HOOKS}
        node.put(firewalls[NONE])
        open_flows(generators["tc"], conversation(family), 0, FLOWS)
        for generator in generators.values():
            generator.aim(conversation(family)[0], 0, FLOWS)
        times: dict[tuple[str, str], list[float]] = {(hook, name): [] for hook in HOOKS for name in firewalls}
        for number in range(ROUNDS):
            for name in firewalls if number % 2 == 0 else reversed(firewalls):
                node.put(firewalls[name])
                for hook, generator in generators.items():
                    times[hook, name].append(_burst(generator, cpu))
    for hook in HOOKS:
        names = {name: f"IPv{family}, {hook}, {name}" for name in firewalls}
        report.add(TIME, "ns", {names[name]: times[hook, name] for name in firewalls}, names[NONE])
        report.expect(names[most], TIME, AT_MOST, at_most=True)
    node.forget()


def _burst(generator: Generator, cpu: int) -> float:
    """Nanoseconds a packet."""
    with alone_on(cpu):
        generator.send(2 * FLOWS)  # those of other rules are judged again, once
        empty = generator.send(BURST, EMPTY)
        return float(generator.burst(BURST, CLEARWAY, "forward_flow") - empty)
