# SPDX-License-Identifier: Apache-2.0
"""Notices that the configuration file was changed.

By looking at it again and again: that works for editors that write in place, for those that rename a new file
over the old one, for symbolic links that are switched, and on file systems that announce nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

LOOK_EVERY = 0.5  # seconds


@dataclass(frozen=True)
class Signature:
    """Differs when the file differs, as far as the file system tells."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int = 0
    """Its rights, too."""


def signature(path: Path) -> Signature | None:
    """None while there is no file, as in the middle of a rename."""
    try:
        found = path.stat()
    except OSError:
        return None
    return signature_of(found)


def signature_of(found: os.stat_result) -> Signature:
    return Signature(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class FileWatch:
    """Decides on what it is shown; does no I/O."""

    def __init__(self, current: Signature | None) -> None:
        self._taken = current
        self._last = current

    def look(self, now: Signature | None) -> bool:
        """True once for a change, as soon as the file is there and rested from one look to the next.

        The rest keeps a half-written file from being read.
        """
        rested = now == self._last
        self._last = now
        if now is None or not rested or now == self._taken:
            return False
        self._taken = now
        return True
