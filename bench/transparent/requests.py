# SPDX-License-Identifier: Apache-2.0
"""Requests and responses over one TCP connection, to and from a container: time and CPU time of each.

Both ends are processes on one CPU, so a request takes what the ends, two changes of the process and the node
twice take; what the node takes is done in the sender's time.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from bench.progress import Progress
from bench.results import Report
from bench.scheduling import alone_on
from bench.transparent.established import expect_carried, report_left
from bench.transparent.router import LEFT_AT_MOST, PATIENCE, PLAIN, clearway_on
from bench.transparent.rules import CONTAINER_PORT, FAMILIES, PUBLISHED, containers
from clearway.datapath import Datapath
from clearway.lab import Lab, LabError, Topology
from clearway.lab.run import undisturbed

HOOK = "auto"
SYSTEMS = (PLAIN, HOOK)
ROUNDS = 25
REQUESTS = 1_500  # a round
PROBE = 200  # requests
PACKETS = 2  # a request and its response, which carry the acknowledgements
ANSWER_SECONDS = 5

LATENCY = "TCP request and response"
CPU = "CPU per TCP request and response"
AT_MOST = 1.0  # of what they take without clearway

MESSAGE = b"?"


@dataclass
class Connection:
    """A client and, in a process of its own, who answers it. `carried`: by clearway, so far."""

    system: str
    client: socket.socket
    answering: int  # process
    carried: Callable[[], int]
    latencies: list[float] = field(default_factory=list)  # us
    costs: list[float] = field(default_factory=list)  # us of CPU time, of both ends
    left: list[float] = field(default_factory=list)  # share of the packets

    def ask(self, requests: int) -> float:
        """So many, one after the other; the share of their packets that clearway left to Linux. LabError when
        one is not answered.
        """
        before = self.carried()
        try:
            for _ in range(requests):
                self.client.send(MESSAGE)
                self.client.recv(len(MESSAGE))
        except BlockingIOError as error:
            raise LabError(f"{self.system}: a request is not answered within {ANSWER_SECONDS} s") from error
        return max(0.0, 1 - (self.carried() - before) / (PACKETS * requests))

    def take(self, cpu: int) -> None:
        """A round that counts."""
        with alone_on(cpu):
            cpu_before, before = self._cpu_seconds(), time.perf_counter()
            left = self.ask(REQUESTS)
            took, cpu_took = time.perf_counter() - before, self._cpu_seconds() - cpu_before
        self.latencies.append(took * 1e6 / REQUESTS)
        self.costs.append(cpu_took * 1e6 / REQUESTS)
        self.left.append(left)

    def _cpu_seconds(self) -> float:
        # a process' clock, as clock_getcpuclockid(3) makes its number
        return time.thread_time() + time.clock_gettime(~self.answering << 3 | 2)


def measure(report: Report, progress: Progress, cpu: int) -> None:
    """Two hosts of containers, plain and with clearway, in turns."""
    with ExitStack() as stack:
        with progress.step("hosts of containers"):
            labs = {system: stack.enter_context(_host(system)) for system in SYSTEMS}
            datapaths = {HOOK: stack.enter_context(clearway_on(labs[HOOK], HOOK))}
        for family in FAMILIES:
            for what, connect in (("to a published port", _published), ("out of a container", _outgoing)):
                case = f"IPv{family}, {what}"
                with progress.step(f"requests, {case}"), ExitStack() as ends:
                    connections = [
                        _open(ends, system, connect(lab, family), datapaths.get(system), cpu)
                        for system, lab in labs.items()
                    ]
                    _take_turns(connections, cpu)
                    _report(report, case, connections)


def _take_turns(connections: Sequence[Connection], cpu: int) -> None:
    for one in connections:
        _settle(one)
    for number in range(ROUNDS):
        for one in connections if number % 2 == 0 else reversed(connections):
            one.take(cpu)


def _settle(connection: Connection) -> None:
    """Until clearway carries it, but not for long."""
    deadline = time.monotonic() + PATIENCE
    while connection.ask(PROBE) > LEFT_AT_MOST and connection.system != PLAIN and time.monotonic() < deadline:
        time.sleep(0.1)


def _report(report: Report, case: str, connections: Sequence[Connection]) -> None:
    names = {one.system: f"{case}, {one.system}" for one in connections}
    report.add(LATENCY, "us", {names[one.system]: one.latencies for one in connections}, names[PLAIN])
    report.add(CPU, "us", {names[one.system]: one.costs for one in connections}, names[PLAIN])
    report_left(report, {names[one.system]: one.left for one in connections if one.system != PLAIN})
    for metric in (LATENCY, CPU):
        report.expect(names[HOOK], metric, AT_MOST, at_most=True)
    expect_carried(report, names[HOOK])


# ---- who talks to whom ----


@contextmanager
def _host(system: str) -> Iterator[Lab]:
    """A node with two containers, each in a network of its own, for the time of the `with` block."""
    with Lab(f"bench-rr-{system}", Topology(clients=2, servers=0)) as lab:
        networks = [client.plan for client in lab.clients]
        lab.node.run("iptables-restore", stdin=containers(networks, 4))
        lab.node.run("ip6tables-restore", stdin=containers(networks, 6))
        yield lab


# The client's end and the server's
Ends = tuple[socket.socket, socket.socket]


def _published(lab: Lab, family: int) -> Ends:
    """From the outside to the port of the node that is the first container's."""
    container, node = lab.client, lab.node_address("uplink", family)
    with container.ns.listen((container.address(family), CONTAINER_PORT)) as listening:
        return lab.outside.ns.connect((node, PUBLISHED)), listening.accept()[0]


def _outgoing(lab: Lab, family: int) -> Ends:
    """From the second container to the outside, which sees the node's address."""
    outside = lab.outside
    with outside.ns.listen((outside.address(family), CONTAINER_PORT)) as listening:
        return lab.clients[1].ns.connect((outside.address(family), CONTAINER_PORT)), listening.accept()[0]


def _open(stack: ExitStack, system: str, ends: Ends, datapath: Datapath | None, cpu: int) -> Connection:
    """For the time of the stack."""
    client, server = (stack.enter_context(end) for end in ends)
    for end in (client, server):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ANSWER_SECONDS, 0))
    answering = stack.enter_context(_answering(server, cpu))

    def carried() -> int:
        return 0 if datapath is None else datapath.counters().reasons["forward_flow"].packets

    return Connection(system, client, answering, carried)


@contextmanager
def _answering(server: socket.socket, cpu: int) -> Iterator[int]:
    """A process that sends back what it gets, for the time of the `with` block; its number."""
    with alone_on(cpu), undisturbed():  # as the process is to be
        process = os.fork()
        if process == 0:
            _answer(server)
    try:
        yield process
    finally:
        with undisturbed():
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _answer(server: socket.socket) -> None:
    """Does not return."""
    with suppress(OSError):
        while message := server.recv(len(MESSAGE)):
            server.send(message)
    os._exit(0)
