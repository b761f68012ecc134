# SPDX-License-Identifier: Apache-2.0
"""How long it takes to read a full table."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.flows.node import Node
from bench.progress import Progress
from bench.results import Report

READING = "time to read"
AT_MOST = 0.5  # s
TIMES = 5


def measure(node: Node, report: Report, progress: Progress) -> None:
    """Both of an established table's forms, as structured arrays."""
    readers = {"entries": lambda: _entries(node), "connections": node.datapath.flows}
    samples: dict[str, list[float]] = {}
    for what, read in readers.items():
        with progress.step(f"reading all {what}"):
            samples[f"IPv4, {what} of {node.max_flows:,} connections"] = [
                _seconds(read) for _ in range(TIMES)
            ]
    report.add(READING, "s", samples)
    for case in samples:
        report.expect_at_most(case, READING, AT_MOST)


def _entries(node: Node) -> None:
    with node.datapath.flow_tables() as tables:
        for table in tables:
            table.entries()


def _seconds(read: Callable[[], object]) -> float:
    began = time.perf_counter()
    read()
    return time.perf_counter() - began
