# SPDX-License-Identifier: Apache-2.0
"""What this machine has: memory to spare, and CPUs that per-CPU tables have a copy for."""

from __future__ import annotations

import re
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_MY_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")


def available_bytes() -> int | None:
    """What can be taken without swapping, by the kernel's estimate (MemAvailable), and without exceeding the
    limit of any control group that this process is in (version 2): tables count for who makes them. None: the
    kernel does not say.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    if found is None:
        return None
    return min([int(found[1]) << 10, *_left_by_cgroups()])


def _left_by_cgroups() -> list[int]:
    found = re.search(r"^0::/(.*)$", _MY_CGROUPS.read_text(), re.MULTILINE)
    if found is None:
        return []
    group = _CGROUPS / found[1]
    left = []
    for each in (group, *group.parents):
        if not each.is_relative_to(_CGROUPS):
            break
        try:
            limit, used, of_what = (
                (each / f"memory.{name}").read_text() for name in ("max", "current", "stat")
            )
        except FileNotFoundError:  # the root has none, nor where memory is left to version 1
            continue
        if limit.strip() != "max":
            droppable = re.search(r"^inactive_file (\d+)$", of_what, re.MULTILINE)
            left.append(max(0, int(limit) - int(used) + (int(droppable[1]) if droppable else 0)))
    return left


def possible_cpus() -> int:
    """CPUs that may ever be there: the kernel makes a copy of a per-CPU table for each (kernel:
    Documentation/admin-guide/cputopology.rst).
    """
    count = 0
    for span in _POSSIBLE_CPUS.read_text().strip().split(","):
        first, _, last = span.partition("-")
        count += int(last or first) - int(first) + 1
    return count
