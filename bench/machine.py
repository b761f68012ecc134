# SPDX-License-Identifier: Apache-2.0
"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from bench.programs import COMPILERS, compiler_version
from clearway.datapath import Datapath


def describe(instance: str | None = None) -> dict[str, object]:
    """The machine, its kernel and what compiled for it. `instance`: a data path that runs, to ask for HZ."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count() or 1,
        "memory_mib": int(_field("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "virtual": "hypervisor" in _field("/proc/cpuinfo", "flags").split(),
        "kernel": platform.release(),
        **({} if instance is None else {"hz": _hz(instance)}),
        "spectre_v2": _first_line("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
        "clang": [version for compiler in COMPILERS if (version := compiler_version(compiler))],
        "load": os.getloadavg()[0],
    }


def _hz(instance: str) -> int:
    with Datapath.open(instance) as datapath:
        return datapath.clock().hz


def _field(path: str, name: str) -> str:
    """The first value of a `name : value` line; empty if there is none."""
    found = re.search(rf"^{name}\s*:\s*(.*)$", Path(path).read_text(), re.MULTILINE)
    return found[1].strip() if found else ""


def _first_line(path: str) -> str:
    return Path(path).read_text().strip() if Path(path).exists() else ""
