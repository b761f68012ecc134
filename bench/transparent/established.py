# SPDX-License-Identifier: Apache-2.0
"""Packets a second of established connections through a masquerading router, by how many rules it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on
from bench.transparent.router import LEFT_AT_MOST, PLAIN, Router, Sample, Traffic, establish, lasting, settle
from bench.transparent.rules import FAMILIES, filter_rules, no_filter, put
from clearway.lab import LabError

FLOWS = (1_000, 100_000)
RULES = (1, 100, 1_000)
# Linux has one hash table of connections for all namespaces: what the others hold makes its look-ups slower
# (three times 100,000: by a fifth). So where they are many, one router at a time has any.
TOGETHER_AT_MOST = 10_000  # flows
ROUNDS = 11
TURNS, ROUNDS_A_TURN = 3, 5
CONNTRACK_MAX = "/proc/sys/net/netfilter/nf_conntrack_max"
# By flows. Short, so that a round of all systems sees one state of the machine; but long enough for some
# packets of each flow.
BURST_SECONDS = {1_000: 0.06, 100_000: 1.0}
FIRST_BURST = 4_000  # frames, to find out how many fill a burst

PACKETS = "packets per second"
CPU = "CPU per packet"
LEFT = "packets that clearway left to Linux"
# At TARGET_RULES that each packet of Linux goes through
TARGET_RULES = 100
AT_LEAST = {"xdp": 5.0, "tc": 1.7}

Samples = dict[tuple[str, str], list[Sample]]
"""By case and system."""


def measure(routers: Sequence[Router], report: Report, progress: Progress, cpu: int) -> None:
    """Both families, any number of flows. LabError when Linux does not hold them as lasting ones."""
    systems = [router.system for router in routers]
    _require_room(routers[0])
    for family in FAMILIES:
        for flows in FLOWS:
            samples: Samples = {}
            together = flows <= TOGETHER_AT_MOST
            for turn in range(1 if together else TURNS):
                for group in [routers] if together else [[router] for router in routers]:
                    names = ", ".join(router.system for router in group)
                    with progress.step(f"IPv{family}, {flows:,} flows, {names}, turn {turn + 1}"):
                        _turn(group, family, flows, ROUNDS if together else ROUNDS_A_TURN, samples, cpu)
            for case in dict.fromkeys(case for case, _ in samples):
                report_case(report, case, {system: samples[case, system] for system in systems})
            set_targets(report, family, flows, systems)


def _require_room(router: Router) -> None:
    """nf_conntrack_max is the whole machine's: not for a benchmark to change."""
    most = int(router.lab.node.read(CONNTRACK_MAX))
    if most <= max(FLOWS):
        raise LabError(f"net.netfilter.nf_conntrack_max is {most}; {max(FLOWS)} connections need more")


def _turn(
    routers: Sequence[Router], family: int, flows: int, rounds: int, samples: Samples, cpu: int
) -> None:
    """Connections come to last and are measured under all rules. Nothing is left of them."""
    with ExitStack() as stack:
        through = [_open(stack, router, family, flows) for router in routers]
        establish(through, cpu)
        for established_first in (False, True):
            for count in RULES:
                _put(routers, filter_rules(count, family, established_first=established_first))
                settle(through, cpu)
                case = case_of(family, flows, count, established_first)
                for system, taken in take_turns(through, rounds, cpu).items():
                    samples.setdefault((case, system), []).extend(taken)
    _put(routers, no_filter(family))
    for router in routers:
        router.forget()


def case_of(family: int, flows: int, rules: int, established_first: bool) -> str:
    """How the report names it."""
    order = ("established", f"{rules:,} rules")
    if not established_first:
        order = order[::-1]
    return f"IPv{family}, {flows:,} flows, {order[0]}, then {order[1]}"


def take_turns(through: Sequence[Traffic], rounds: int, cpu: int) -> dict[str, list[Sample]]:
    """Bursts of each, of about the same time, every second round in the opposite order; by system."""
    frames = {}
    for one in through:
        with alone_on(cpu):
            burst, _ = one.burst(FIRST_BURST)
        frames[one.system] = round(BURST_SECONDS[one.flows] / burst.cpu_seconds * FIRST_BURST)
    taken: dict[str, list[Sample]] = {one.system: [] for one in through}
    for number in range(rounds):
        for one in through if number % 2 == 0 else reversed(through):
            taken[one.system].append(one.take(frames[one.system], cpu))
    return taken


def _open(stack: ExitStack, router: Router, family: int, flows: int) -> Traffic:
    sink = stack.enter_context(router.masqueraded(family))
    return Traffic(router, stack.enter_context(router.generator(lasting(router, family, flows))), [sink])


def _put(routers: Iterable[Router], text: str) -> None:
    for router in routers:
        put(router.lab.node, text)


def report_case(report: Report, case: str, samples: dict[str, list[Sample]]) -> None:
    """Figures of a case, of samples by system."""
    names = {system: f"{case}, {system}" for system in samples}
    rates = {names[system]: [sample.rate for sample in taken] for system, taken in samples.items()}
    costs = {names[system]: [sample.cost for sample in taken] for system, taken in samples.items()}
    left = {names[system]: [sample.left for sample in taken] for system, taken in samples.items()}
    report.add(PACKETS, "packets/s", rates, names[PLAIN])
    report.add(CPU, "ns", costs, names[PLAIN])
    del left[names[PLAIN]]
    report_left(report, left)


def report_left(report: Report, shares: dict[str, list[float]]) -> None:
    """So that nobody takes the speed of Linux for clearway's."""
    percent = {case: [100 * share for share in values] for case, values in shares.items()}
    report.add(LEFT, "%", percent)


def expect_carried(report: Report, case: str) -> None:
    """A target: what was measured was clearway."""
    report.expect_at_most(case, LEFT, 100 * LEFT_AT_MOST)


def set_targets(report: Report, family: int, flows: int, systems: Iterable[str]) -> None:
    """What systems with clearway are held to."""
    case = case_of(family, flows, TARGET_RULES, established_first=False)
    for system in systems:
        if system != PLAIN:
            report.expect(f"{case}, {system}", PACKETS, AT_LEAST[system])
            expect_carried(report, f"{case}, {system}")
