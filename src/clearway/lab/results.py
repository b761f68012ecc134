# SPDX-License-Identifier: Apache-2.0
"""What the demo found out: plain data, and the metrics derived from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from clearway.lab.failover import Failover
from clearway.lab.measure import Http, Packets

# The compared systems, in the order of the table.
SYSTEMS: Mapping[str, str] = {
    "linux": "Linux (nftables)",
    "tc": "clearway TC",
    "xdp": "clearway XDP",
}


@dataclass
class Figures:
    """What one system did, a value a round. Latency is taken from `alone`: under a load that fills the
    machine it would be that of the scheduler."""

    keepalive: list[Http] = field(default_factory=list)  # on kept-alive connections
    fresh: list[Http] = field(default_factory=list)  # a connection for each request
    alone: list[Http] = field(default_factory=list)  # one request at a time
    flood: list[Packets] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """One row of the comparison: the median of the rounds."""

    key: str
    title: str
    more_is_better: bool
    value: Callable[[Figures], float]


METRICS = (
    Metric("requests_per_second", "HTTP requests/s", True,
           lambda figures: median(run.per_second for run in figures.keepalive)),
    Metric("connections_per_second", "new connections/s", True,
           lambda figures: median(run.per_second for run in figures.fresh)),
    Metric("latency_p50_us", "HTTP latency p50, µs", False,
           lambda figures: median(run.p50_us for run in figures.alone)),
    Metric("latency_p99_us", "HTTP latency p99, µs", False,
           lambda figures: median(run.p99_us for run in figures.alone)),
    Metric("packets_per_second", "64-byte UDP packets/s", True,
           lambda figures: median(run.per_second for run in figures.flood)),
    Metric("cpu_ns_per_packet", "CPU a packet, ns", False,
           lambda figures: median(run.cpu_ns_per_packet for run in figures.flood)),
)  # fmt: skip


@dataclass
class Report:
    """Everything one run of the demo found out."""

    kernel: str
    cpus: int
    requests: int  # by curl, for each family
    hooks: str = ""  # what `hook: auto` became
    answers: dict[int, dict[str, int]] = field(default_factory=dict)  # family -> server -> requests
    outside_sees: dict[int, str] = field(default_factory=dict)  # family -> source address
    outside_expected: dict[int, str] = field(default_factory=dict)
    failover: Failover | None = None
    answers_afterwards: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)  # by system
    seconds: float = 0.0

    def ratio(self, metric: Metric, system: str) -> float:
        """How many times as good as Linux alone: above 1 is better, whichever way the metric points."""
        value, linux = metric.value(self.figures[system]), metric.value(self.figures["linux"])
        high, low = (value, linux) if metric.more_is_better else (linux, value)
        return high / low if low else float("nan")

    def failures(self) -> list[str]:
        """What did not work, in words; empty when all is well. A slow figure is no failure."""
        found = []
        for family, answers in self.answers.items():
            if sum(answers.values()) != self.requests or len(answers) < 3:
                found.append(
                    f"IPv{family}: not every request was answered, or not by every server: {answers}"
                )
        for family, seen in self.outside_sees.items():
            if seen != self.outside_expected[family]:
                found.append(
                    f"IPv{family}: the outside saw {seen} instead of {self.outside_expected[family]}"
                )
        if self.failover is not None:
            if self.failover.total_broken:
                found.append(f"{self.failover.total_broken} connections to the remaining servers broke")
            if self.failover.removed in self.answers_afterwards:
                found.append(f"{self.failover.removed} got new connections after its removal")
        return found
