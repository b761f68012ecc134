# SPDX-License-Identifier: Apache-2.0
"""Connections that were reset while the fast path carried them.

Linux believes a RST that follows exactly on what it has seen, and otherwise keeps the connection as an
established one, for days (net/netfilter/nf_conntrack_proto_tcp.c, "challenge ACK"). It has not seen what was
carried here, so it would keep nearly all. It is asked to keep those that are silent after their RST no longer
than connections whose data nobody acknowledges; the next packet of one that lives makes that good.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from ipaddress import ip_address
from pathlib import Path

import structlog

from clearway.datapath.tables import Array
from clearway.linux import conntrack
from clearway.linux.conntrack import Tuple
from clearway.linux.netlink import NetlinkError

log = structlog.get_logger()

SILENCE = 2.0
"""Seconds after a RST; what lives has been adopted again by then, or Linux has seen it."""
MOST = 20_000
"""Resets that wait for their turn; of more the oldest are left to Linux."""
UNACKNOWLEDGED = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_unacknowledged")


class Resets:
    """Works in a thread of its own, from start() to stop()."""

    def __init__(self, reset: int) -> None:
        """reset: why such connections end (FLOW_END_RESET)."""
        self._reset = reset
        self._waiting: deque[tuple[float, Tuple]] = deque(maxlen=MOST)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resets", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self, records: Array) -> None:
        """Connections that have ended (struct adopted_record); those that were reset are remembered."""
        now, flow = time.monotonic(), records["flow"]
        for client in flow["client"][flow["why"] == self._reset]:
            size = 4 if client["family"] == 4 else 16
            source, destination = (ip_address(client[name].tobytes()[:size]) for name in ("src", "dst"))
            tuple_ = Tuple(
                int(client["proto"]), source, int(client["sport"]), destination, int(client["dport"])
            )
            self._waiting.append((now, tuple_))

    def _run(self) -> None:
        complained = False
        while not self._stop.wait(SILENCE / 4):
            while self._waiting and time.monotonic() - self._waiting[0][0] > SILENCE:
                _when, tuple_ = self._waiting.popleft()
                try:
                    _let_go(tuple_)
                except (NetlinkError, OSError) as error:
                    if not complained:
                        log.warning("Linux keeps connections that were reset", why=str(error))
                    complained = True


def _let_go(tuple_: Tuple) -> None:
    held = conntrack.find(tuple_)
    if held is not None and held.state == "established":
        conntrack.shorten(held, int(UNACKNOWLEDGED.read_text()))
