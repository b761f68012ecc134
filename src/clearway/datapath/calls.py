# SPDX-License-Identifier: Apache-2.0
"""The SEC("syscall") programs that user space runs: `sweep` ages flows, `release` ends one that Linux has
deleted, `clock` tells the jiffies.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from clearway.datapath import bpf
from clearway.datapath.btf import Btf
from clearway.datapath.errors import DatapathError
from clearway.datapath.test_run import run_syscall

RATES = (100, 250, 300, 1000)  # kernel/Kconfig.hz
# jiffies_64 begins 300 seconds before its low 32 bits wrap (INITIAL_JIFFIES, include/linux/jiffies.h).
WRAP = 1 << 32
WRAPS_AFTER_S = 300
# So near that moment all rates give about the same count, and the rate has to be measured.
UNCLEAR_S = 30
MEASURE_S = 0.25


@dataclass(frozen=True)
class Clock:
    """`jiffies`: 64 bits; `boot_ns`: CLOCK_MONOTONIC at the same moment; `hz`: jiffies a second."""

    jiffies: int
    boot_ns: int
    hz: int


@dataclass(frozen=True)
class SweepResult:
    """Connections looked at, and those of them that had expired and are removed now. `ended`: with this part
    a round through all tables is complete; `share`: how much of them it was.
    """

    visited: int
    expired: int
    ended: bool = True
    share: float = 1.0


def run_clock(program_fd: int) -> Clock:
    """Runs the program `clock`. Within half a minute of uptime 300 s it takes a quarter of a second."""
    first = _call(program_fd, "clock_args")
    uptime_s = int(first["boot_ns"]) / 1e9
    if abs(uptime_s - WRAPS_AFTER_S) > UNCLEAR_S:
        return Clock(
            int(first["jiffies"]), int(first["boot_ns"]), rate_from_boot(int(first["jiffies"]), uptime_s)
        )
    time.sleep(MEASURE_S)
    second = _call(program_fd, "clock_args")
    passed_s = int(second["boot_ns"] - first["boot_ns"]) / 1e9
    rate = nearest_rate(int(second["jiffies"] - first["jiffies"]) / passed_s)
    return Clock(int(second["jiffies"]), int(second["boot_ns"]), rate)


def rate_from_boot(jiffies: int, uptime_s: float) -> int:
    """The kernel's rate at which `jiffies` is counted after `uptime_s`."""
    return min(RATES, key=lambda rate: abs(WRAP + (uptime_s - WRAPS_AFTER_S) * rate - jiffies))


def nearest_rate(measured: float) -> int:
    return min(RATES, key=lambda rate: abs(rate - measured))


@dataclass(frozen=True)
class MoveResult:
    """Connections brought to the current table, and those for which that has to be tried again."""

    moved: int
    left: int


def run_sweep(program_fd: int, **part: int) -> SweepResult:
    """Runs the program `sweep` over a part of one table, given as in struct sweep_args (bpf/types.h)."""
    outcome = _call(program_fd, "sweep_args", **part)
    return SweepResult(int(outcome["visited"]), int(outcome["expired"]))


def run_move(program_fd: int, **part: int) -> MoveResult:
    """Runs the program `move` over a part of the table that is not the current one, given as in struct
    move_args.
    """
    outcome = _call(program_fd, "move_args", **part)
    return MoveResult(int(outcome["moved"]), int(outcome["left"]))


def run_release(program_fd: int, key: np.void) -> bool:
    """Runs the program `release` for the connection that struct tuple `key` is a direction of; whether there
    was one.
    """
    return bool(_call(program_fd, "release_args", key=key)["released"])


def _call(program_fd: int, struct_name: str, **given: Any) -> Any:
    """Runs a program whose context is that struct, zero but for what is given; returns the struct as the
    program left it.
    """
    layout = _layout(bpf.program_info(program_fd).btf_id, struct_name)
    arguments = np.zeros(1, layout)
    for name, value in given.items():
        arguments[name] = value
    code, context = run_syscall(program_fd, arguments.tobytes())
    if code:
        raise DatapathError(f"the program for struct {struct_name} failed with {code}")
    return np.frombuffer(context, layout)[0]


@functools.lru_cache(maxsize=16)
def _layout(btf_id: int, struct_name: str) -> np.dtype[Any]:
    """The kernel gives BTF ids out once: what was read stays true."""
    with Btf.of_id(btf_id) as types:
        return types.struct(struct_name)
