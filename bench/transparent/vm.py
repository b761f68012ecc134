# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.transparent.vm FILE`: instructions a packet, in a machine that tools/bench-transparent-vm
emulates; tables on standard output, JSON in FILE.

While it has work the machine's clock counts instructions: a nanosecond is one (qemu, -icount shift=0). They
repeat, whatever else the host does, and tell nothing of caches. What it takes to bring a packet to the node's
TC is taken off. Exit codes as of bench.transparent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench import machine, scheduling
from bench.command import report_of, require
from bench.progress import Progress
from bench.results import Report
from bench.transparent.emulated import (
    BALANCING,
    WITH_CLEARWAY,
    WITH_CONNTRACK,
    Emulated,
    System,
    open_emulated,
)
from bench.transparent.established import expect_carried, report_left
from bench.transparent.router import LASTING, establish, settle
from bench.transparent.rules import FAMILIES
from clearway.lab import reap

TOOLS = ("conntrack", "ethtool", "ip", "ipvsadm", "nft", "nsenter")
ROUNDS = 3
BURST = 10_000
OFFLOADED = "OFFLOAD"  # in a flowtable

INSTRUCTIONS = "instructions per packet above generator"
BESIDE_FLOWTABLE = "instructions per packet above generator, beside nf_flowtable"
# Of what Linux takes
OF_MASQUERADE, OF_FLOWTABLE, OF_IPVS = 0.5, 0.9, 0.5


def main(arguments: Sequence[str]) -> int:
    """Run it; the exit code."""
    if len(arguments) != 1:
        print("usage: python -m bench.transparent.vm FILE", file=sys.stderr)
        return 2
    return report_of(measure, Path(arguments[0]))


def measure(progress: Progress) -> Report:
    """One system after the other: none disturbs the count of another."""
    require(TOOLS)
    reap()
    report, cpu = Report(machine.describe()), scheduling.last_cpu()
    counts: dict[tuple[System, int], list[float]] = {}
    left: dict[tuple[System, int], list[float]] = {}
    for system in System:
        with progress.step(system), open_emulated(system) as emulated:
            for family in FAMILIES:
                counts[system, family], left[system, family] = _instructions(emulated, family, cpu)
    for family in FAMILIES:
        floor = counts[System.GENERATOR, family]
        above: dict[System, list[float]] = {
            system: [mine - least for mine, least in zip(counts[system, family], floor, strict=True)]
            for system in System
            if system is not System.GENERATOR
        }
        shares = {system: left[system, family] for system in WITH_CLEARWAY}
        report_family(report, f"IPv{family}", above, shares)
    return report


def _instructions(emulated: Emulated, family: int, cpu: int) -> tuple[list[float], list[float]]:
    """A packet, of each burst; and the share of its packets that clearway left to Linux."""
    with emulated.traffic(family) as traffic:
        if emulated.system in WITH_CONNTRACK:
            establish([traffic], cpu, OFFLOADED if emulated.system is System.FLOWTABLE else LASTING)
            settle([traffic], cpu)
        traffic.once(cpu)
        samples = [traffic.take(BURST, cpu) for _ in range(ROUNDS)]
        return [1e9 / sample.rate for sample in samples], [sample.left for sample in samples]


def report_family(
    report: Report, case: str, above: dict[System, list[float]], left: dict[System, list[float]]
) -> None:
    """Figures and targets of a family, of samples by system: instructions, and shares of the packets."""
    names = {system: f"{case}, {system}" for system in System}
    for systems, reference in (
        ([system for system in above if system not in BALANCING], System.MASQUERADE),
        (BALANCING, System.IPVS_BARE),
    ):
        samples = {names[system]: above[system] for system in systems}
        report.add(INSTRUCTIONS, "", samples, names[reference])
    beside = {names[system]: above[system] for system in (System.FLOWTABLE, System.ADOPTED)}
    report.add(BESIDE_FLOWTABLE, "", beside, names[System.FLOWTABLE])
    report_left(report, {names[system]: shares for system, shares in left.items()})
    adopted, learned = names[System.ADOPTED], names[System.LEARNED]
    report.expect(adopted, INSTRUCTIONS, OF_MASQUERADE, at_most=True)
    report.expect(adopted, BESIDE_FLOWTABLE, OF_FLOWTABLE, at_most=True)
    report.expect(learned, INSTRUCTIONS, OF_IPVS, at_most=True)
    for name in (adopted, learned):
        expect_carried(report, name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
