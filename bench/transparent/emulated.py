# SPDX-License-Identifier: Apache-2.0
"""Routers of which one stands at a time on an emulated machine, beside what its kernel has for the same end:
nf_flowtable and IPVS, which not every kernel has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from bench.roads import SERVICE_CLIENTS, prepare
from bench.traffic import DESTINATION_OFFSET, Expectation, Sink, Stream, find_device
from bench.transparent.router import (
    CONNTRACK,
    HOST_SHIFT,
    Router,
    Traffic,
    clearway_on,
    lasting,
)
from bench.transparent.rules import FAMILIES, INSIDE, KEYWORDS, OUTSIDE, masquerade, put
from clearway.datapath import Datapath
from clearway.lab import Lab, Topology

FLOWS = 1_000
HOOK = "tc"
CLIENTS = 4  # all but the first are IPVS' servers
SERVICE_PORT, SERVER_PORT = 53, 5353
FLOWTABLE = "bench_flowtable"


class System(StrEnum):
    """What carries the packets."""

    GENERATOR = "generator"  # the way to the node, to where its TC gets packets, and no further
    FORWARD = "forwarding"
    MASQUERADE = "nft masquerade"
    FLOWTABLE = "nf_flowtable"
    ADOPTED = "clearway"  # on TC, beside nft masquerade
    IPVS_BARE = "IPVS NAT without conntrack"
    IPVS = "IPVS NAT"
    LEARNED = "clearway beside IPVS"


MASQUERADING = (System.MASQUERADE, System.FLOWTABLE, System.ADOPTED)
BALANCING = (System.IPVS_BARE, System.IPVS, System.LEARNED)
WITH_CLEARWAY = (System.ADOPTED, System.LEARNED)
WITH_CONNTRACK = (*MASQUERADING, System.IPVS, System.LEARNED)


@dataclass(frozen=True)
class Emulated:
    """A router and what it is."""

    system: System
    router: Router

    @contextmanager
    def traffic(self, family: int) -> Iterator[Traffic]:
        """FLOWS of a family through it, for the time of the `with` block."""
        with ExitStack() as stack:
            sinks = [stack.enter_context(sink) for sink in self._sinks(family)]
            generator = stack.enter_context(self.router.generator(self._stream(family)))
            yield Traffic(self.router, generator, sinks)

    def _stream(self, family: int) -> Stream:
        if self.system not in BALANCING:
            return lasting(self.router, family, FLOWS)
        vip = self.router.lab.vip(family)
        return Stream(family, SERVICE_CLIENTS[family], vip, SERVICE_PORT, FLOWS, HOST_SHIFT)

    def _sinks(self, family: int) -> Sequence[Sink]:
        if self.system is System.GENERATOR:
            outside = self.router.lab.outside.address(family)
            seen = Expectation.of_address(DESTINATION_OFFSET[family], outside)
            return [Sink(self.router.entry, seen, "tc")]
        if self.system is System.FORWARD:
            return [self.router.forwarded(family)]
        if self.system in MASQUERADING:
            return [self.router.masqueraded(family)]
        return [
            Sink(
                find_device(server.ns, "eth0"),
                Expectation.of_address(DESTINATION_OFFSET[family], server.address(family)),
            )
            for server in self.router.lab.clients[1:]
        ]


@contextmanager
def open_emulated(system: System) -> Iterator[Emulated]:
    """For the time of the `with` block."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("bench-vm", Topology(clients=CLIENTS, servers=0)))
        prepare(lab)
        lab.prepare_for(HOOK)
        _rules(lab, system)
        datapath: Datapath | None = None
        if system in WITH_CLEARWAY:
            datapath = stack.enter_context(clearway_on(lab, HOOK))
        yield Emulated(system, Router(system, lab, datapath))


def _rules(lab: Lab, system: System) -> None:
    """What the node has of Linux. Where it balances with conntrack it masquerades as well, as kube-proxy
    does: without a rule that needs conntrack there is none.
    """
    for family in FAMILIES:
        if system in WITH_CONNTRACK:
            put(lab.node, masquerade(family))
        if system is System.FLOWTABLE:
            put(lab.node, flowtable(family))
        if system in BALANCING:
            _balance(lab, family)
    if system in WITH_CONNTRACK:
        lab.node.sysctl(CONNTRACK)
    if system in BALANCING:
        lab.node.sysctl({"ipv4/vs/conntrack": int(system in WITH_CONNTRACK)})


def flowtable(family: int) -> str:
    """For `nft -f`: forwarded UDP goes into a flowtable, in software, once it has been answered."""
    devices = f"{INSIDE}, {OUTSIDE}"
    return (
        f"table {KEYWORDS[family]} {FLOWTABLE} {{\n"
        f"  flowtable fast {{\n    hook ingress priority 0; devices = {{ {devices} }};\n  }}\n"
        "  chain forward {\n    type filter hook forward priority filter;\n"
        "    meta l4proto udp flow add @fast\n  }\n}\n"
    )


def _balance(lab: Lab, family: int) -> None:
    """The service address' UDP, in turns to the servers."""

    def spelt(address: str, port: int) -> str:
        return f"{address}:{port}" if family == 4 else f"[{address}]:{port}"

    service = ("--udp-service", spelt(lab.vip(family), SERVICE_PORT))
    lab.node.run("ipvsadm", "--add-service", *service, "--scheduler", "rr")
    for server in lab.clients[1:]:
        real = spelt(server.address(family), SERVER_PORT)
        lab.node.run("ipvsadm", "--add-server", *service, "--real-server", real, "--masquerading")
