# SPDX-License-Identifier: Apache-2.0
"""New connections a second through the service: wrk against nginx, a connection for each request."""

from __future__ import annotations

from collections.abc import Sequence

from bench.progress import Progress
from bench.results import Report
from bench.roads import FAMILIES, TRANSLATING, Road, System
from bench.scheduling import prefer, preferred
from clearway.lab import LabError
from clearway.lab.measure import parse_wrk, wrk_argv

ROUNDS = 9
SECONDS = 1
CONNECTIONS = 32
RATE = "new connections per second"


def new_connections(roads: Sequence[Road], report: Report, progress: Progress) -> None:
    """Client, node and servers share the machine's CPUs: what the node saves, they can use."""
    taking_part = [road for road in roads if road.system in TRANSLATING]
    for road in taking_part:
        for server in road.lab.servers:
            prefer(server.ns.pids())
    for family in FAMILIES:
        with progress.step(f"new connections through the service, IPv{family}"):
            rates: dict[System, list[float]] = {road.system: [] for road in taking_part}
            for road in taking_part:
                road.forget()
            for number in range(ROUNDS):
                for road in taking_part if number % 2 == 0 else reversed(taking_part):
                    rates[road.system].append(_rate(road, family))
            case = f"service IPv{family}"
            samples = {f"{case}, {system}": values for system, values in rates.items()}
            report.add(RATE, "connections/s", samples, f"{case}, {System.NFTABLES}")


def _rate(road: Road, family: int) -> float:
    lab = road.lab
    vip = lab.vip(family) if family == 4 else f"[{lab.vip(family)}]"
    url = f"http://{vip}/load"
    argv = wrk_argv(lab.directory, url, seconds=SECONDS, connections=CONNECTIONS, close=True)
    run = parse_wrk(lab.client.ns.run(*preferred(argv), timeout=SECONDS + 20).stdout)
    if run.broken or not run.requests:
        raise LabError(f"{road.system}: {run.broken} of {run.requests} connections over IPv{family} broke")
    return run.per_second
