# SPDX-License-Identifier: Apache-2.0
"""Names of what connections belong to, kept for those that end after it was removed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from clearway.compiler import Tables, identity_of
from clearway.daemon.rows import PROTOCOLS
from clearway.model import Config, Service

ServiceKey = tuple[int, bytes, int, int]
"""Family, address (16 bytes, IPv4 in the first four), port, protocol's number: as a connection tells it."""

Key = TypeVar("Key")

KEPT = 1 << 16
"""Names of things that are gone, of each kind: their connections end within a sweep, or have NAT rules' ids,
of which there are no more.
"""


@dataclass(frozen=True)
class PastNames:
    """Of all that has been in force since the daemon started. NAT rules by id: these go round."""

    services: Mapping[ServiceKey, str] = field(default_factory=dict)
    nats: Mapping[int, str] = field(default_factory=dict)
    rules: Mapping[int, str] = field(default_factory=dict)
    """Of the firewall, by identity."""

    def then(self, config: Config, tables: Tables, ifindexes: Mapping[str, int]) -> PastNames:
        """With what is in force from now on: the rows of `tables`, compiled from `config`."""
        identities = {rule.name: (rule.source, ifindexes.get(rule.interface, 0)) for rule in config.nat}
        rules = {name: tables.nat_by_identity.get(identity) for name, identity in identities.items()}
        return PastNames(
            services=_then(self.services, {_key(service): service.name for service in config.services}),
            nats=_then(self.nats, {row.id: name for name, row in rules.items() if row}),
            rules=_then(self.rules, _rules(config)),
        )


def _rules(config: Config) -> dict[int, str]:
    names = ("", *(rule.name for rule in config.firewall.rules)) if config.firewall else ()
    return {identity_of(name): name for name in names}


def _key(service: Service) -> ServiceKey:
    address = service.address
    return (address.version, address.packed.ljust(16, b"\0"), service.port, PROTOCOLS[service.protocol])


def _then(before: Mapping[Key, str], now: Mapping[Key, str]) -> dict[Key, str]:
    """Both, the oldest forgotten."""
    gone = {key: name for key, name in before.items() if key not in now}
    return {**dict(islice(gone.items(), max(0, len(gone) - KEPT), None)), **now}
