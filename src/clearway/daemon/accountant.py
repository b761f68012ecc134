# SPDX-License-Identifier: Apache-2.0
"""Keeps accounts.py up to date: reads which adopted connections have ended, and settles with those that go on
when the rules change or somebody asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np

from clearway.daemon.accounts import Accounts, Array, Rules, Sum
from clearway.daemon.grace import wait_for_readers
from clearway.daemon.linux_counters import Place
from clearway.datapath import Datapath
from clearway.datapath.adopted import ended_connections
from clearway.datapath.flows import CONNECTION
from clearway.linux.rtnetlink import Link

PAUSE = 0.05
"""Seconds between two looks at the ring."""
HURRY = 500
"""Where a look has found so many ends, the next one follows at once: the ring holds 6,000."""
MANY = 20_000
"""So many ends are credited, and not kept for when somebody asks."""
NOBODY = np.zeros(0, CONNECTION)
NAMES_EVERY = 1.0
"""Seconds between two looks at the names of interfaces."""


class Accountant:
    """Reads in a thread of its own, from start() to stop(); the other methods may be called by any."""

    def __init__(self, datapath: Datapath, links: Callable[[], Mapping[int, Link]]) -> None:
        self._datapath, self._links = datapath, links
        self._accounts = Accounts()
        self._ended: list[Array] = []
        self._read: Callable[[], Array] | None = None
        self._names: dict[int, str] = {}  # also of interfaces that are gone: their connections end later
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._closing = ExitStack()
        self._thread = threading.Thread(target=self._run, name="accounts", daemon=True)

    def start(self) -> None:
        self._read = self._closing.enter_context(self._datapath.adopted_records())
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread uses the data path no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._read = None
            self._closing.close()

    def go_on_with(self, rules: Rules) -> None:
        """Settles under the rules so far, under which nothing is carried any more, and goes on with others.
        DatapathError.
        """
        wait_for_readers()  # who has found the old ones in force has counted by then
        with self._lock:
            if self._accounts.rules is None:
                self._accounts.go_on_with(rules)
            self._settle()
            self._accounts.go_on_with(rules)

    def sums(self) -> dict[Place, Sum]:
        """What was carried around each counter until now. DatapathError."""
        with self._lock:
            self._settle()
            return dict(self._accounts.sums)

    # ---- parts ----

    def _run(self) -> None:
        pause, named = 0.0, 0.0
        while not self._stop.wait(pause):
            with self._lock:
                if time.monotonic() - named > NAMES_EVERY:
                    self._learn_names()
                    named = time.monotonic()
                pause = 0.0 if self._take() > HURRY else PAUSE
                if sum(map(len, self._ended)) >= MANY:
                    self._accounts.settle_ended(self._taken(), self._names)

    def _settle(self) -> None:
        if self._read is None or self._accounts.rules is None:
            return
        self._learn_names()
        flows = self._datapath.flows()
        adopted = flows["flags"] & self._datapath.enum("flow_state")["FLOW_ADOPTED"] != 0
        self._take()
        self._accounts.settle(flows[adopted], self._taken(), self._names)

    def _learn_names(self) -> None:
        self._names.update({ifindex: link.name for ifindex, link in self._links().items()})

    def _take(self) -> int:
        """Reads the ends that there are, and tells how many."""
        records = self._read() if self._read is not None else NOBODY
        if len(records):
            self._ended.append(ended_connections(records))
        return len(records)

    def _taken(self) -> Array:
        ended = np.concatenate([NOBODY, *self._ended])
        self._ended.clear()
        return ended
