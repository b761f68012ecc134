# SPDX-License-Identifier: Apache-2.0
"""Packets a second and CPU time a packet: 64-byte UDP by the in-kernel generator, all systems in turns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.progress import Progress
from bench.results import Report
from bench.roads import FAMILIES, TRANSLATING, Road, System
from bench.scheduling import alone_on
from bench.traffic import Burst, Generator, Sink, Stream
from clearway.lab import LabError

FLOWS = 1000
ROUNDS = 15
BURST_SECONDS = 0.06  # short, so that a round of all systems sees one state of the machine
FIRST_BURST = 20_000  # frames, to find out how many fill a burst
NEW_FLOWS = 12_000  # a burst; all rounds together stay below nf_conntrack_max
NEW_FLOW_ROUNDS = 9
LOST_AT_MOST = 0.01

PACKETS = "packets per second"
CPU = "CPU per packet"
ABOVE_GENERATOR = "CPU per packet above generator"
ABOVE_BARE = "CPU per packet above bare forwarding"  # what clearway's program itself takes
NEW = "new flows per second"

# What is taken off the cost of a system's packet
GENERATOR_OF = {system: System.DROP for system in System if system is not System.DROP}
BARE_OF = {System.TC: System.BARE_TC, System.XDP: System.BARE_XDP}


@dataclass
class Measured:
    """One system under one stream: the generator, its sinks, and what came of each burst."""

    road: Road
    generator: Generator
    sinks: Sequence[Sink]
    frames: int = FIRST_BURST
    rates: list[float] = field(default_factory=list)  # packets/s that arrived
    costs_ns: list[float] = field(default_factory=list)  # CPU time a packet

    @property
    def system(self) -> System:
        return self.road.system

    def arrived(self) -> int:
        return sum(sink.arrived() for sink in self.sinks)

    def burst(self, frames: int) -> tuple[Burst, int]:
        """Send; what was sent, and how much of it arrived as expected. LabError when too much was lost."""
        before = self.arrived()
        burst = self.generator.send(frames)
        arrived = self.arrived() - before
        if arrived < frames * (1 - LOST_AT_MOST):
            stream = self.generator.stream
            raise LabError(
                f"{self.system}: of {frames} datagrams to {stream.destination} only {arrived} arrived right"
            )
        return burst, arrived

    def take(self) -> None:
        """One burst that counts."""
        burst, arrived = self.burst(self.frames)
        self.rates.append(arrived / burst.seconds)
        self.costs_ns.append(burst.cpu_seconds * 1e9 / arrived)


def established(roads: Sequence[Road], report: Report, progress: Progress, cpu: int) -> None:
    """Flows whose replies have been seen: masquerade by all systems, the service by those that translate."""
    translating = [road for road in roads if road.system in TRANSLATING]
    for family in FAMILIES:
        case = f"masquerade IPv{family}"
        with _measuring(progress, f"{case}, {FLOWS} flows") as stack:
            measured = [
                _open(stack, road, road.masquerade_stream(family, FLOWS), road.masquerade_sinks(family))
                for road in roads
            ]
            _run(measured, cpu)
            _report(measured, case, report)
        case = f"service IPv{family}"
        with _measuring(progress, f"{case}, {FLOWS} flows") as stack:
            measured = [
                _open(stack, road, road.service_stream(family, FLOWS), road.service_sinks(family))
                for road in translating
            ]
            _run(measured, cpu)
            _report(measured, case, report)


def opening(roads: Sequence[Road], report: Report, progress: Progress, cpu: int) -> None:
    """Every packet opens a flow through the service."""
    translating = [road for road in roads if road.system in TRANSLATING]
    for family in FAMILIES:
        case = f"service IPv{family}"
        with _measuring(progress, f"{case}, each a new flow") as stack:
            measured = [
                _open(stack, road, road.opening_stream(family), road.service_sinks(family))
                for road in translating
            ]
            for one in measured:
                one.road.forget()
                one.frames = NEW_FLOWS
            _take_turns(measured, NEW_FLOW_ROUNDS, cpu)
            rates = {f"{case}, {one.system}": one.rates for one in measured}
            report.add(NEW, "flows/s", rates, f"{case}, {System.NFTABLES}")


@contextlib.contextmanager
def _measuring(progress: Progress, what: str) -> Iterator[contextlib.ExitStack]:
    with progress.step(f"64-byte UDP, {what}"), contextlib.ExitStack() as stack:
        yield stack


def _open(stack: contextlib.ExitStack, road: Road, stream: Stream, sinks: Sequence[Sink]) -> Measured:
    for sink in sinks:
        stack.enter_context(sink)
    return Measured(road, stack.enter_context(road.generator(stream)), sinks)


def _run(measured: Sequence[Measured], cpu: int) -> None:
    with alone_on(cpu):
        for one in measured:
            if one.system is not System.DROP:
                _see_replies(one)
            burst, _ = one.burst(FIRST_BURST)
            one.frames = round(BURST_SECONDS / burst.cpu_seconds * FIRST_BURST)
    _take_turns(measured, ROUNDS, cpu)


def _see_replies(one: Measured) -> None:
    """Make every flow an established one, and make sure that translation works both ways."""
    stream, frames = one.generator.stream, 4 * FLOWS
    with contextlib.ExitStack() as stack:
        replies = stack.enter_context(one.road.reply_sink(stream))
        for sink in one.sinks:
            stack.enter_context(sink.echoing())
        before = replies.arrived()
        one.burst(frames)
        returned = replies.arrived() - before
    if returned < frames * (1 - LOST_AT_MOST):
        raise LabError(
            f"{one.system}: of {frames} replies from {stream.destination} only {returned} came back"
        )


def _take_turns(measured: Sequence[Measured], rounds: int, cpu: int) -> None:
    """One burst of each a round, every second round in the opposite order."""
    for number in range(rounds):
        for one in measured if number % 2 == 0 else reversed(measured):
            with alone_on(cpu):
                one.take()


def _report(measured: Sequence[Measured], case: str, report: Report) -> None:
    reference = f"{case}, {System.NFTABLES}"
    report.add(PACKETS, "packets/s", {f"{case}, {one.system}": one.rates for one in measured}, reference)
    costs = {one.system: one.costs_ns for one in measured}
    report.add(CPU, "ns", {f"{case}, {system}": values for system, values in costs.items()}, reference)
    for metric, floors in ((ABOVE_GENERATOR, GENERATOR_OF), (ABOVE_BARE, BARE_OF)):
        above = {
            f"{case}, {system}": [
                mine - least for mine, least in zip(costs[system], costs[floor], strict=True)
            ]
            for system, floor in floors.items()
            if {system, floor} <= costs.keys()
        }
        report.add(metric, "ns", above, reference)
