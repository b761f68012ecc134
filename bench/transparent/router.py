# SPDX-License-Identifier: Apache-2.0
"""A router, plain or with clearway on its interfaces, and what goes through it.

clients, 10.100.0.0/14 and fd00:100::/32 -- client1 (node) uplink -- outside
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bench.roads import MASQUERADE_CLIENTS, NEW_CLIENTS, SINK_PORT, prepare
from bench.scheduling import alone_on
from bench.traffic import (
    DESTINATION_OFFSET,
    SOURCE_OFFSET,
    Burst,
    Device,
    Expectation,
    Generator,
    Sink,
    Stream,
    attached_tc,
    attached_xdp,
    find_device,
    loaded,
)
from bench.transparent.rules import FAMILIES, masquerade, put
from clearway.datapath import Datapath
from clearway.lab import Lab, LabError, Topology

PLAIN = "plain"
EMPTY = {"empty program on tc": "tc", "empty program on xdp": "xdp"}
"""Routers with a program that passes everything on, by their hook: the least that a data path there costs."""
HOST_SHIFT = 2  # four flows a client
PORTS = 64  # of the destination: a masquerading address has a source port for each flow
MAX_FLOWS = 262_144  # as many as Linux has room for
# Linux' conntrack takes a UDP connection for a lasting one (IPS_ASSURED) when it has had packets of both
# directions for two seconds (net/netfilter/nf_conntrack_proto_udp.c); clearway adopts no other.
ASSURED_SECONDS = 2.2
LASTING = "ASSURED"
# Seconds: no flow may end while others are measured.
CONNTRACK = {
    "netfilter/nf_conntrack_udp_timeout": 3600,
    "netfilter/nf_conntrack_udp_timeout_stream": 3600,
}
LOST_AT_MOST = 0.01
LEFT_AT_MOST = 0.01  # of the packets: those that clearway does not carry
PATIENCE = 5.0  # seconds in which clearway is to have adopted some more
TRIES = 3  # a packet may get lost
CHUNK = 4_000  # frames: of more at once, sent back and forth, some get lost on the way


@dataclass
class Router:
    """A lab whose node routes. `system`: what it is called in the report; `datapath`: clearway's."""

    system: str
    lab: Lab
    datapath: Datapath | None = None
    client: Device = field(init=False)
    entry: Device = field(init=False)  # the node's end towards the clients

    def __post_init__(self) -> None:
        self.client = find_device(self.lab.client.ns, "eth0")
        self.entry = find_device(self.lab.node, self.lab.client.plan.interface)

    def forget(self) -> None:
        """Linux holds no connection any more."""
        self.lab.node.run("conntrack", "-F")

    def carried(self) -> int:
        """Packets that clearway has sent on, so far."""
        if self.datapath is None:
            return 0
        counted = self.datapath.counters().reasons
        return sum(one.packets for reason, one in counted.items() if reason.startswith("forward_"))

    def held(self, family: int, status: str) -> int:
        """UDP connections that Linux holds and that conntrack(8) lists with that status."""
        listed = self.lab.node.run("conntrack", "-L", "-f", f"ipv{family}", "-p", "udp")
        return listed.stdout.count(f"[{status}]")

    def generator(self, stream: Stream) -> Generator:
        return Generator(stream, self.client, self.entry)

    def masqueraded(self, family: int) -> Sink:
        """The outside, where only what has the node's address counts."""
        outside = self.lab.outside
        seen = Expectation.of_address(SOURCE_OFFSET[family], outside.plan.gateway(family))
        return Sink(find_device(outside.ns, "eth0"), seen)

    def forwarded(self, family: int) -> Sink:
        """The outside, where what was sent to it counts."""
        outside = self.lab.outside
        seen = Expectation.of_address(DESTINATION_OFFSET[family], outside.address(family))
        return Sink(find_device(outside.ns, "eth0"), seen)


@dataclass(frozen=True)
class Sample:
    """What came of a burst."""

    rate: float  # packets/s
    cost: float  # ns of CPU time a packet
    left: float  # share of the packets that clearway left to Linux


@dataclass(frozen=True)
class Traffic:
    """A stream through a router, and where it ends."""

    router: Router
    generator: Generator
    sinks: Sequence[Sink]

    @property
    def system(self) -> str:
        return self.router.system

    @property
    def flows(self) -> int:
        return self.generator.stream.flows

    def burst(self, frames: int) -> tuple[Burst, float]:
        """Send; what was sent, and the share of it that clearway left to Linux. LabError when packets are
        lost.
        """
        before, carried = self._arrived(), self.router.carried()
        burst = self.generator.send(frames)
        arrived, carried = self._arrived() - before, self.router.carried() - carried
        if arrived < frames * (1 - LOST_AT_MOST):
            to = self.generator.stream.destination
            raise LabError(f"{self.system}: of {frames} datagrams to {to} only {arrived} arrived right")
        return burst, max(0.0, 1 - carried / frames)

    def take(self, frames: int, cpu: int) -> Sample:
        """A burst that counts."""
        with alone_on(cpu):
            burst, left = self.burst(frames)
        return Sample(frames / burst.seconds, burst.cpu_seconds * 1e9 / frames, left)

    def once(self, cpu: int) -> float:
        """A packet of each flow; the share of them that clearway left to Linux."""
        shares = []
        for begin in range(0, self.flows, CHUNK):
            chunk = min(CHUNK, self.flows - begin)
            with alone_on(cpu):
                shares.append(self.burst(chunk)[1] * chunk)
        return sum(shares) / self.flows

    def converse(self, cpu: int) -> None:
        """A packet of each flow, and its reply. LabError when replies are lost."""
        stream = self.generator.stream
        expectation = Expectation.of_address(SOURCE_OFFSET[stream.family], stream.destination)
        with Sink(self.router.client, expectation) as replies, ExitStack() as stack:
            for sink in self.sinks:
                stack.enter_context(sink.echoing())
            self.once(cpu)
            returned = replies.arrived()
        if returned < stream.flows * (1 - LOST_AT_MOST):
            lost = f"of {stream.flows} replies from {stream.destination} only {returned} came back"
            raise LabError(f"{self.system}: {lost}")

    def _arrived(self) -> int:
        return sum(sink.arrived() for sink in self.sinks)


def establish(through: Sequence[Traffic], cpu: int, status: str = LASTING) -> None:
    """Every flow is one that Linux takes for lasting, or of another status that it is to come to. LabError
    when it is not.
    """
    for one in through:
        one.converse(cpu)
    time.sleep(ASSURED_SECONDS)
    for one in through:
        for _ in range(TRIES):
            one.converse(cpu)
            if (held := one.router.held(one.generator.stream.family, status)) >= one.flows:
                break
        else:
            raise LabError(f"{one.system}: of {one.flows} connections {held} have come to be {status}")


def settle(through: Sequence[Traffic], cpu: int) -> None:
    """Sends packets until clearway carries nearly all of them, or for PATIENCE no more than before."""
    least = {one.system: 1.0 for one in through if one.router.datapath is not None}
    deadline = time.monotonic() + PATIENCE
    while least and time.monotonic() < deadline:
        for one in [one for one in through if one.system in least]:
            left = one.once(cpu)
            if left < least[one.system] - LEFT_AT_MOST:
                least[one.system], deadline = left, time.monotonic() + PATIENCE
            if left <= LEFT_AT_MOST:
                del least[one.system]
        time.sleep(0.1)


def lasting(router: Router, family: int, flows: int) -> Stream:
    """So many flows from the clients to the outside."""
    outside = router.lab.outside.address(family)
    return Stream(family, MASQUERADE_CLIENTS[family], outside, SINK_PORT, flows, HOST_SHIFT, PORTS)


def opening(router: Router, family: int) -> Stream:
    """Other clients to the outside: each datagram opens a flow."""
    outside = router.lab.outside.address(family)
    return Stream(family, NEW_CLIENTS[family], outside, SINK_PORT, 0, HOST_SHIFT, PORTS)


def configuration(lab: Lab, hook: str) -> str:
    """Interfaces and room, and nothing that clearway could claim."""
    interfaces = [{"name": name, "hook": hook} for name in lab.interfaces]
    return json.dumps({"interfaces": interfaces, "conntrack": {"max_flows": MAX_FLOWS}})


@contextmanager
def clearway_on(lab: Lab, hook: str) -> Iterator[Datapath]:
    """clearway on all interfaces of the lab's node for the time of the `with` block."""
    with lab.daemon(configuration(lab, hook)) as daemon, Datapath.open(daemon.instance) as datapath:
        yield datapath


@contextmanager
def empty_on(lab: Lab, hook: str) -> Iterator[None]:
    """A program that does nothing on all interfaces of the lab's node, for the time of the `with` block."""
    with ExitStack() as stack:
        program = stack.enter_context(loaded({})).program_fd(f"pass_{hook}")
        attached = attached_xdp if hook == "xdp" else attached_tc
        for name in lab.interfaces:
            stack.enter_context(attached(program, find_device(lab.node, name)))
        yield


@contextmanager
def open_router(system: str) -> Iterator[Router]:
    """A router that masquerades by nftables, for the time of the `with` block. `system`: PLAIN, one of EMPTY,
    or the hook that clearway takes.
    """
    with ExitStack() as stack:
        name = f"bench-tr-{system.replace(' program on ', '-')}"
        lab = stack.enter_context(Lab(name, Topology(clients=1, servers=0)))
        prepare(lab)
        for family in FAMILIES:
            put(lab.node, masquerade(family))
        lab.node.sysctl(CONNTRACK)
        datapath = None
        if system != PLAIN:
            lab.prepare_for(hook := EMPTY.get(system, system))
            if system in EMPTY:
                stack.enter_context(empty_on(lab, hook))
            else:
                datapath = stack.enter_context(clearway_on(lab, hook))
        yield Router(system, lab, datapath)
