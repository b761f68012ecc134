# SPDX-License-Identifier: Apache-2.0
"""What the demo measures, and how: wrk for HTTP, a UDP flood for packets, /proc/stat for what they cost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from clearway.lab.flood import Order
from clearway.lab.lab import Host
from clearway.lab.namespace import Namespace
from clearway.lab.run import LabError, patience, stop

# wrk calls done() at its end; times come in microseconds.
WRK_REPORT = """\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"us":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d,"p50":%d,"p99":%d}\\n',
    summary.requests, summary.duration, e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""
SINK_PORT = 9
LONGEST_LOAD = 120  # seconds
FLOWS = 64


@dataclass(frozen=True)
class Http:
    """One run of wrk. Latencies in microseconds; `broken` counts failed sockets, not waiting ones."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    broken: int
    timeouts: int

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True)
class Packets:
    """One UDP flood: datagrams that arrived with the node's source address, and what the machine spent."""

    sent: int
    arrived: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.arrived / self.seconds

    @property
    def cpu_ns_per_packet(self) -> float:
        """System and softirq time of all cores, sender and sink included."""
        return self.cpu_seconds * 1e9 / max(self.arrived, 1)


def wrk_argv(directory: Path, url: str, *, seconds: float, connections: int, close: bool) -> list[str]:
    """The command line of a wrk run; `close` opens a connection for each request."""
    script = directory / "wrk.lua"
    if not script.exists():
        script.write_text(WRK_REPORT)
    header = ["-H", "Connection: close"] if close else []
    load = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "2s"]
    return ["wrk", *load, *header, "-s", str(script), url]


def parse_wrk(output: str) -> Http:
    """What WRK_REPORT printed. LabError when wrk did not get that far."""
    for line in output.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            broken = said["connect"] + said["read"] + said["write"] + said["status"]
            return Http(said["requests"], said["us"] / 1e6, said["p50"], said["p99"], broken, said["timeout"])
    raise LabError(f"wrk gave no result: {output.strip()[-200:]}")


class Load:
    """wrk in the background, until it is told to end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self) -> Http:
        """Stop it and return what it found. LabError when it had failed, or does not end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # wrk then reports as if its time were over
        try:
            output, complaint = self._process.communicate(timeout=20 * patience())
        except subprocess.TimeoutExpired as error:
            raise LabError("wrk does not end") from error
        return parse_wrk(output + complaint)


@contextmanager
def load(
    client: Namespace, directory: Path, url: str, *, connections: int, close: bool = False
) -> Iterator[Load]:
    """wrk runs in the background for the time of the `with` block, or until its end() is called."""
    argv = wrk_argv(directory, url, seconds=LONGEST_LOAD, connections=connections, close=close)
    process = client.spawn(*argv)
    try:
        yield Load(process)
    finally:
        stop(process)


def http(
    client: Namespace, directory: Path, url: str, *, seconds: float, connections: int, close: bool
) -> Http:
    """Load `url` from `client` by wrk for so many seconds."""
    argv = wrk_argv(directory, url, seconds=seconds, connections=connections, close=close)
    return parse_wrk(client.run(*argv, timeout=seconds + 20).stdout)


def distribution(client: Namespace, url: str, requests: int) -> Counter[str]:
    """Which server answered how many of `requests` requests by curl, each on a connection of its own."""
    answers = client.run(
        *("curl", "--silent", "--show-error", "--globoff", "--max-time", f"{20 * patience():g}"),
        *("-H", "Connection: close", *[url] * requests),
        timeout=30,
    )
    return Counter(line.split()[0] for line in answers.stdout.splitlines())


def cpu_seconds() -> float:
    """System, interrupt and softirq time of all cores since boot (proc_stat(5))."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    system, irq, softirq = int(fields[2]), int(fields[5]), int(fields[6])
    return (system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def seen_from_outside(client: Namespace, sink: Host, family: int) -> str:
    """The source address under which a datagram from `client` arrives at `sink`."""
    with sink.ns.listen((sink.address(family), SINK_PORT), kind=socket.SOCK_DGRAM, timeout=5) as listening:
        with client.connect((sink.address(family), SINK_PORT), kind=socket.SOCK_DGRAM) as sender:
            sender.send(b"who am I?")
        _, source = listening.recvfrom(64)
        return str(source[0])


def packets(client: Host, sink: Host, source: str, *, seconds: float) -> Packets:
    """Flood `sink` with 64-byte IPv4 frames from `client` for so many seconds; those from `source` count.

    The sink drops them where they arrive, so that it costs little beside what is measured.
    """
    rule = f"ip saddr {source} udp dport {SINK_PORT} counter drop"
    chain = f"chain sink {{\ntype filter hook ingress device eth0 priority 0\n{rule}\n}}\n"
    sink.ns.run("nft", "-f", "-", stdin=f"table netdev flood {{\n{chain}}}\n")
    try:
        order = _order(client, sink, 0.1)  # opens the flows, resolves the neighbours
        _flood(client, order)
        cpu, arrived = cpu_seconds(), _arrived(sink)
        sent, took = _flood(client, replace(order, seconds=seconds))
        return Packets(sent, _arrived(sink) - arrived, took, cpu_seconds() - cpu)
    finally:
        sink.ns.run("nft", "delete", "table", "netdev", "flood", check=False)


def _order(client: Host, sink: Host, seconds: float) -> Order:
    gateway = client.plan.gateway(4)
    client.ns.run("ping", "-c1", "-W2", gateway)
    neighbour = client.ns.ip("neighbour", "show", "to", gateway, "dev", "eth0").split()
    own = client.ns.ip("-brief", "link", "show", "eth0").split()[2]
    if "lladdr" not in neighbour:
        raise LabError(f"{client.name} does not reach its gateway {gateway}")
    mac = neighbour[neighbour.index("lladdr") + 1]
    return Order("eth0", own, mac, client.address(4), sink.address(4), SINK_PORT, FLOWS, seconds)


def _flood(client: Host, order: Order) -> tuple[int, float]:
    """Carry out an order; (frames sent, seconds taken)."""
    argv = (sys.executable, "-m", "clearway.lab.flood")
    said = json.loads(client.ns.run(*argv, stdin=order.json(), timeout=order.seconds + 20).stdout)
    return int(said["sent"]), float(said["seconds"])


def _arrived(sink: Host) -> int:
    """What the sink's rule has counted so far."""
    listed = sink.ns.run("nft", "list", "table", "netdev", "flood").stdout.split()
    return int(listed[listed.index("packets") + 1])
