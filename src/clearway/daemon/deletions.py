# SPDX-License-Identifier: Apache-2.0
"""Ends adopted connections when Linux deletes them."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterable

import numpy as np
import structlog

from clearway.datapath import Datapath, DatapathError
from clearway.linux import conntrack
from clearway.linux.conntrack import Tuple
from clearway.linux.netlink import Message, OverrunError

log = structlog.get_logger()

WAIT = 0.5
"""Seconds; how long stop() may take."""


class Deletions:
    """Listens in a thread of its own, from start() to stop()."""

    def __init__(self, datapath: Datapath, lost: Callable[[str], None]) -> None:
        """lost: is called when announcements were lost, so that every flow has to be asked about again."""
        self._datapath = datapath
        self._lost = lost
        self._layout = datapath.struct("tuple")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deletions", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread uses the data path no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        listener = conntrack.listener()
        try:
            while not self._stop.is_set():
                ready, _, _ = select.select([listener], [], [], WAIT)
                if not ready:
                    continue
                try:
                    self._release(listener.read())
                except OverrunError:
                    self._lost("announcements of deleted connections were lost")
                except DatapathError as error:
                    log.error("a connection that Linux has deleted goes on for a moment", why=str(error))
        finally:
            listener.close()

    def _release(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if deleted := conntrack.deleted(message):
                self._datapath.release(self._key(deleted))

    def _key(self, deleted: Tuple) -> np.void:
        """struct tuple."""
        row = np.zeros(1, self._layout)
        for name, address in (("src", deleted.source.packed), ("dst", deleted.destination.packed)):
            row[name][0][: len(address)] = np.frombuffer(address, np.uint8)
        row["sport"], row["dport"] = deleted.sport, deleted.dport
        row["proto"], row["family"] = deleted.protocol, deleted.source.version
        key: np.void = row[0]
        return key
