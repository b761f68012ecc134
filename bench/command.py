# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks' commands have in common: the right to go first, the report, the exit code."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console

from bench import scheduling, table
from bench.progress import Progress
from bench.results import Report
from clearway.datapath import DatapathError
from clearway.lab import Interrupted, LabError, interruptible
from clearway.model import ConfigError

OUTPUT = Path(__file__).resolve().parent.parent / "build/bench"


def require(tools: Iterable[str]) -> None:
    """LabError naming what is missing."""
    if os.geteuid() != 0:
        raise LabError("the benchmark makes network namespaces: run it as root")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise LabError(f"not installed: {', '.join(missing)}; make bench installs them")


def report_of(measure: Callable[[Progress], Report], output: Path) -> int:
    """Measure; tables on standard output, JSON in `output`. The exit code."""
    progress = Progress()
    try:
        scheduling.prefer([os.getpid()])
        with interruptible():
            report = measure(progress)
    except KeyboardInterrupt:
        return 130
    except Interrupted:
        return 143
    except (LabError, DatapathError, ConfigError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    report.write(output)
    table.show(report, Console(width=None if sys.stdout.isatty() else 160))
    progress.note(f"written: {output}")
    return 0
