# SPDX-License-Identifier: Apache-2.0
"""TCP bulk throughput through the masquerading node: iperf3, all systems in turns."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence

from bench.progress import Progress
from bench.results import Report
from bench.roads import BULK_CLIENT, FAMILIES, Road, System
from bench.scheduling import preferred
from clearway.lab import LabError
from clearway.lab.namespace import Namespace
from clearway.lab.run import stop, wait_until

ROUNDS = 7
SECONDS = 1
PORT = 5201
SYSTEMS = (System.LINUX, System.NFTABLES, System.TC, System.XDP)
THROUGHPUT = "TCP bulk throughput"


def throughput(roads: Sequence[Road], report: Report, progress: Progress) -> None:
    """The client's and the server's process have a CPU each; what the node does comes on top of either."""
    taking_part = [road for road in roads if road.system in SYSTEMS]
    with contextlib.ExitStack() as stack:
        for road in taking_part:
            stack.enter_context(_server(road.lab.outside.ns))
        for family in FAMILIES:
            with progress.step(f"TCP bulk, IPv{family}"):
                rates: dict[System, list[float]] = {road.system: [] for road in taking_part}
                for number in range(ROUNDS):
                    for road in taking_part if number % 2 == 0 else reversed(taking_part):
                        rates[road.system].append(_gigabits(road, family))
                case = f"masquerade IPv{family}"
                samples = {f"{case}, {system}": values for system, values in rates.items()}
                report.add(THROUGHPUT, "Gbit/s", samples, f"{case}, {System.NFTABLES}")


@contextlib.contextmanager
def _server(namespace: Namespace) -> Iterator[None]:
    process = namespace.spawn(*preferred(["iperf3", "--server", "--port", str(PORT)]))
    try:
        wait_until(
            "iperf3 listening", lambda: f":{PORT:04X} " in namespace.read("/proc/thread-self/net/tcp6")
        )
        yield
    finally:
        stop(process)


def _gigabits(road: Road, family: int) -> float:
    """One run of iperf3, as the receiver counts."""
    cpus = os.sched_getaffinity(0)
    options = (
        f"--port {PORT} --connect-timeout 5000 --time {SECONDS} --affinity {min(cpus)},{max(cpus)} --json"
    )
    address, source = road.lab.outside.address(family), BULK_CLIENT[family]
    argv = preferred(["iperf3", "--client", address, "--bind", source, *options.split()])
    done = road.lab.client.ns.run(*argv, timeout=SECONDS + 20, check=False)
    said = json.loads(done.stdout or "{}")
    if "end" not in said or "sum_received" not in said["end"]:
        raise LabError(
            f"{road.system}: iperf3 over IPv{family} failed: {said.get('error', 'it said nothing')}"
        )
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9
