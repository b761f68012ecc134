# SPDX-License-Identifier: Apache-2.0
"""How much of the flow table is aged at a time, and what came of the last round through all of it."""

from __future__ import annotations

from dataclasses import dataclass

from clearway.datapath.calls import SweepResult

SMALLEST_SHARE = 1 / 64
"""Even on a slow machine a round takes no more than 64 parts."""
FIRST_PART = 1 << 18
"""Room for so many connections is swept without knowing how long it takes: some ten milliseconds at most."""


@dataclass(frozen=True)
class LastSweep:
    """What the last ageing round did: seconds of CPU time it took, and when it ended (monotonic seconds)."""

    connections: int
    expired: int
    seconds: float
    at: float


class SweepRounds:
    """Adapts the share to the time that one part may take."""

    def __init__(self, budget: float, max_flows: int) -> None:
        """budget: seconds a part. max_flows: what the table is made for."""
        self.share = max(SMALLEST_SHARE, min(1.0, FIRST_PART / max_flows))
        self._budget = budget
        self._connections = self._expired = 0
        self._seconds = 0.0

    def take(self, part: SweepResult, seconds: float, at: float) -> LastSweep | None:
        """A part was swept, in so many seconds of CPU time, and ended then; the whole round if that is
        complete now.
        """
        took = max(seconds, 1e-6)
        self._connections += part.visited
        self._expired += part.expired
        self._seconds += took
        # No more than twice as much at once: what comes may be fuller than what was.
        wanted = min(2 * self.share, part.share * self._budget / took)
        self.share = min(1.0, max(SMALLEST_SHARE, wanted))
        if not part.ended:
            return None
        done = LastSweep(self._connections, self._expired, self._seconds, at)
        self._connections = self._expired = 0
        self._seconds = 0.0
        return done
