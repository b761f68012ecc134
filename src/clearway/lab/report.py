# SPDX-License-Identifier: Apache-2.0
"""How the demo's report is printed: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from clearway.lab.failover import Failover
from clearway.lab.results import METRICS, SYSTEMS, Metric, Report


def as_dict(report: Report) -> dict[str, object]:
    """The report for programs; `runs` holds every round, `comparison` their medians."""
    return {
        "kernel": report.kernel,
        "cpus": report.cpus,
        "seconds": round(report.seconds, 1),
        "hooks": report.hooks,
        "answers": {f"ipv{family}": answers for family, answers in report.answers.items()},
        "outside_sees": {f"ipv{family}": address for family, address in report.outside_sees.items()},
        "failover": None
        if report.failover is None
        else _failover_dict(report.failover, report.answers_afterwards),
        "comparison": {
            metric.key: {
                system: {"value": metric.value(found), "times_linux": report.ratio(metric, system)}
                for system, found in report.figures.items()
            }
            for metric in METRICS
        },
        "runs": {system: asdict(found) for system, found in report.figures.items()},
        "failures": report.failures(),
    }


def _failover_dict(failover: Failover, afterwards: dict[str, int]) -> dict[str, object]:
    return {**asdict(failover), "total_broken": failover.total_broken, "answers_afterwards": afterwards}


def print_json(report: Report, console: Console) -> None:
    console.print_json(json.dumps(as_dict(report)))


def print_tables(report: Report, console: Console) -> None:
    console.print()
    console.print(_story_table(report))
    console.print()
    console.print(_comparison_table(report))
    console.print(
        "Medians; in brackets: times as good as Linux. HTTP through the service by wrk: on kept-alive "
        "connections, on a new one for each request, and for latency one request at a time; UDP through the "
        "masquerade; CPU is system and softirq time of the whole machine, sender and sink included. "
        f"Kernel {report.kernel}, {report.cpus} CPUs that clients, node and servers share. "
        f"{report.seconds:.0f} s in all.",
        style="dim",
        highlight=False,
    )
    for failure in report.failures():
        console.print(f"[red]Failed:[/red] {failure}", highlight=False)


def _story_table(report: Report) -> Table:
    table = Table(title=f"examples/quickstart.yaml at work (hook auto: {report.hooks})", title_justify="left")
    table.add_column("What")
    table.add_column("What happened")
    for family, answers in report.answers.items():
        table.add_row(f"{report.requests} connections by curl, IPv{family}", _counts(answers))
    for family, seen in report.outside_sees.items():
        table.add_row(f"a client as the outside sees it, IPv{family}", seen)
    if report.failover is not None:
        for what, happened in _failover_rows(report.failover, report.answers_afterwards):
            table.add_row(what, happened)
    return table


def _failover_rows(failover: Failover, afterwards: dict[str, int]) -> list[tuple[str, str]]:
    kept = ", ".join(f"{server} {count}" for server, count in sorted(failover.kept.items()))
    return [
        (f"{failover.removed} removed while wrk runs", f"ends its own {failover.of_removed} connections"),
        ("  connections to others that go on", kept),
        ("  connections to others that broke", str(failover.total_broken)),
        ("  new connections by curl", _counts(afterwards)),
    ]


def _counts(answers: dict[str, int]) -> str:
    return ", ".join(f"{server} {count}" for server, count in answers.items())


def _comparison_table(report: Report) -> Table:
    table = Table(title="Side by side, one run", title_justify="left")
    table.add_column("")
    for system in report.figures:
        table.add_column(SYSTEMS[system], justify="right")
    for metric in METRICS:
        table.add_row(metric.title, *(_cell(report, metric, system) for system in report.figures))
    return table


def _cell(report: Report, metric: Metric, system: str) -> str:
    value = f"{metric.value(report.figures[system]):,.0f}"
    return value if system == "linux" else f"{value} ({report.ratio(metric, system):.2f}x)"
