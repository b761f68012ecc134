# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.firewall`: tables on standard output, JSON in build/bench/firewall.json.

Exit code 0 also when a target is missed, 1 when something could not be measured, 130 or 143 when interrupted.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from bench import machine, scheduling
from bench.command import OUTPUT, report_of, require
from bench.firewall import established, first, loading, log, through
from bench.firewall.rules import FAMILIES, firewall, ruleset
from bench.flows.node import Node, open_node, remove_leftovers
from bench.progress import Progress
from bench.results import Report
from clearway.compiler import Tables
from clearway.lab import reap
from clearway.model import config_from_data

TOOLS = (
    "conntrack",
    "ethtool",
    "ip",
    "ip6tables",
    "ip6tables-restore",
    "iptables",
    "iptables-restore",
    "nft",
    "nsenter",
)
COUNTS = (10, 1_000, 10_000, 100_000)
FLOWS = 1 << 19
ROOM = COUNTS[-1]


def main() -> int:
    """Run it; the exit code."""
    return report_of(measure, OUTPUT / "firewall.json")


def measure(progress: Progress) -> Report:
    """Everything, in an order in which nothing disturbs what follows."""
    require(TOOLS)
    reap()
    remove_leftovers()
    cpu = scheduling.last_cpu()
    with open_node(FLOWS, ROOM) as node, node.inside.entered():
        report = Report(machine.describe(node.name))
        _packets(node, report, progress, cpu)
        loading.measure(node, report, progress)
        log.measure(node, report, progress, cpu)
    through.measure(report, progress, cpu)
    return report


def _packets(node: Node, report: Report, progress: Progress, cpu: int) -> None:
    """One family after the other: as many rules are of one family."""
    services = node.tables
    first.prepare(node)
    for family in FAMILIES:
        with progress.step(f"rules, IPv{family}"):
            rules = {count: _tables(node, count, family) for count in COUNTS}
        first.measure(node, family, rules, report, progress, cpu)
        firewalls = {first.NONE: services}
        for count in (COUNTS[0], COUNTS[-1]):
            firewalls[f"{count:,} rules"] = replace(services, firewall=rules[count].firewall)
        first.through_service(node, family, firewalls, report, progress, cpu)
        established.measure(node, family, firewalls, report, progress, cpu)


def _tables(node: Node, count: int, family: int) -> Tables:
    """With a firewall and nothing else."""
    data = {"firewall": firewall(ruleset(count, family)), "limits": {"rules": ROOM}}
    return node.compile(config_from_data(data))


if __name__ == "__main__":
    sys.exit(main())
