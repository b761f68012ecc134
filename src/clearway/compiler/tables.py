# SPDX-License-Identifier: Apache-2.0
"""The rows of the data path's configuration tables (bpf/types.h), as immutable values without a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from clearway.model import (
    Action,
    AddressRange,
    Algorithm,
    Firewall,
    IPAddress,
    IPNetwork,
    Midstream,
    Mode,
    PortRange,
    Protocol,
    Timeouts,
    WhenFull,
)

from .classifier import Classifier
from .prefix_index import PrefixImage

EPOCH_MAX = 0xFFFF_FFFF

ServiceIdentity = tuple[IPAddress, int, Protocol]
EndpointIdentity = tuple[ServiceIdentity, IPAddress, int]
NatIdentity = tuple[IPNetwork, int]


@dataclass(frozen=True, slots=True)
class Wheel:
    """Slot -> endpoint id. Compares by content."""

    slots: NDArray[np.uint32] = field(compare=False, repr=False)
    digest: bytes
    """Of the slots; stands for them in comparisons."""
    recipe: bytes = field(default=b"", compare=False, repr=False)
    """Digest of what the wheel was made from; empty if unknown, as of a wheel that was read back."""

    @classmethod
    def of(cls, slots: NDArray[np.uint32], recipe: bytes = b"") -> Wheel:
        own = np.array(slots, dtype="<u4")
        own.setflags(write=False)
        return cls(own, blake2b(own.tobytes(), digest_size=16).digest(), recipe)

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class Area:
    """Slots base .. base + size - 1 of the wheel table."""

    base: int
    size: int

    @property
    def end(self) -> int:
        return self.base + self.size


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A row of service_v2, and the wheel it points to."""

    id: int
    address: IPAddress
    port: int
    protocol: Protocol
    mode: Mode
    algorithm: Algorithm
    ports: PortRange | None
    """Source ports towards the endpoints; None for mode nat."""
    wheel_base: int
    wheel: Wheel
    bypass: bool = False
    """Linux' rules are not asked."""

    @property
    def identity(self) -> ServiceIdentity:
        return (self.address, self.port, self.protocol)

    @property
    def area(self) -> Area:
        return Area(self.wheel_base, len(self.wheel))


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """A row of endpoint_v1 that is in use."""

    id: int
    service: int
    address: IPAddress
    port: int
    draining: bool


@dataclass(frozen=True, slots=True)
class NatRow:
    """A row of nat_v2."""

    id: int
    source: IPNetwork
    ifindex: int
    pool: AddressRange | None
    """None: masquerade."""
    ports: PortRange
    bypass: bool = False

    @property
    def identity(self) -> NatIdentity:
        return (self.source, self.ifindex)


Place = tuple[bool, int]
"""Of a classifier: is it of rules that see what is translated; family. Of prefixes: are they of allowlists;
family.
"""


ACTIONS: tuple[Action, ...] = ("accept", "drop", "reject")
"""enum firewall_action."""
RULE_COUNTER, RULE_ACTION_SHIFT, RULE_LOG = 0xFF_FFFF, 24, 1 << 31
"""Of the word that tells what a rule does (bpf/types.h)."""


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A row of rule_v1. `identity` is made of the rule's name."""

    identity: int
    counter: int
    action: Action
    log: bool

    @property
    def word(self) -> int:
        return self.counter | ACTIONS.index(self.action) << RULE_ACTION_SHIFT | self.log * RULE_LOG

    @classmethod
    def from_word(cls, word: int, identities: Sequence[int]) -> RuleRow:
        """identities: by counter."""
        counter, action = word & RULE_COUNTER, ACTIONS[word >> RULE_ACTION_SHIFT & 0xF]
        return cls(int(identities[counter]), counter, action, bool(word & RULE_LOG))


@dataclass(frozen=True)
class FirewallTables:
    """A firewall as the data path has it: `rules` in their order, and behind them what becomes of the rest.

    Compares by content. `digest` stands for what the classifiers were made of.
    """

    digest: bytes
    rules: tuple[RuleRow, ...]
    after: bool
    """There are rules that see what is translated."""
    classifiers: Mapping[Place, Classifier] | None = field(default=None, compare=False, repr=False)
    """None: read back."""
    source: tuple[Firewall, Mapping[str, int]] | None = field(default=None, compare=False, repr=False)
    """What it was compiled from, and the interfaces that it names."""

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in (self.classifiers or {}).values())

    @property
    def counters(self) -> dict[int, int]:
        """By identity."""
        return {row.identity: row.counter for row in self.rules}


@dataclass(frozen=True)
class ScrubTables:
    """Lists of prefixes as the data path has them. Compares by content: `digest` stands for the images."""

    digest: bytes
    numbers: Mapping[int, int]
    """Of each list, by what its name is made into."""
    images: Mapping[Place, PrefixImage | None] | None = field(default=None, compare=False, repr=False)
    """By kind (is it of allowlists) and family; None: there are no such entries. None: read back."""

    @property
    def bytes(self) -> int:
        return sum(image.bytes for image in (self.images or {}).values() if image is not None)


@dataclass(frozen=True)
class Tables:
    """Everything that one epoch of the configuration puts into tables. Compares by content, not by epoch.

    Rows are in the order of their ids.
    """

    epoch: int = field(default=0, compare=False)
    """Which epoch these rows are of, or will be of; 0: a data path that was never configured."""
    services: tuple[ServiceRow, ...] = ()
    endpoints: tuple[EndpointRow, ...] = ()
    nats: tuple[NatRow, ...] = ()
    firewall: FirewallTables | None = None
    scrub: ScrubTables | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    midstream: Midstream = "pick-up"
    when_full: WhenFull = "drop"
    next_endpoint: int = field(default=0, compare=False)
    """The id from which on one is looked for that is free; and of NAT rules and of the firewall's."""
    next_nat: int = field(default=0, compare=False)
    next_rule: int = field(default=0, compare=False)

    @cached_property
    def origins(self) -> dict[tuple[IPAddress, int, Protocol], ServiceRow]:
        """By endpoint the service it answers for, of services whose connections can do without an entry:
        every packet finds its endpoint by Maglev, and its answer the service, as the endpoint has no other.
        """
        if self.when_full != "stateless":
            return {}
        services = {row.id: row for row in self.services}
        served: dict[tuple[IPAddress, int, Protocol], set[int]] = {}
        for row in self.endpoints:
            if row.service in services:
                key = (row.address, row.port, services[row.service].protocol)
                served.setdefault(key, set()).add(row.service)
        ambiguous = {service for ids in served.values() if len(ids) > 1 for service in ids}
        able = {
            row.id
            for row in self.services
            if row.mode == "nat" and row.algorithm == "maglev" and row.id not in ambiguous
        }
        return {key: services[one] for key, ids in served.items() for one in ids if one in able}

    @property
    def next_epoch(self) -> int:
        """The epoch after this one: never 0, and of the other parity, because config_v4 has two rows."""
        return self.epoch + 1 if self.epoch < EPOCH_MAX else 2

    @cached_property
    def service_by_identity(self) -> dict[ServiceIdentity, ServiceRow]:
        return {row.identity: row for row in self.services}

    @cached_property
    def endpoint_by_identity(self) -> dict[EndpointIdentity, EndpointRow]:
        """Endpoints by what they are; rows of a service that is not there are left out."""
        services = {row.id: row.identity for row in self.services}
        return {
            (services[row.service], row.address, row.port): row
            for row in self.endpoints
            if row.service in services
        }

    @cached_property
    def nat_by_identity(self) -> dict[NatIdentity, NatRow]:
        return {row.identity: row for row in self.nats}

    def service_id(self, address: IPAddress, port: int, protocol: Protocol) -> int | None:
        row = self.service_by_identity.get((address, port, protocol))
        return None if row is None else row.id
