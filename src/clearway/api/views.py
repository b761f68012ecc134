# SPDX-License-Identifier: Apache-2.0
"""What the API answers with. What it is asked with are the models of the configuration (clearway.model).

Plain dataclasses: the server turns them into JSON and OpenAPI, and the command line reads them back without
importing a validation library. Numbers are plain: packets, bytes, seconds; times are seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConfigView:
    """Where the configuration in force comes from."""

    file: str
    file_sha256: str  # of the file as it was last taken
    changed_by_api: bool  # what is in force differs from the file
    refused: str | None  # why the file's newest content was not taken


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """The last ageing run."""

    connections: int  # looked at
    expired: int
    seconds: float
    ago: float  # seconds


@dataclass(frozen=True, kw_only=True)
class StatusView:
    """How the daemon and its data path are."""

    instance: str
    version: str
    pid: int
    uptime: float  # seconds
    kernel: str
    network_namespace: int
    adopted: bool  # the data path was running already when the daemon started
    kernel_context: bool  # routes and rules are checked by the data path itself
    epoch: int
    mirror: int
    config: ConfigView
    interfaces: int  # attached
    services: int
    endpoints: int
    nat: int
    rules: int | None  # of the firewall; None: there is none
    max_flows: int  # of each family
    sweep: SweepView | None
    ended: dict[str, int]  # connections that have left the flow table, by why
    lost_records: int  # ends that nobody who follows them was told of
    lost_events: int  # decisions of the firewall that nobody who follows them was told of
    unaccounted_packets: int  # carried around Linux' rules, and in no account of them
    received_packets: int
    received_bytes: int
    waiting: list[str]  # a sentence for each thing that is configured and not in force yet
    warnings: list[str]  # a sentence for what is in force and probably not meant
    adoption: AdoptionView
    listened: list[str]  # "lan: tcpdump (123)" for each packet socket, and whether it sees TC instead of XDP
    settings: list[SettingView]  # of the network namespace, changed while the data path is there


@dataclass(frozen=True, kw_only=True)
class AdoptionView:
    """Under what connections of Linux are carried."""

    possible: bool  # on this kernel
    generation: int | None  # of nftables' ruleset that was proved; None: none is
    rules: int
    keeping: int  # of these, rules that keep connections in Linux
    seconds: float  # that reading and proving took
    why: str  # why nothing is adopted; "" if it is
    honoured: str  # what Linux' rules are to services and NAT; "" if none of these honours them


@dataclass(frozen=True, kw_only=True)
class SettingView:
    name: str  # as sysctl has it
    before: str
    now: str


@dataclass(frozen=True, kw_only=True)
class ServiceView:
    name: str
    address: str
    port: int
    protocol: str
    mode: str
    algorithm: str
    endpoints: int
    taking: int  # endpoints that take new connections
    flows: int  # connections in the flow table
    opened: int  # connections opened since the endpoints came
    packets: int  # of the connections in the flow table, both directions
    bytes: int


@dataclass(frozen=True, kw_only=True)
class EndpointView:
    service: str
    endpoint: str  # address:port, as commands take it
    address: str
    port: int
    weight: int
    state: str  # active | draining | idle (weight 0)
    share: float  # of the service's new connections, 0..1
    flows: int
    opened: int
    packets: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class NatView:
    name: str
    source: str
    interface: str
    to: str  # "masquerade", or the pool
    ports: str
    state: str  # active | waiting (for the interface)
    flows: int
    packets: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class RuleView:
    """A rule of the firewall; or its default, which has no name."""

    number: int  # from 1 on, in the order in which they are asked
    name: str
    action: str
    log: bool
    asks: str  # for what, in the words of the configuration; "" everything
    hits: int  # packets that it has decided about: first ones of connections, and those that it refused
    bytes: int
    last: float | None  # seconds since the epoch


@dataclass(frozen=True, kw_only=True)
class ListView:
    """A list of prefixes."""

    name: str
    kind: str  # block | allow
    file: str | None  # None: its prefixes stand in the configuration
    ipv4: int | None  # entries; None: its file could not be read since the daemon has started
    ipv6: int | None
    packets: int  # that it has decided about
    bytes: int


@dataclass(frozen=True, kw_only=True)
class InterfaceView:
    name: str
    ifindex: int  # 0: there is no such interface
    asked: str  # hook as configured
    hook: str  # in force; "" none
    mechanism: str  # link | tcx | clsact
    driver: str
    state: str  # attached | absent | failed
    reason: str  # why this hook, or why none


@dataclass(frozen=True, kw_only=True)
class ReasonView:
    reason: str
    verdict: str  # forward | answer | punt | drop
    packets: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Services:
    services: list[ServiceView]


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    endpoints: list[EndpointView]


@dataclass(frozen=True, kw_only=True)
class Nats:
    nat: list[NatView]


@dataclass(frozen=True, kw_only=True)
class Rules:
    rules: list[RuleView]


@dataclass(frozen=True, kw_only=True)
class Lists:
    lists: list[ListView]


@dataclass(frozen=True, kw_only=True)
class LinuxCounterView:
    """What a rule of Linux, a policy or a named counter has counted, with what was carried around it."""

    kind: str  # rule | policy | counter
    family: str  # nft's word
    table: str
    chain: str  # "" for a counter with a name
    handle: int  # nft's: of the rule, the chain or the counter
    rule: str  # its text
    packets: int
    bytes: int  # of layer 3, as Linux counts
    carried_packets: int  # of these, what Linux has not seen
    carried_bytes: int


@dataclass(frozen=True, kw_only=True)
class LinuxCounterViews:
    linux: list[LinuxCounterView]
    why: str  # they cannot be read; "" if they can


@dataclass(frozen=True, kw_only=True)
class FirewallQuestion:
    """A packet that opens a connection; what is not said is found out, as far as that goes."""

    packet: str
    interface_in: str | None = None
    interface_out: str | None = None
    direction: str | None = None  # through | local
    tcp_flags: str | None = None
    dscp: str | None = None
    vlan: int = 0
    translated: str | None = None  # the packet as it leaves


@dataclass(frozen=True, kw_only=True)
class RefutedView:
    rule: str
    why: str


@dataclass(frozen=True, kw_only=True)
class FirewallDecision:
    number: int  # of the rule, from 1 on
    rule: str  # "" the default
    action: str
    log: bool
    asks: str  # what the rule asks for
    local: bool  # the packet is for this machine
    interface_out: str | None
    before: list[RefutedView]  # the rules before it, and why they do not decide


@dataclass(frozen=True, kw_only=True)
class Interfaces:
    interfaces: list[InterfaceView]


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """Every packet ends under exactly one reason: the reasons add up to what was received."""

    reasons: list[ReasonView]
    received_packets: int
    received_bytes: int
    accounted_packets: int
    accounted_bytes: int


@dataclass(frozen=True, kw_only=True)
class FlowView:
    """A connection. Addresses as the client sends them, then as they leave."""

    owner: str  # clearway | linux: learned from its conntrack; bytes are those of layer 3 then
    family: int
    protocol: str
    state: str
    client: str
    client_port: int
    destination: str
    destination_port: int
    source_out: str
    source_out_port: int
    destination_out: str
    destination_out_port: int
    service: str | None
    endpoint: str | None
    nat: str | None
    packets: int
    bytes: int
    reply_packets: int
    reply_bytes: int
    age: float  # seconds
    idle: float  # seconds


@dataclass(frozen=True, kw_only=True)
class FlowFilter:
    """Which connections, and how many at most (None: all). Every condition that is given must hold."""

    service: str | None = None
    endpoint: str | None = None  # address, or address:port
    nat: str | None = None
    address: str | None = None  # an address or a prefix, on either side
    protocol: str | None = None
    state: str | None = None
    owner: str | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class FlowQuestion:
    """A connection, as `clearway explain flow` is asked for it. Either direction will do."""

    source: str  # address:port
    destination: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class DirectionView:
    """One direction of a connection: what its packets come in and leave as, and whether Linux keeps it. No
    interface: there it is this machine's own, or no route leads there.
    """

    direction: str  # original | reply
    arrives: str
    leaves: str
    interface_in: str | None
    interface_out: str | None
    carried: bool  # by the fast path, now
    kept: bool
    why: str  # it is kept
    rule: str | None  # that keeps it: family, table, chain, place and text


@dataclass(frozen=True, kw_only=True)
class FlowExplanation:
    """`owner`: clearway | linux | none: nobody knows the connection | blocklist: its packets are dropped.
    `carried`: by the fast path, now, both directions.
    """

    owner: str
    carried: bool
    can_be: bool  # carried by the fast path in both directions, as rules and interfaces are now
    why: str
    directions: list[DirectionView]


@dataclass(frozen=True, kw_only=True)
class LinuxRuleView:
    """A rule of nftables or iptables. `kind`: flow-invariant | restorable | opaque | not on the path."""

    rule: str
    kind: str
    why: str
    keeps: bool  # connections in Linux
    keeps_all: bool  # of its family


@dataclass(frozen=True, kw_only=True)
class LinuxRules:
    generation: int
    rules: list[LinuxRuleView]
    others: list[str]  # a sentence for what else keeps connections in Linux


@dataclass(frozen=True, kw_only=True)
class ErrorView:
    message: str
    path: str | None = None
    line: int | None = None
    what: str | None = None
    fix: str | None = None


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The one form that every refusal has."""

    errors: list[ErrorView]
