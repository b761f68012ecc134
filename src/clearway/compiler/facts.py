# SPDX-License-Identifier: Apache-2.0
"""What a configuration depends on besides itself: facts about the host, and the checks that need them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from clearway.model import Config, ListContent, PortRange, Problem
from clearway.model.checks import wheel_slots
from clearway.model.errors import Where

NAT_PORTS = PortRange(1024, 65535)
"""Where translated source ports come from unless the configuration says otherwise: no privileged ports."""


class TableSizes(Protocol):
    """The sizes a data path was loaded with, in things of the configuration."""

    @property
    def max_flows(self) -> int: ...
    @property
    def services(self) -> int: ...
    @property
    def endpoints(self) -> int: ...
    @property
    def nats(self) -> int: ...
    @property
    def wheel_slots(self) -> int: ...
    @property
    def rules(self) -> int: ...


CLOCK_STEP = 60.0
"""Seconds: by so much the time may be wrong at which an entry of a list expires."""


@dataclass(frozen=True)
class Clock:
    """What moments are counted by: `jiffies` (64 bits) at `seconds` since the epoch, `hz` a second."""

    jiffies: int
    seconds: float
    hz: int

    @property
    def step(self) -> int:
        """Another number when one of the two clocks was set by more than CLOCK_STEP."""
        return round((self.seconds - self.jiffies / self.hz) / CLOCK_STEP)


@dataclass(frozen=True)
class HostFacts:
    """What compiling needs to know about the network namespace that clearway runs in."""

    local_port_min: int
    local_port_max: int
    """The host's own source ports, net.ipv4.ip_local_port_range."""
    interfaces: Mapping[str, int]
    """Name -> ifindex of every interface."""
    sizes: TableSizes | None = None
    """Sizes of the data path that is loaded; None: it will be loaded with the limits of the configuration."""
    cpus: int = 1
    """Possible CPUs; per-CPU tables take memory for each."""
    memory_bytes: int | None = None
    """Memory that is available; None: unknown."""
    flows: int = 0
    """Connections of the family that has more of them; 0 will do where the flow table does not shrink."""
    lists: Mapping[str, ListContent] = field(default_factory=dict)
    """What is in the files that the configuration names, by path."""
    clock: Clock = field(default=Clock(0, 0.0, 1), compare=False)
    """Of no matter where nothing expires."""

    @property
    def local_ports(self) -> PortRange:
        return PortRange(self.local_port_min, self.local_port_max)

    def free_ports(self) -> PortRange | None:
        """The largest range of NAT_PORTS that the host takes no ports of its own from, if any."""
        local = self.local_ports
        below = PortRange(NAT_PORTS.first, min(local.first - 1, NAT_PORTS.last))
        above = PortRange(max(local.last + 1, NAT_PORTS.first), NAT_PORTS.last)
        largest = max(below, above, key=lambda ports: ports.last - ports.first)
        return largest if largest.first <= largest.last else None


def fact_problems(config: Config, facts: HostFacts) -> list[Problem]:
    """What in a valid configuration does not fit this host or the data path that is loaded."""
    return [
        *_interface_problems(config, facts),
        *_port_problems(config, facts),
        *_size_problems(config, facts),
        *_flow_problems(config, facts),
    ]


def _interface_problems(config: Config, facts: HostFacts) -> Iterable[Problem]:
    named: list[tuple[Where, str]] = [
        *((("interfaces", index, "name"), item.name) for index, item in enumerate(config.interfaces)),
        *((("nat", index, "interface"), nat.interface) for index, nat in enumerate(config.nat)),
        *(
            (("firewall", "rules", index, key), name)
            for index, rule in enumerate(config.firewall.rules if config.firewall else ())
            for key in ("interface_in", "interface_out")
            for name in getattr(rule, key) or ()
        ),
    ]
    known = ", ".join(sorted(facts.interfaces))
    for where, name in named:
        if name not in facts.interfaces:
            what = f"there is no interface {name} in this network namespace"
            yield Problem(where, what, f"create it first, or use one of: {known}")


def _port_problems(config: Config, facts: HostFacts) -> Iterable[Problem]:
    """Translating to an address of the host itself must not take a port the host may use for itself."""
    translating: list[tuple[Where, PortRange | None, bool]] = [
        *(
            (("services", index), service.ports, True)
            for index, service in enumerate(config.services)
            if service.mode == "full-nat"
        ),
        *((("nat", index), nat.ports, nat.masquerade) for index, nat in enumerate(config.nat)),
    ]
    free = facts.free_ports()
    local = f"the host's own ports {facts.local_ports} (net.ipv4.ip_local_port_range)"
    for where, ports, own_address in translating:
        if ports is None and free is None:
            what = f"no ports of {NAT_PORTS} are clear of {local}"
            yield Problem((*where, "ports"), what, "narrow that range with sysctl")
        elif ports is not None and own_address and ports.overlaps(facts.local_ports):
            fix = f"use {free} or a part of it" if free else "narrow that range with sysctl"
            yield Problem((*where, "ports"), f"{ports} overlaps {local}", fix)


def _size_problems(config: Config, facts: HostFacts) -> Iterable[Problem]:
    if facts.sizes is None:
        return
    slots = sum(wheel_slots(service) for service in config.services)
    needs = (
        ("services", len(config.services), facts.sizes.services),
        ("endpoints", sum(len(service.endpoints) for service in config.services), facts.sizes.endpoints),
        ("nats", len(config.nat), facts.sizes.nats),
        ("rules", len(config.firewall.rules) if config.firewall else 0, facts.sizes.rules),
        ("wheel_slots", 2 * slots, facts.sizes.wheel_slots),
    )
    for key, needed, size in needs:
        if needed > size:
            what = f"the data path was loaded with {size}, this configuration needs {needed}"
            fix = f"run `clearway down`, then `clearway run` with {needed} or more"
            yield Problem(("limits", key), what, fix)


def _flow_problems(config: Config, facts: HostFacts) -> Iterable[Problem]:
    """Connections move to the tables of another size."""
    asked = config.conntrack.max_flows
    if facts.flows > asked:
        what = f"a flow table for {asked:,} would not hold the {facts.flows:,} connections that there are"
        yield Problem(("conntrack", "max_flows"), what, "use more, or apply it again when there are fewer")
