# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.transparent`: tables on standard output, JSON in build/bench/transparent.json.

Exit code 0 also when a target is missed, 1 when something could not be measured, 130 or 143 when interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from bench import machine, scheduling
from bench.command import OUTPUT, report_of, require
from bench.progress import Progress
from bench.results import Report
from bench.transparent import established, first, requests
from bench.transparent.router import EMPTY, PLAIN, open_router
from clearway.lab import reap

TOOLS = ("conntrack", "ethtool", "ip", "ip6tables-restore", "iptables-restore", "nft", "nsenter")
SYSTEMS = (PLAIN, "tc", "xdp")
PARTS = ("established", "first", "requests")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.transparent", description="A Linux router, plain and with clearway."
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part (may be repeated)")
    parts = parser.parse_args(arguments).only or PARTS
    return report_of(lambda progress: measure(progress, parts), OUTPUT / "transparent.json")


def measure(progress: Progress, parts: Sequence[str]) -> Report:
    """Everything, in an order in which nothing disturbs what follows."""
    require(TOOLS)
    reap()
    report = Report(machine.describe())
    cpu = scheduling.last_cpu()
    if {"established", "first"} & set(parts):
        with ExitStack() as stack:
            with progress.step("routers: one for each system"):
                routers = [stack.enter_context(open_router(system)) for system in SYSTEMS]
            if "first" in parts:
                with ExitStack() as others:
                    empty = [others.enter_context(open_router(system)) for system in EMPTY]
                    first.measure([*routers, *empty], report, progress, cpu)
            if "established" in parts:
                established.measure(routers, report, progress, cpu)
    if "requests" in parts:
        requests.measure(report, progress, cpu)
    return report


if __name__ == "__main__":
    sys.exit(main())
