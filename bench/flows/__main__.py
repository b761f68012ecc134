# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.flows`: tables on standard output, JSON in build/bench/flows.json.

Exit code 0 also when a target is missed, 1 when something could not be measured, 130 or 143 when interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import machine, scheduling
from bench.command import OUTPUT, report_of, require
from bench.flows import ageing, ends, flood, hits, opening, reading, ten_million
from bench.flows.node import open_node, remove_leftovers
from bench.progress import Progress
from bench.results import Report

TOOLS = ("ip", "nsenter")
FLOWS = 1_000_000
FLOOD_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.flows", description="The flow table under load.")
    parser.add_argument(
        "--flood-seconds", type=float, default=FLOOD_SECONDS, help="how long the flood lasts (%(default)g)"
    )
    parser.add_argument(
        "--ten-million", action="store_true", help="hold 10,000,000 connections as well, once"
    )
    asked = parser.parse_args(arguments)
    return report_of(
        lambda progress: measure(progress, asked.flood_seconds, asked.ten_million), OUTPUT / "flows.json"
    )


def measure(progress: Progress, flood_seconds: float, ten_million_too: bool) -> Report:
    """Everything, in an order in which nothing disturbs what follows."""
    require(TOOLS)
    remove_leftovers()
    cpu = scheduling.last_cpu()
    with open_node(FLOWS) as node, node.inside.entered():
        report = Report(machine.describe(node.name))
        hits.measure(node, report, progress, cpu)
        node.forget()
        opening.first_packets(node, report, progress, cpu)
        opening.fill(node, report, progress)
        reading.measure(node, report, progress)
        ageing.measure(node, report, progress, cpu)
        flood.measure(node, report, progress, cpu, flood_seconds)
    ends.measure(report, progress)
    if ten_million_too:
        ten_million.measure(report, progress)
    return report


if __name__ == "__main__":
    sys.exit(main())
