# SPDX-License-Identifier: Apache-2.0
"""Says on standard error what is being done, and how long it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Standard output stays free for the table."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def note(self, text: str) -> None:
        print(f"{self.elapsed:6.1f} s  {text}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Announce `what`; say how long it took, or that it failed."""
        before = self.elapsed
        self.note(what)
        try:
            yield
        except BaseException:
            self.note(f"failed: {what}")
            raise
        self.note(f"  took {self.elapsed - before:.1f} s")
