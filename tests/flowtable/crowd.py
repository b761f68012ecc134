# SPDX-License-Identifier: Apache-2.0
"""Two CPUs at work on the same few connections, each doing what its row of stress_rows says (stress.bpf.c),
and what they have seen.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.flowtable.kernel import Kernel

Array = npt.NDArray[Any]

WORKERS = 2
OPERATIONS = 1 << 14
"""Some milliseconds."""
OUT_OF = 256


@dataclass(frozen=True)
class Seen:
    """What all workers have seen: see struct stress."""

    done: Mapping[str, int]
    found: int
    mixed: int
    vanished: int
    halves: int
    twice: int
    created: int
    exists: int
    taken: int
    full: int
    ended: int
    rewritten: int
    packets: Array
    """(worker, resident)"""
    bytes: Array


class Crowd:
    """The workers of one run."""

    def __init__(
        self, kernel: Kernel, family: int, *, keys: int, residents: int = 0, operations: int = OPERATIONS
    ) -> None:
        """keys: connections that come and go. residents: connections that stay, up to 32. operations: in one
        run of the program.
        """
        self.kernel = kernel
        self.keys, self.residents = keys, residents
        self._errors: list[BaseException] = []
        rows, values = kernel.stress_rows.items()
        values = np.zeros_like(values)
        values["family"], values["keys"], values["residents"] = family, keys, residents
        values["operations"] = operations
        for worker in range(len(values)):
            values["random"][worker] = 0x1234567 * (worker + 1)
            values["reply"][worker] = worker & 1
        kernel.stress_rows.update(rows, values)

    def settle(self) -> None:
        """Opens the connections that stay."""
        before = self.seen().created
        self.kernel.settle(0)
        assert self.seen().created - before == self.residents

    def run(
        self,
        seconds: float,
        weights: Iterable[Mapping[str, int]],
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """Each worker does what its weights say; `meanwhile` is called over and over in this thread."""
        rows, values = self.kernel.stress_rows.items()
        chosen = list(weights)
        assert len(chosen) == WORKERS
        for worker, weight in enumerate(chosen):
            values["chance"][worker] = self._chances(weight)
        self.kernel.stress_rows.update(rows, values)
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self._work, args=(worker, until)) for worker in range(WORKERS)]
        for thread in threads:
            thread.start()
        try:
            while time.monotonic() < until and not self._errors:
                if meanwhile is None:
                    break
                meanwhile()
        finally:
            for thread in threads:
                thread.join()
        assert self._errors == []

    def _chances(self, weights: Mapping[str, int]) -> list[int]:
        """Weights as shares of 256, added up."""
        numbers = self.kernel.operations
        each = [0] * numbers["count"]
        for name, weight in weights.items():
            each[numbers[name]] = weight
        total = sum(each)
        return [round(sum(each[: number + 1]) * OUT_OF / total) for number in range(len(each))]

    def _work(self, worker: int, until: float) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        try:
            os.sched_setaffinity(0, {cpus[worker % len(cpus)]})  # this thread's only
            while time.monotonic() < until:
                self.kernel.stress(worker)
        except BaseException as error:
            self._errors.append(error)

    def seen(self) -> Seen:
        _, values = self.kernel.stress_rows.items()
        results = values["results"].sum(axis=0).tolist()
        done = values["done"].sum(axis=0).tolist()
        numbers = ("found", "mixed", "vanished", "halves", "twice", "ended", "rewritten")
        return Seen(
            done={name: done[number] for name, number in self.kernel.operations.items() if name != "count"},
            **{name: int(values[name].sum()) for name in numbers},
            created=results[0],
            taken=results[1],
            exists=results[2],
            full=results[3],
            packets=values["packets"],
            bytes=values["bytes"],
        )
