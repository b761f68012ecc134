# SPDX-License-Identifier: Apache-2.0
"""Waiting until no packet is under way that began before now."""

from __future__ import annotations

import ctypes
import platform
import time

MEMBARRIER_CMD_GLOBAL = 1  # include/uapi/linux/membarrier.h
MEMBARRIER_NUMBERS = {
    "x86_64": 324,
    "aarch64": 283,
    "riscv64": 283,
    "loongarch64": 283,
    "ppc64le": 365,
    "s390x": 356,
}
"""The C library of Debian 12 has no function for it; numbers from each architecture's syscall table."""
LONGEST_RUN_S = 0.1
"""Far more than a packet can take: what to wait where the kernel cannot be asked (membarrier is refused with
nohz_full)."""


def wait_for_readers() -> None:
    """Returns when every packet that was being handled on any CPU when this was called has been handled.

    BPF programs run inside RCU read sections; membarrier(MEMBARRIER_CMD_GLOBAL) is synchronize_rcu()
    (kernel/sched/membarrier.c). libbpf's own tests wait the same way (kern_sync_rcu).
    """
    number = MEMBARRIER_NUMBERS.get(platform.machine())
    if number is not None and ctypes.CDLL(None).syscall(number, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0:
        return
    time.sleep(LONGEST_RUN_S)
