# SPDX-License-Identifier: Apache-2.0
"""What the data path says it did, as `clearway get reasons` prints it."""

from __future__ import annotations

from collections import Counter

from clearway.lab import Daemon, wait_until


def reasons(daemon: Daemon) -> Counter[str]:
    """Packets by reason, and `received`."""
    said = daemon.json("get", "reasons")
    found = Counter({str(row["reason"]): int(row["packets"]) for row in said["reasons"]})
    found["received"] = int(said["received_packets"])
    return found


def added_up(daemon: Daemon) -> Counter[str]:
    """The same, once every packet received has found its reason; LabError when that never happens."""
    found: Counter[str] = Counter()

    def settled() -> bool:
        nonlocal found
        found = reasons(daemon)
        return found.total() - found["received"] == found["received"] > 0

    wait_until("the reasons add up to the packets received", settled, timeout=5, every=0.2)
    return found
