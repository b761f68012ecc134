# SPDX-License-Identifier: Apache-2.0
"""The report for people: a table of each metric, systems side by side, then the targets."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.results import Report, Result


def show(report: Report, console: Console) -> None:
    """Print it."""
    machine = report.machine
    ticks = f", HZ {machine['hz']}" if "hz" in machine else ""
    system = f"{machine['cores']} cores, kernel {machine['kernel']}{ticks}"
    console.print(f"[bold]{machine['cpu']}[/bold], {system}", highlight=False)
    metrics = dict.fromkeys((result.metric, result.unit) for result in report.results)
    for metric, unit in metrics:
        results = [result for result in report.results if result.metric == metric]
        if not _is_of_program(results[0]):
            console.print(_comparison(f"{metric} ({unit})" if unit else metric, results))
    if any(_is_of_program(result) for result in report.results):
        console.print(_programs(report))
    console.print(_targets(report))


def _is_of_program(result: Result) -> bool:
    """Is it about a program as compiled by some compiler (programs.py)?"""
    return ", clang " in result.case


def _split(result: Result) -> tuple[str, str]:
    """("masquerade IPv4", "tc")"""
    case, _, system = result.case.rpartition(", ")
    return case, system


def _comparison(title: str, results: list[Result]) -> Table:
    """A row a case, a column a system; ratios in brackets."""
    systems = list(dict.fromkeys(_split(result)[1] for result in results))
    table = Table(title=title, title_justify="left", min_width=len(title) + 2)
    table.add_column("")
    for system in systems:
        table.add_column(system, justify="right")
    cells: dict[str, dict[str, str]] = {}
    for result in results:
        case, system = _split(result)
        ratio = "" if result.ratio is None else f" ({result.ratio:.2f}x)"
        cells.setdefault(case, {})[system] = _number(result.value) + ratio
    for case, row in cells.items():
        table.add_row(case, *(row.get(system, "") for system in systems))
    return table


def _programs(report: Report) -> Table:
    """A row a program and compiler, a column a metric."""
    found: dict[str, dict[str, float]] = {}
    for result in report.results:
        if _is_of_program(result):
            found.setdefault(result.case, {})[result.metric] = result.value
    metrics = list(dict.fromkeys(metric for row in found.values() for metric in row))
    table = Table(title="programs", title_justify="left")
    table.add_column("")
    for metric in metrics:
        table.add_column(metric, justify="right")
    for case, row in found.items():
        table.add_row(case, *(_number(row[metric]) for metric in metrics))
    return table


def _targets(report: Report) -> Table:
    table = Table(title="targets", title_justify="left")
    for name in ("", "limit", "measured", ""):
        table.add_column(name, justify="left" if not name else "right")
    for target in report.targets:
        verdict = "[green]met[/green]" if target.met else "[red]missed[/red]"
        bound = "at most" if target.at_most else "at least"
        limit, value = (_with_unit(number, target.unit) for number in (target.limit, target.value))
        table.add_row(target.name, f"{bound} {limit}", value, verdict)
    return table


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.2f}x" if unit == "x" else f"{_number(value)} {unit}".rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
