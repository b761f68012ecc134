# SPDX-License-Identifier: Apache-2.0
"""Keeps accounts.py up to date: reads which adopted connections have ended, and settles with those that go on
when the rules change or somebody asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import structlog

from clearway.daemon.account_book import AccountBook
from clearway.daemon.accounts import Accounts, Rules, Sum
from clearway.daemon.grace import wait_for_readers
from clearway.daemon.linux_counters import Place
from clearway.datapath import Datapath
from clearway.datapath.adopted import ended_connections
from clearway.datapath.ring import Ring
from clearway.datapath.tables import Array
from clearway.linux.rtnetlink import Link

log = structlog.get_logger()

PAUSE = 0.05
"""Seconds between two looks at the ring."""
CREDIT_EVERY = 1.0
"""Seconds that ended connections may wait for being credited."""
HURRY = 0.1
"""They do not while they fill so much of the ring."""


class Accountant:
    """Reads in a thread of its own, from start() to stop(); the other methods may be called by any."""

    def __init__(
        self,
        datapath: Datapath,
        links: Callable[[], Mapping[int, Link]],
        directory: Path,
        ended: Callable[[Array], None],
    ) -> None:
        """directory: where accounts are kept for the next start. ended: is called with the records of
        connections that have ended (struct adopted_record), once with each.
        """
        self._datapath, self._links, self._ended = datapath, links, ended
        self._accounts, self._book = Accounts(), AccountBook(directory)
        self._ring: Ring | None = None
        # By which packets were carried since the last settlement; also of interfaces that are gone, whose
        # connections end later.
        self._names: dict[int, str] = {}
        self._complained = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._closing = ExitStack()
        self._thread = threading.Thread(target=self._run, name="accounts", daemon=True)

    def start(self) -> None:
        self._ring = self._closing.enter_context(self._datapath.adopted_records())
        if kept := self._book.read():
            self._accounts, position = kept
            self._ring.advance(position)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread uses the data path no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._ring = None
            self._closing.close()

    def go_on_with(self, rules: Rules) -> None:
        """Settles under the rules so far, under which nothing is carried any more, and goes on with others.
        DatapathError.
        """
        wait_for_readers()  # who has found the old ones in force has counted by then
        with self._lock:
            if self._accounts.rules is None:
                self._accounts.go_on_with(rules)
            self._settle(rules)

    def settle(self) -> None:
        """What was carried until now was by interfaces of the names so far; others count from then on.
        DatapathError.
        """
        with self._lock:
            self._settle()

    def sums(self) -> dict[Place, Sum]:
        """What was carried around each counter until now. DatapathError."""
        with self._lock:
            self._settle()
            return dict(self._accounts.sums)

    # ---- parts ----

    def _run(self) -> None:
        credited = time.monotonic()
        while not self._stop.wait(PAUSE):
            with self._lock:
                late = time.monotonic() - credited > CREDIT_EVERY
                if self._ring is not None and (late or self._ring.used > HURRY):
                    self._credit_ended(self._ring)
                    credited = time.monotonic()

    def _credit_ended(self, ring: Ring) -> None:
        self._names = {**self._present_names(), **self._names}
        records, behind = ring.peek()
        if len(records) and self._accounts.rules is not None:
            self._accounts.settle_ended(ended_connections(records), self._names)
            self._keep(self._book.add, behind)
            ring.advance(behind)
            self._ended(records)

    def _settle(self, rules: Rules | None = None) -> None:
        """rules: that are in force from then on."""
        if self._ring is None or self._accounts.rules is None:
            return
        # First, because who comes again within a jiffy looks like who has ended.
        self._credit_ended(self._ring)
        flows = self._datapath.flows()
        adopted = flows["flags"] & self._datapath.enum("flow_state")["FLOW_ADOPTED"] != 0
        records, behind = self._ring.peek()
        self._accounts.settle(flows[adopted], ended_connections(records), self._names)
        self._names.update(self._present_names())
        if rules is not None:
            self._accounts.go_on_with(rules)
        self._keep(self._book.settle, behind)
        self._ring.advance(behind)
        self._ended(records)

    def _present_names(self) -> dict[int, str]:
        return {ifindex: link.name for ifindex, link in self._links().items()}

    def _keep(self, write: Callable[[Accounts, int], None], position: int) -> None:
        """What cannot be kept is true all the same, until the daemon ends."""
        try:
            write(self._accounts, position)
            self._complained = ""
        except OSError as error:
            if str(error) != self._complained:
                log.error("the accounts of Linux' rules cannot be kept for the next start", why=str(error))
            self._complained = str(error)
