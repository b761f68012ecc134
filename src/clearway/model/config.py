# SPDX-License-Identifier: Apache-2.0
"""What the user can say. These models are the configuration file, the API and the commands alike.

A `Config` that exists is valid: values, families, names and sizes were checked when it was made. What
depends on the machine (interfaces, its local port range) is checked when it is compiled.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from . import checks
from .errors import Origin
from .fields import (
    Address,
    Duration,
    InterfaceName,
    MaglevSize,
    Model,
    Name,
    Pool,
    Port,
    Ports,
    Prefix,
    Several,
    checked,
)
from .firewall import Firewall
from .scrub import Scrub

Hook = Literal["auto", "xdp", "xdp-generic", "tc"]
Protocol = Literal["tcp", "udp"]
Mode = Literal["nat", "full-nat"]
Algorithm = Literal["maglev", "round-robin"]
Midstream = Literal["pick-up", "drop", "reset"]
WhenFull = Literal["drop", "stateless"]
Netfilter = Literal["honour", "bypass"]


class Interface(Model):
    """An interface that clearway takes packets from."""

    name: InterfaceName = Field(description="Name of the interface, as `ip link` shows it.")
    hook: Hook = Field(
        default="auto",
        description="Where packets are taken: `xdp` (in the driver), `xdp-generic` (above it, slow, for "
        "tests), `tc`, or `auto`: XDP where the driver and the ways out allow it, TC elsewhere.",
    )


class Endpoint(Model):
    """A server behind a service."""

    address: Address = Field(description="Address of the server, of the same family as the service.")
    port: Port = Field(description="Port of the server.")
    weight: int = Field(
        default=1,
        ge=0,
        le=65535,
        description="Share of new connections in proportion to the other endpoints' weights. 0: no new "
        "connections, those it has go on.",
    )
    drain: bool = Field(
        default=False,
        description="`true`: no new connections, those it has go on; the weight is kept for later.",
    )


class Service(Model):
    """An address and port that clients connect to, and the endpoints that answer."""

    name: Name = Field(description="Name of the service, for people and commands.")
    address: Address = Field(description="Address that clients connect to.")
    port: Port = Field(description="Port that clients connect to.")
    protocol: Protocol = Field(description="Protocol of the service.")
    mode: Mode = Field(
        default="nat",
        description="`nat` rewrites the destination: endpoints see the client's address and must send their"
        " answers back through this machine. `full-nat` rewrites the source too, to the address"
        " of the interface towards the endpoint: answers come back by themselves.",
    )
    algorithm: Algorithm = Field(
        default="maglev",
        description="How the endpoint of a new connection is chosen: `maglev` by consistent hash of the "
        "connection (every node chooses alike, few connections move when endpoints change), "
        "`round-robin` by turns. Both respect weights.",
    )
    maglev_size: MaglevSize = Field(
        default=65537,
        description="Slots of the Maglev wheel, a prime; unused by `round-robin`. At least 100 for each "
        "endpoint (with weights: 100 x all weights / the smallest weight) keep every share "
        "within 1 %; while there are at most sqrt(size) / 2 endpoints, one that goes moves less"
        " than twice its own share. The default serves 128 endpoints so, and 655 within 1 %, "
        "for 512 KiB. Nodes of one service must agree on it, and a change of it moves most "
        "connections that are not in the flow table: choose it once.",
    )
    ports: Ports | None = Field(
        default=None,
        description="Source ports towards the endpoints, `full-nat` only. Without it: the largest range "
        "within 1024-65535 that stays clear of the host's own local port range "
        "(`net.ipv4.ip_local_port_range`).",
    )
    netfilter: Netfilter = Field(
        default="honour",
        description="Linux' own rules (nftables, iptables) for what is forwarded: `honour` lets them decide"
        " about the service's traffic as if Linux carried it (what a rule may match that only Linux can"
        " follow is balanced by Linux), `bypass` does not ask them. A change is for new connections.",
    )
    endpoints: Several[Endpoint] = Field(
        default=(),
        description="The servers. None, or none that takes new connections: these are dropped and counted.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        return checked(self, checks.service_problems(self))


class Nat(Model):
    """Source NAT of what leaves through an interface. Exactly one of `masquerade` and `pool` is given."""

    name: Name = Field(description="Name of the rule, for people and commands.")
    source: Prefix = Field(
        description="Sources to translate: a prefix or an address. Of several rules, the longest prefix "
        "wins.",
    )
    interface: InterfaceName = Field(
        description="Interface that packets leave through, as the routing table names it.",
    )
    masquerade: bool = Field(
        default=False,
        description="`true`: translate to the primary address of the interface.",
    )
    pool: Pool | None = Field(
        default=None,
        description="Translate to these addresses: a prefix (all of its addresses), `first-last`, or a "
        "single one; at most 65536. They must be routed to this machine.",
    )
    ports: Ports | None = Field(
        default=None,
        description="Source ports to translate to. Without it: the largest range within 1024-65535 that "
        "stays clear of the host's own local port range (`net.ipv4.ip_local_port_range`).",
    )

    netfilter: Netfilter = Field(
        default="honour",
        description="Linux' own rules for what is forwarded: `honour` lets them decide about what is"
        " translated as if Linux did it, `bypass` does not ask them. A change is for new connections.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        return checked(self, checks.nat_problems(self))


class Timeouts(Model):
    """How long a flow is kept after its last packet, by protocol and state."""

    tcp_syn_sent: Duration = Field(
        default=120_000,
        description="Opened, not yet answered. Default of nf_conntrack: RFC 5382's four minutes would let "
        "floods of SYNs fill the table.",
    )
    tcp_syn_received: Duration = Field(
        default=60_000,
        description="Answered, not yet confirmed. Default of nf_conntrack, for the same reason.",
    )
    tcp_established: Duration = Field(
        default=7_440_000,
        description="Open in both directions. RFC 5382 (REQ-5) demands no less than 2 hours 4 minutes.",
    )
    tcp_half_closed: Duration = Field(
        default=240_000,
        description="One side has closed, the other may still send. RFC 5382 (REQ-5): no less than four "
        "minutes.",
    )
    tcp_time_wait: Duration = Field(
        default=120_000,
        description="Both sides have closed. Default of nf_conntrack, twice Linux' TIME-WAIT.",
    )
    tcp_closed: Duration = Field(default=10_000, description="Reset. Default of nf_conntrack.")
    udp: Duration = Field(
        default=30_000,
        description="One side has sent, the other has not answered. Default of nf_conntrack.",
    )
    udp_stream: Duration = Field(
        default=300_000,
        description="Both sides have sent. RFC 4787 (REQ-5) recommends five minutes.",
    )
    icmp: Duration = Field(
        default=60_000,
        description="Echo requests. RFC 5508 (REQ-1): no less than 60 seconds.",
    )


class Conntrack(Model):
    """The flow table."""

    max_flows: int = Field(
        default=65_536,
        ge=1024,
        le=67_108_864,
        description="Connections the flow table is made for, of each of IPv4 and IPv6; one in some thousands"
        " may find its places taken before, and others find some beyond. Memory for them is taken at once."
        " It can be changed while connections are open: they move to a table of the new size, which has to"
        " have room for them.",
    )
    timeouts: Timeouts = Field(
        default=Timeouts(),
        description="Idle timeouts: `2h`, `1h30m`, `60s`, `500ms`, or a number of seconds.",
    )
    midstream: Midstream = Field(
        default="pick-up",
        description="TCP to a service, or that a NAT rule claims, without a flow and without SYN, as after "
        "a restart of the machine: `pick-up` (Maglev leads it to the endpoint that has it; source NAT "
        "translates it anew), `drop`, or `reset` (answer with RST).",
    )
    when_full: WhenFull = Field(
        default="drop",
        description="What becomes of a new connection when the table is full and nothing in it may make way"
        " (expired, closed, half-open or unanswered, or not TCP and idle for a second): `drop`, or"
        " `stateless`: services of mode `nat` with `maglev` whose endpoints serve no other service go on"
        " balancing without an entry. Needs `midstream: pick-up`.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        return checked(self, checks.conntrack_problems(self))


class Limits(Model):
    """Sizes of the tables. They take effect when the data path is loaded: `clearway down`, `clearway run`."""

    services: int = Field(default=256, ge=1, le=1_048_576, description="Services.")
    endpoints: int = Field(
        default=4096,
        ge=1,
        le=4_194_304,
        description="Endpoints of all services. Those that go keep their place until those that come have "
        "theirs: leave room for as many as are exchanged at once.",
    )
    nats: int = Field(default=256, ge=1, le=65_535, description="NAT rules.")
    rules: int = Field(
        default=2048,
        ge=1,
        le=1_048_576,
        description="Firewall rules, those that go and those that come together. Each takes 40 bytes and"
        " 24 more a CPU.",
    )
    wheel_slots: int = Field(
        default=2_097_152,
        ge=2,
        le=268_435_456,
        description="Slots of all wheels: twice what the services need, because a new wheel is complete "
        "before the old one is given up. 8 bytes each; the default, 16 MiB, serves 15 services "
        "of the default `maglev_size`.",
    )


class Config(Model):
    """A whole configuration."""

    interfaces: Several[Interface] = Field(
        default=(),
        description="Interfaces that clearway takes packets from. List every interface that requests or "
        "replies come in by: those towards clients, those towards endpoints, and those that NAT sends out "
        "by.",
    )
    services: Several[Service] = Field(default=(), description="Load-balanced services.")
    nat: Several[Nat] = Field(default=(), description="Source NAT rules.")
    firewall: Firewall | None = Field(default=None, description="The firewall. Without it nothing is judged.")
    scrub: Scrub | None = Field(
        default=None,
        description="The first line of defence. Without it nothing is turned away by its source.",
    )
    conntrack: Conntrack = Field(default=Conntrack(), description="The flow table and its timeouts.")
    limits: Limits = Field(default=Limits(), description="Sizes of the tables.")

    _origin: Origin = PrivateAttr(default_factory=lambda: Origin("configuration", {}))

    @property
    def origin(self) -> Origin:
        """Where it was read from; errors found later use its line numbers."""
        return self._origin

    def read_from(self, origin: Origin) -> Self:
        """The same configuration, with its origin."""
        copy = self.model_copy()
        copy._origin = origin
        return copy

    @model_validator(mode="after")
    def _check(self) -> Self:
        return checked(self, checks.config_problems(self))
