# SPDX-License-Identifier: Apache-2.0
"""`python -m bench`: the transit benchmark. Table on standard output, JSON in build/bench/transit.json.

Exit code 0 also when a target is missed, 1 when something could not be measured, 130 or 143 when interrupted.
"""

from __future__ import annotations

import contextlib
import sys

from bench import bulk, connections, machine, packets, programs, scheduling
from bench.command import OUTPUT, report_of, require
from bench.progress import Progress
from bench.results import Report
from bench.roads import FAMILIES, Road, System, open_road
from clearway.lab import reap

TOOLS = ("clang", "conntrack", "ethtool", "ip", "iperf3", "nft", "nginx", "nsenter", "wrk")
# Ratios to nftables in the same run
XDP_PACKETS = 4.0
TC_PACKETS = 1.5
TC_BULK = 1.0
CONNECTIONS = 1.0


def main() -> int:
    """Run it; the exit code."""
    return report_of(measure, OUTPUT / "transit.json")


def measure(progress: Progress) -> Report:
    """Everything, in an order in which nothing disturbs what follows."""
    require(TOOLS)
    reap()
    with contextlib.ExitStack() as stack:
        roads: list[Road] = []
        with progress.step("labs: one for each system"):
            roads += [stack.enter_context(open_road(system)) for system in System]
        report = Report(machine.describe(f"cw-{System.TC.lab}"))
        cpu = scheduling.last_cpu()
        packets.established(roads, report, progress, cpu)
        bulk.throughput(roads, report, progress)
        connections.new_connections(roads, report, progress)
        packets.opening(roads, report, progress, cpu)
    programs.sizes(report, progress)
    set_targets(report)
    return report


def set_targets(report: Report) -> None:
    """What the data path is held to, for both families alike."""
    for family in FAMILIES:
        masquerade, service = f"masquerade IPv{family}", f"service IPv{family}"
        report.expect(f"{masquerade}, {System.XDP}", packets.PACKETS, XDP_PACKETS)
        report.expect(f"{masquerade}, {System.TC}", packets.PACKETS, TC_PACKETS)
        report.expect(f"{masquerade}, {System.TC}", bulk.THROUGHPUT, TC_BULK)
        report.expect(f"{service}, {System.TC}", connections.RATE, CONNECTIONS)
        report.expect(f"{service}, {System.XDP}", connections.RATE, CONNECTIONS)


if __name__ == "__main__":
    sys.exit(main())
