# SPDX-License-Identifier: Apache-2.0
"""Tables and numbers for people."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_WIDE = 1000  # columns for pipes and files: nothing is folded there


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, the key of its values, and whether they are numbers."""

    title: str
    key: str
    number: bool = False


def count(number: int) -> str:
    """1234567 -> 1,234,567"""
    return f"{number:,}"


def things(number: int, what: str) -> str:
    """1 service, 1,000 services"""
    return f"{count(number)} {what}" if number == 1 else f"{count(number)} {what}s"


def size(number: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("the last unit takes everything")


def duration(seconds: float) -> str:
    """Seconds in the two units that say most: 2 h 3 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next(index for index, (amount, _unit) in enumerate(parts) if amount)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2] if amount)


def cell(value: Any) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return count(value)
        case float():
            return f"{value:,.1f}"
    return str(value)


def host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def print_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], empty: str) -> None:
    """Print rows under their titles; `empty` is said when there are none."""
    if not rows:
        print(empty)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row[column.key]) for column in columns))
    for_people = sys.stdout.isatty()
    console = Console(
        width=shutil.get_terminal_size().columns if for_people else _WIDE,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line if for_people else line.rstrip())


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and what there is to say about each, one a line."""
    longest = max(len(name) for name, _fact in facts)
    for name, fact in facts:
        print(f"{name:<{longest}}  {fact}")
