# SPDX-License-Identifier: Apache-2.0
"""How much memory this machine has to spare."""

from __future__ import annotations

import re
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int | None:
    """What can be taken without swapping, by the kernel's estimate (MemAvailable); None: it does not say."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else None
