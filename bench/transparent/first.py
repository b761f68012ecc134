# SPDX-License-Identifier: Apache-2.0
"""What clearway costs the packets that it does not carry: the first of a connection, and what is for the
machine itself; beside what a program that does nothing costs them.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from bench.progress import Progress
from bench.results import Report
from bench.roads import NEW_CLIENTS, SINK_PORT
from bench.scheduling import alone_on
from bench.traffic import Generator, Stream
from bench.transparent.router import EMPTY, HOST_SHIFT, LOST_AT_MOST, PLAIN, Router, Traffic, opening
from bench.transparent.rules import FAMILIES
from clearway.lab import LabError
from clearway.lab.namespace import family_of

ROUNDS = 25
BURST = 4_000  # packets
FLOWS = 100  # to the machine itself
ROOM = 256 << 20  # bytes of a socket: a burst waits in it until it is counted

FIRST = "CPU per first packet"
LOCAL = "CPU per packet to the machine itself"
MORE_AT_MOST = {FIRST: 400.0, LOCAL: 100.0}  # ns

SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def more(metric: str) -> str:
    """The name of the difference."""
    return f"{metric}, more than {PLAIN}"


def measure(routers: Sequence[Router], report: Report, progress: Progress, cpu: int) -> None:
    """Both families, all routers in turns."""
    for family in FAMILIES:
        with progress.step(f"first packets, IPv{family}"):
            report_costs(report, family, FIRST, _first_packets(routers, family, cpu))
        with progress.step(f"packets to the machine itself, IPv{family}"):
            report_costs(report, family, LOCAL, _local_packets(routers, family, cpu))


def _first_packets(routers: Sequence[Router], family: int, cpu: int) -> dict[str, list[float]]:
    """ns a packet, by burst. Each packet opens a connection, which Linux masquerades and then forgets."""
    with ExitStack() as stack:
        through = [
            Traffic(
                router,
                stack.enter_context(router.generator(opening(router, family))),
                [stack.enter_context(router.masqueraded(family))],
            )
            for router in routers
        ]
        costs: dict[str, list[float]] = {one.system: [] for one in through}
        for number in range(-1, ROUNDS):  # the first round is for caches
            for one in through if number % 2 == 0 else reversed(through):
                costs[one.system].append(one.take(BURST, cpu).cost)
                one.router.forget()
        return {system: values[1:] for system, values in costs.items()}


def _local_packets(routers: Sequence[Router], family: int, cpu: int) -> dict[str, list[float]]:
    """ns a packet, of each burst, to a socket that has room for all of it."""
    with ExitStack() as stack:
        ends = {router.system: stack.enter_context(_local(router, family)) for router in routers}
        costs: dict[str, list[float]] = {system: [] for system in ends}
        for number in range(-1, ROUNDS):
            for system in ends if number % 2 == 0 else reversed(ends):
                costs[system].append(_local_burst(system, *ends[system], cpu))
        for router in routers:
            router.forget()
        return {system: values[1:] for system, values in costs.items()}


@contextlib.contextmanager
def _local(router: Router, family: int) -> Iterator[tuple[Generator, socket.socket]]:
    """Who sends to the node's own address, and the socket there."""
    address = router.lab.node_address(router.entry.name, family)
    stream = Stream(family, NEW_CLIENTS[family], address, SINK_PORT, FLOWS, HOST_SHIFT)
    receiver = router.lab.node.open_socket(family_of(address), socket.SOCK_DGRAM)
    with receiver, router.generator(stream) as generator:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        receiver.setblocking(False)
        receiver.bind((address, SINK_PORT))
        yield generator, receiver


def _local_burst(system: str, generator: Generator, receiver: socket.socket, cpu: int) -> float:
    """ns a packet. LabError when the socket has not got them all."""
    with alone_on(cpu):
        burst = generator.send(BURST)
    received = 0
    with contextlib.suppress(BlockingIOError):
        while receiver.recv(1):
            received += 1
    if received < BURST * (1 - LOST_AT_MOST):
        raise LabError(f"{system}: of {BURST} datagrams to the node its socket got {received}")
    return burst.cpu_seconds * 1e9 / BURST


def report_costs(report: Report, family: int, metric: str, costs: dict[str, list[float]]) -> None:
    """Figures and targets, of samples (ns) by system."""
    case = f"IPv{family}"
    report.add(
        metric, "ns", {f"{case}, {system}": values for system, values in costs.items()}, f"{case}, {PLAIN}"
    )
    for system, values in costs.items():
        if system != PLAIN:
            differences = [mine - least for mine, least in zip(values, costs[PLAIN], strict=True)]
            report.add(more(metric), "ns", {f"{case}, {system}": differences})
            if system not in EMPTY:
                report.expect_at_most(f"{case}, {system}", more(metric), MORE_AT_MOST[metric])
