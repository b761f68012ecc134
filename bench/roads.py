# SPDX-License-Identifier: Apache-2.0
"""One road a system: a lab whose node carries the same traffic by Linux, by nftables, by clearway, or by a
program that does nothing but forward.

    clients -- client1 (node) uplink -- outside        masquerade: to `outside`, from the node's address
                       (node) server1..3 -- servers    service: to the service address, to one of the servers
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from bench.traffic import (
    DESTINATION_OFFSET,
    SOURCE_OFFSET,
    Device,
    Expectation,
    Generator,
    Sink,
    Stream,
    attached_tc,
    attached_xdp,
    find_device,
    loaded,
    way_out,
)
from clearway.lab import Lab, Topology
from clearway.lab.baseline import linux_alone
from clearway.lab.daemon import Daemon
from clearway.model import parse_config

FAMILIES = (4, 6)
SERVICE_PORT = 53
SINK_PORT = 9
# What lies behind client1, by family, and who of it sends what
BEHIND_CLIENT = {4: "10.100.0.0/14", 6: "fd00:100::/32"}
MASQUERADED = {4: "10.100.0.0/16", 6: "fd00:100::/64"}
MASQUERADE_CLIENTS = {4: "10.100.0.0", 6: "fd00:100::"}
SERVICE_CLIENTS = {4: "10.101.0.0", 6: "fd00:100:1::"}
NEW_CLIENTS = {4: "10.102.0.0", 6: "fd00:100:2::"}
BULK_CLIENT = {4: "10.100.0.1", 6: "fd00:100::1"}


class System(StrEnum):
    """What stands on the node."""

    DROP = "drop"  # the way to the node and no further: what generating costs
    BARE_TC = "bare tc"  # a program that sends everything on
    BARE_XDP = "bare xdp"
    LINUX = "linux"  # forwarding, no rules
    NFTABLES = "nftables"
    TC = "tc"  # clearway
    XDP = "xdp"

    @property
    def lab(self) -> str:
        """The name of its lab, and with "cw-" before it that of its clearway instance."""
        return f"bench-{self.replace(' ', '-')}"


TRANSLATING = (System.NFTABLES, System.TC, System.XDP)
MAX_FLOWS = 262_144


def configuration(lab: Lab, hook: str) -> str:
    """The node's configuration; nftables does the same by clearway.lab.baseline."""
    lines = ["interfaces:"]
    lines += [f"  - {{name: {interface}, hook: {hook}}}" for interface in lab.interfaces]
    # as many as Linux has room for: new flows must not meet a full table, where idle ones make way
    lines.append(f"conntrack: {{max_flows: {MAX_FLOWS}}}")
    lines.append("services:")
    for family in FAMILIES:
        for name, port, protocol in (("web", 80, "tcp"), ("dns", SERVICE_PORT, "udp")):
            lines += [
                f"  - name: {name}{family}",
                f"    address: {lab.vip(family)!r}",
                f"    port: {port}",
                f"    protocol: {protocol}",
                "    mode: nat",
                "    algorithm: maglev",
                "    endpoints:",
            ]
            lines += [
                f"      - {{address: {server.address(family)!r}, port: 8080}}" for server in lab.servers
            ]
    lines.append("nat:")
    lines += [
        f"  - {{name: out{family}, source: {MASQUERADED[family]!r}, interface: uplink, masquerade: true}}"
        for family in FAMILIES
    ]
    return "\n".join(lines) + "\n"


@dataclass
class Road:
    """A lab that is up and carries traffic by `system`."""

    system: System
    lab: Lab
    daemon: Daemon | None = None
    client: Device = field(init=False)
    entry: Device = field(init=False)  # the node's end towards the client

    def __post_init__(self) -> None:
        self.client = find_device(self.lab.client.ns, "eth0")
        self.entry = find_device(self.lab.node, self.lab.client.plan.interface)

    def masquerade_stream(self, family: int, flows: int) -> Stream:
        """Clients to the outside host."""
        outside = self.lab.outside.address(family)
        return Stream(family, MASQUERADE_CLIENTS[family], outside, SINK_PORT, flows, host_shift=2)

    def service_stream(self, family: int, flows: int) -> Stream:
        """Clients to the service."""
        vip = self.lab.vip(family)
        return Stream(family, SERVICE_CLIENTS[family], vip, SERVICE_PORT, flows, host_shift=2)

    def opening_stream(self, family: int) -> Stream:
        """Other clients to the service: each datagram opens a flow."""
        return Stream(family, NEW_CLIENTS[family], self.lab.vip(family), SERVICE_PORT, 0, host_shift=4)

    def forget(self) -> None:
        """Empty Linux' table of connections: nf_conntrack_max cannot be raised in a namespace."""
        if self.system is System.NFTABLES:
            self.lab.node.run("conntrack", "-F")

    def generator(self, stream: Stream) -> Generator:
        return Generator(stream, self.client, self.entry)

    def masquerade_sinks(self, family: int) -> list[Sink]:
        """Where masquerade_stream() ends. Translating systems are to show the node's address."""
        outside = self.lab.outside
        expectation = Expectation.of_address(DESTINATION_OFFSET[family], outside.address(family))
        if self.system in TRANSLATING:
            expectation = Expectation.of_address(SOURCE_OFFSET[family], outside.plan.gateway(family))
        end = self.entry if self.system is System.DROP else find_device(outside.ns, "eth0")
        return [Sink(end, expectation)]

    def service_sinks(self, family: int) -> list[Sink]:
        """Where service_stream() ends."""
        offset = DESTINATION_OFFSET[family]
        return [
            Sink(find_device(server.ns, "eth0"), Expectation.of_address(offset, server.address(family)))
            for server in self.lab.servers
        ]

    def reply_sink(self, stream: Stream) -> Sink:
        """Where replies come back to, from the address that the clients sent to."""
        return Sink(self.client, Expectation.of_address(SOURCE_OFFSET[stream.family], stream.destination))


@contextlib.contextmanager
def open_road(system: System) -> Iterator[Road]:
    """A road that is there for the time of the `with` block."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(
            Lab(system.lab, Topology(clients=1, servers=3 if system in TRANSLATING else 0))
        )
        prepare(lab)
        road = Road(system, lab)
        if system in (System.TC, System.XDP):
            lab.prepare_for(system.value)
            road.daemon = stack.enter_context(lab.daemon(configuration(lab, system.value)))
        elif system is System.NFTABLES:
            config = parse_config(configuration(lab, "tc"), "the benchmark's configuration")
            stack.enter_context(linux_alone(lab.node, config))
        elif system in (System.BARE_TC, System.BARE_XDP):
            stack.enter_context(_nothing_but_forwarding(road))
        yield road


def prepare(lab: Lab) -> None:
    """Addresses behind the client, and neighbours that nobody needs to ask for: sinks answer no questions."""
    client = lab.client
    lab.node.ip_batch(
        f"route add {BEHIND_CLIENT[family]} via {client.address(family)}" for family in FAMILIES
    )
    # Only systems that do not translate let the outside see these.
    lab.outside.ns.ip_batch(
        f"route add {BEHIND_CLIENT[family]} via {lab.outside.plan.gateway(family)}" for family in FAMILIES
    )
    client.ns.ip_batch(f"address add {BULK_CLIENT[family]} dev eth0" for family in FAMILIES)
    for host in lab.hosts.values():
        mac = find_device(host.ns, "eth0").mac
        lab.node.ip_batch(
            f"neigh replace {host.address(family)} lladdr {mac} dev {host.plan.interface} nud permanent"
            for family in FAMILIES
        )
    for interface in lab.interfaces:
        # A veth takes redirected frames only while its NAPI runs, which GRO switches on. NICs have both.
        lab.node.run("ethtool", "-K", interface, "gro", "on")


@contextlib.contextmanager
def _nothing_but_forwarding(road: Road) -> Iterator[None]:
    """The least that could be done between client and outside, by XDP or TC."""
    uplink = find_device(road.lab.node, "uplink")
    constants = way_out(uplink, find_device(road.lab.outside.ns, "eth0"))
    with loaded(constants) as programs, contextlib.ExitStack() as stack:
        if road.system is System.BARE_XDP:
            stack.enter_context(attached_xdp(programs.program_fd("bare_xdp"), road.entry))
        else:
            stack.enter_context(attached_tc(programs.program_fd("bare_tc"), road.entry))
        yield
