# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.classifier`: tables on standard output, JSON in build/bench/classifier.json.

Exit code 0 also when a target is missed, 1 when something could not be measured, 130 or 143 when interrupted.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from bench import machine, scheduling
from bench.classifier.lookups import MOST, NO_RULE, Lookups
from bench.classifier.rules import conditions, packets
from bench.command import OUTPUT, report_of, require
from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on
from clearway.compiler.classifier import Sets, compile_classifier
from clearway.lab import LabError

COUNTS = (10, 1_000, 10_000, 100_000)
FEWEST = COUNTS[0]
ROUNDS = 9
BURST = 8192
TIME = "time of a look-up"
MORE = "time of a look-up, more than among 10 rules"
MORE_AT_MOST = {10_000: 300, 100_000: 600}  # ns
COMPILE = "time to compile and to put in force"
COMPILE_AT_MOST = {10_000: 1, 100_000: 10}  # s, both families
MEMORY = "memory"


def main() -> int:
    """Run it; the exit code."""
    return report_of(measure, OUTPUT / "classifier.json")


def measure(progress: Progress) -> Report:
    """Classifiers of all sizes, asked in turns."""
    require(())
    report = Report(machine.describe())
    cpu = scheduling.last_cpu()
    seconds = dict.fromkeys(COUNTS, 0.0)
    with Lookups() as lookups:
        for family in (4, 6):
            with progress.step(f"IPv{family}"):
                for place, count in enumerate(COUNTS):
                    seconds[count] += _put(report, lookups, family, place, count)
                _look_up(report, lookups, family, cpu)
    for count in COUNTS:
        case = f"{count:,} rules, both families"
        report.add(COMPILE, "s", {case: [seconds[count]]})
        if count in COMPILE_AT_MOST:
            report.expect_at_most(case, COMPILE, COMPILE_AT_MOST[count])
    return report


def _put(report: Report, lookups: Lookups, family: int, place: int, count: int) -> float:
    """Seconds that it took."""
    rules = conditions(count, family)
    began = time.perf_counter()
    compiled = compile_classifier(rules, Sets(), family)
    lookups.put(compiled, place)
    took = time.perf_counter() - began
    report.add(MEMORY, "bytes", {f"IPv{family}, {count:,} rules": [compiled.bytes]})
    return took


def _look_up(report: Report, lookups: Lookups, family: int, cpu: int) -> None:
    asked = {count: packets(conditions(count, family), MOST, family) for count in COUNTS}
    for place, count in enumerate(COUNTS):
        if (lookups.ask(asked[count], place) == NO_RULE).any():
            raise LabError(
                f"among {count:,} rules of IPv{family} there is none for a packet that was made for it"
            )
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    random = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for place, count in enumerate(COUNTS):
            burst = random.choice(asked[count], BURST, replace=False)
            with alone_on(cpu):
                times[count].append(lookups.nanoseconds(burst, place))
    names = {count: f"IPv{family}, {count:,} rules" for count in COUNTS}
    report.add(TIME, "ns", {names[count]: times[count] for count in COUNTS}, names[FEWEST])
    for count, limit in MORE_AT_MOST.items():
        more = [many - few for many, few in zip(times[count], times[FEWEST], strict=True)]
        report.add(MORE, "ns", {names[count]: more})
        report.expect_at_most(names[count], MORE, limit)


if __name__ == "__main__":
    sys.exit(main())
