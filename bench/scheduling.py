# SPDX-License-Identifier: Apache-2.0
"""Keeps whatever else the machine does out of the figures, as far as the scheduler lets us."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

NICE = -19
# Each session is an autogroup (sched(7)): between sessions its nice value counts, within one the processes'.
PREFERRED = f'echo {NICE} > /proc/self/autogroup; exec "$@"'


@contextlib.contextmanager
def alone_on(cpu: int) -> Iterator[None]:
    """The calling thread on one CPU, before everything else there, for the time of the `with` block.

    SCHED_FIFO, where the machine lets us: other programs then cannot stretch a burst. Bursts must be short.
    """
    cpus = os.sched_getaffinity(0)
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setaffinity(0, {cpu})
    try:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
        os.sched_setaffinity(0, cpus)


def last_cpu() -> int:
    """Where bursts run: interrupts and other programs gather on a machine's first CPUs."""
    return max(os.sched_getaffinity(0))


def preferred(argv: Iterable[str]) -> list[str]:
    """The command line that runs `argv` before the programs of other sessions."""
    return ["sh", "-c", PREFERRED if _has_autogroups() else 'exec "$@"', "sh", *argv]


def prefer(pids: Iterable[int]) -> None:
    """Have processes that run already go before those of other sessions."""
    for pid in pids:
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
        if _has_autogroups():
            Path(f"/proc/{pid}/autogroup").write_text(f"{NICE}\n")


def _has_autogroups() -> bool:
    return Path("/proc/self/autogroup").exists()
