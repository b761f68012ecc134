# SPDX-License-Identifier: Apache-2.0
"""How late softirqs run on a CPU (bench/ticks.bpf.c)."""

from __future__ import annotations

import os
import platform
from contextlib import ExitStack, closing
from pathlib import Path

from clearway.datapath.features import version_of
from clearway.datapath.loader import load_object
from clearway.datapath.tables import Table
from clearway.datapath.test_run import run_tc
from clearway.lab import LabError

OBJECT = Path(__file__).resolve().parents[2] / "build/bench/objects/ticks.bpf.o"
PERIOD_NS = 50_000
FRAME = bytes(64)


def has_ticks() -> bool:
    """Whether the kernel can pin the timer of a BPF program to a CPU: since 6.7."""
    return version_of(platform.release()) >= (6, 7)


class Ticker:
    """Ticks on one CPU for the time of the `with` block."""

    def __init__(self, cpu: int) -> None:
        self._cpu = cpu

    def __enter__(self) -> Ticker:
        with ExitStack() as stack:
            loaded = stack.enter_context(load_object(OBJECT))
            self._table = stack.enter_context(closing(Table(os.dup(loaded.map_fd("tickers")))))
            keys, values = self._table.rows(1)
            values["period"] = PERIOD_NS
            self._table.update(keys, values)
            cpus = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {self._cpu})
            run_tc(loaded.program_fd("tick"), FRAME)
            os.sched_setaffinity(0, cpus)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def latest(self) -> float:
        """Microseconds by which a softirq was late so far, at worst."""
        values, _ = self._table.lookup([0])
        if not values["ticks"][0]:
            raise LabError(f"the timer on CPU {self._cpu} never went off")
        return float(values["latest"][0]) / 1000
