# SPDX-License-Identifier: Apache-2.0
"""Takes a server out of the service under load and looks at every single connection of the others."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from clearway.lab.daemon import Daemon
from clearway.lab.lab import Host, Lab
from clearway.lab.measure import Http, load
from clearway.lab.topology import SERVER_PORT

CONNECTIONS = 60
BEFORE_SECONDS = 2.0
AFTER_SECONDS = 2.5


@dataclass(frozen=True)
class Failover:
    """What became of the connections that were open when one server was removed.

    `kept` went on exchanging data afterwards, `broken` did not; neither counts those of the removed server,
    which end by a reset: wrk sees as many socket errors.
    """

    removed: str
    of_removed: int
    kept: dict[str, int]
    broken: dict[str, int]
    load: Http

    @property
    def total_broken(self) -> int:
        """Connections of the remaining servers that broke, and socket errors beyond the removed server's."""
        return sum(self.broken.values()) + max(0, self.load.broken - self.of_removed)


def remove_under_load(lab: Lab, daemon: Daemon, service: str, removed: Host, family: int = 4) -> Failover:
    """Remove `removed` from `service` while wrk keeps connections to all servers busy."""
    url = f"http://{lab.vip_url(family)}/load"
    endpoint = removed.address(family) if family == 4 else f"[{removed.address(family)}]"
    with load(lab.client.ns, lab.directory, url, connections=CONNECTIONS) as running:
        time.sleep(BEFORE_SECONDS)
        before = {server.name: received_bytes(server) for server in lab.servers}
        daemon.cli("endpoint", "remove", service, f"{endpoint}:{SERVER_PORT}")
        time.sleep(AFTER_SECONDS)
        after = {server.name: received_bytes(server) for server in lab.servers}
        result = running.end()
    kept, broken = {}, {}
    for name in before.keys() - {removed.name}:
        alive = [peer for peer, count in before[name].items() if after[name].get(peer, 0) > count]
        kept[name], broken[name] = len(alive), len(before[name]) - len(alive)
    return Failover(removed.name, len(before[removed.name]), kept, broken, result)


def received_bytes(server: Host) -> dict[str, int]:
    """Established connections of a server's nginx: client address and port -> bytes received from it."""
    listed = server.ns.run("ss", "-HtniO", "state", "established", "sport", "=", f":{SERVER_PORT}").stdout
    found = {}
    for line in listed.splitlines():
        received = re.search(r"bytes_received:(\d+)", line)
        if received is not None:
            found[line.split()[3]] = int(received[1])
    return found
