# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.ddos`: tables on standard output, JSON in build/bench/ddos.json.

Exit code 0 also when a target is missed, 1 when something could not be measured, 130 or 143 when interrupted.
"""

from __future__ import annotations

import sys

from bench import machine, scheduling
from bench.command import OUTPUT, report_of, require
from bench.ddos import lists
from bench.flows.node import open_node, remove_leftovers
from bench.progress import Progress
from bench.results import Report
from clearway.lab import reap

FLOWS = 1 << 16


def main() -> int:
    """Run it; the exit code."""
    return report_of(measure, OUTPUT / "ddos.json")


def measure(progress: Progress) -> Report:
    require(("ip", "nsenter"))
    reap()
    remove_leftovers()
    with open_node(FLOWS) as node, node.inside.entered():
        report = Report(machine.describe(node.name))
        lists.measure(node, report, progress, scheduling.last_cpu())
    return report


if __name__ == "__main__":
    sys.exit(main())
