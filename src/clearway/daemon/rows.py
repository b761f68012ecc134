# SPDX-License-Identifier: Apache-2.0
"""Rows as compiled <-> rows as tables hold them (bpf/types.h), by the dtypes and enums of what is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from clearway.compiler import (
    EndpointRow,
    FirewallTables,
    NatRow,
    RuleRow,
    ScrubTables,
    ServiceRow,
    Tables,
    Wheel,
)
from clearway.model import (
    AddressRange,
    Algorithm,
    IPAddress,
    Midstream,
    Mode,
    PortRange,
    Timeouts,
    WhenFull,
)
from clearway.model import Protocol as L4Protocol

Array = npt.NDArray[Any]
Names = Mapping[str, int]

PROTOCOLS: Mapping[L4Protocol, int] = {"tcp": 6, "udp": 17}
"""IANA protocol numbers."""


PLACES = [(after, family) for after in (False, True) for family in (4, 6)]
"""Of a firewall's classifiers."""


def place_of(epoch: int, after: bool, family: int) -> int:
    """A place of classifier_v3 (bpf/firewall.h, firewall_place)."""
    return (epoch & 1) << 2 | after << 1 | (family == 6)


def prefix_place(epoch: int, allow: bool, family: int) -> int:
    """A place of prefixes_v1 (bpf/scrub.h, scrub_place)."""
    return (epoch & 1) << 2 | allow << 1 | (family == 6)


class Table(Protocol):
    """What is needed of a table of the data path."""

    @property
    def key_dtype(self) -> np.dtype[Any]: ...
    @property
    def max_entries(self) -> int: ...
    def rows(self, count: int) -> tuple[Array, Array]: ...
    def items(self) -> tuple[Array, Array]: ...
    def lookup(self, keys: npt.ArrayLike) -> tuple[Array, Array]: ...
    def update(self, keys: npt.ArrayLike, values: npt.ArrayLike, create_only: bool = False) -> None: ...
    def delete(self, keys: npt.ArrayLike) -> int: ...


def endpoint_rows(table: Table, states: Names, endpoints: Sequence[EndpointRow]) -> tuple[Array, Array]:
    """Rows of endpoint_v1."""
    keys, values = table.rows(len(endpoints))
    for number, endpoint in enumerate(endpoints):
        keys[number] = endpoint.id
        value = values[number]
        value["address"] = _address_bytes(endpoint.address)
        value["port"] = endpoint.port
        value["family"] = endpoint.address.version
        value["state"] = states["ENDPOINT_DRAINING" if endpoint.draining else "ENDPOINT_ACTIVE"]
        value["service"] = endpoint.service
    return keys, values


def service_rows(table: Table, modes: Names, algorithms: Names, tables: Tables) -> tuple[Array, Array]:
    """Rows of service_v2 of one epoch."""
    keys, values = table.rows(len(tables.services))
    stateless = {service.id for service in tables.origins.values()}
    for key, value, service in zip(keys, values, tables.services, strict=True):
        key["epoch"] = tables.epoch
        key["port"] = service.port
        key["proto"] = PROTOCOLS[service.protocol]
        key["family"] = service.address.version
        key["address"] = _address_bytes(service.address)
        value["id"] = service.id
        value["wheel_base"] = service.wheel_base
        value["wheel_slots"] = len(service.wheel)
        if service.ports is not None:
            value["port_min"], value["port_max"] = service.ports.first, service.ports.last
        value["mode"] = modes[_constant("MODE", service.mode)]
        value["algorithm"] = algorithms[_constant("ALGORITHM", service.algorithm)]
        value["stateless"] = service.id in stateless
        value["bypass"] = service.bypass
    return keys, values


def origin_rows(table: Table, tables: Tables) -> tuple[Array, Array]:
    """Rows of origin_v2 of one epoch."""
    keys, values = table.rows(len(tables.origins))
    for key, value, ((address, port, protocol), service) in zip(
        keys, values, tables.origins.items(), strict=True
    ):
        key["epoch"] = tables.epoch
        key["port"] = port
        key["proto"] = PROTOCOLS[protocol]
        key["family"] = address.version
        key["address"] = _address_bytes(address)
        value["address"] = _address_bytes(service.address)
        value["port"] = service.port
        value["bypass"] = service.bypass
    return keys, values


def claim_rows(table: Table, tables: Tables) -> tuple[Array, Array]:
    """Rows of claim_v1: the addresses that services translate from and to."""
    addresses = {row.address for row in tables.services} | {row.address for row in tables.endpoints}
    keys, values = table.rows(len(addresses))
    for key, address in zip(keys, addresses, strict=True):
        key["epoch"] = tables.epoch
        key["family"] = address.version
        key["address"] = _address_bytes(address)
    values[:] = 1
    return keys, values


def nat_rows(table: Table, nats: Sequence[NatRow], epoch: int) -> tuple[Array, Array]:
    """Rows of nat_v2 of one epoch."""
    keys, values = table.rows(len(nats))
    for key, value, nat in zip(keys, values, nats, strict=True):
        key["prefixlen"] = _fixed_bits(table) + nat.source.prefixlen
        key["epoch"] = epoch
        key["ifindex"] = nat.ifindex
        key["family"] = nat.source.version
        key["source"] = _address_bytes(nat.source.network_address)
        value["id"] = nat.id
        value["port_min"], value["port_max"] = nat.ports.first, nat.ports.last
        value["bypass"] = nat.bypass
        if nat.pool is not None:
            value["addresses"] = nat.pool.count
            value["first"] = _address_bytes(nat.pool.first)
    return keys, values


def first_rule(table: Table, epoch: int) -> int:
    """Where the rules of an epoch begin in rule_v1: there is room for those of two."""
    return (epoch & 1) * (table.max_entries // 2)


def rule_rows(table: Table, firewall: FirewallTables, epoch: int) -> tuple[Array, Array]:
    """Rows of rule_v1 of one epoch."""
    keys, values = table.rows(len(firewall.rules))
    begin = first_rule(table, epoch)
    keys[:] = np.arange(begin, begin + len(keys))
    values[:] = [rule.word for rule in firewall.rules]
    return keys, values


def read_firewall(config: Array, words: Array, identities: Array, flags: Names) -> FirewallTables:
    """The rules in force, from a row of config_v4, those of rule_v1, and who has each counter."""
    named = identities.tolist()
    return FirewallTables(
        digest=config["firewall_digest"].tobytes(),
        rules=tuple(RuleRow.from_word(word, named) for word in words.tolist()),
        after=bool(int(config["firewall"]) & flags["FIREWALL_AFTER"]),
    )


def first_list(table: Table, epoch: int) -> int:
    """Where the lists of an epoch begin in list_v1: there is room for those of two."""
    return (epoch & 1) * (table.max_entries // 2)


def list_rows(table: Table, scrub: ScrubTables, epoch: int) -> tuple[Array, Array]:
    """Rows of list_v1 of one epoch: who has each number, 0: nobody."""
    size = table.max_entries // 2
    keys, values = table.rows(size)
    keys[:] = first_list(table, epoch) + np.arange(size)
    for identity, number in scrub.numbers.items():
        values[number] = identity
    return keys, values


def read_scrub(config: Array, identities: Array) -> ScrubTables | None:
    """The lists in force, from a row of config_v4 and those of list_v1."""
    if not int(config["scrub"]):
        return None
    numbers = {identity: number for number, identity in enumerate(identities.tolist()) if identity}
    return ScrubTables(config["scrub_digest"].tobytes(), numbers)


def config_row(
    table: Table, enum: Callable[[str], Names], tables: Tables, counters: int
) -> tuple[Array, Array]:
    """The row of config_v4 for an epoch. enum: numbers by constant of an enum of bpf/types.h."""
    keys, values = table.rows(1)
    keys[0] = tables.epoch & 1
    value = values[0]
    value["epoch"] = tables.epoch
    value["services"] = len(tables.services)
    value["nats"] = len(tables.nats)
    value["origins"] = len(tables.origins)
    value["next_endpoint"], value["next_nat"] = tables.next_endpoint, tables.next_nat
    value["next_rule"] = tables.next_rule
    if tables.firewall is not None:
        flags = enum("firewall")
        value["firewall"] = flags["FIREWALL_ON"] | (flags["FIREWALL_AFTER"] if tables.firewall.after else 0)
        value["otherwise"] = tables.firewall.rules[-1].word
        value["rules"] = len(tables.firewall.rules)
        value["counters"] = counters
        value["firewall_digest"] = np.frombuffer(tables.firewall.digest, np.uint8)
    if tables.scrub is not None:
        value["scrub"] = 1
        value["scrub_digest"] = np.frombuffer(tables.scrub.digest, np.uint8)
    value["when_full"] = enum("when_full")[_constant("WHEN_FULL", tables.when_full)]
    value["midstream"] = enum("midstream")[_constant("MIDSTREAM", tables.midstream)]
    for name in Timeouts.model_fields:
        value["timeout_ms"][enum("timeout")[_constant("TIMEOUT", name)]] = getattr(tables.timeouts, name)
    return keys, values


def read_endpoint(number: int, value: Array, states: Names) -> EndpointRow:
    """One row of endpoint_v1 that is not free."""
    return EndpointRow(
        id=number,
        service=int(value["service"]),
        address=_address(value["address"], int(value["family"])),
        port=int(value["port"]),
        draining=int(value["state"]) == states["ENDPOINT_DRAINING"],
    )


def read_service(key: Array, value: Array, wheel: Wheel, modes: Names, algorithms: Names) -> ServiceRow:
    """One row of service_v2."""
    mode = cast(Mode, _word("MODE", modes, int(value["mode"])))
    return ServiceRow(
        id=int(value["id"]),
        address=_address(key["address"], int(key["family"])),
        port=int(key["port"]),
        protocol=next(name for name, number in PROTOCOLS.items() if number == int(key["proto"])),
        mode=mode,
        algorithm=cast(Algorithm, _word("ALGORITHM", algorithms, int(value["algorithm"]))),
        ports=PortRange(int(value["port_min"]), int(value["port_max"])) if mode == "full-nat" else None,
        wheel_base=int(value["wheel_base"]),
        wheel=wheel,
        bypass=bool(value["bypass"]),
    )


def read_nat(table: Table, key: Array, value: Array) -> NatRow:
    """One row of nat_v2."""
    family = int(key["family"])
    address = _address(key["source"], family)
    count = int(value["addresses"])
    return NatRow(
        id=int(value["id"]),
        source=ip_network((address, int(key["prefixlen"]) - _fixed_bits(table))),
        ifindex=int(key["ifindex"]),
        pool=AddressRange(_address(value["first"], family), count) if count else None,
        ports=PortRange(int(value["port_min"]), int(value["port_max"])),
        bypass=bool(value["bypass"]),
    )


def read_timeouts(value: Array, timeouts: Names) -> Timeouts:
    """The timeouts in a row of config_v4. Taken as they are: whoever wrote them has checked them."""
    stored = {
        name: int(value["timeout_ms"][timeouts[_constant("TIMEOUT", name)]]) for name in Timeouts.model_fields
    }
    return Timeouts.model_construct(None, **stored)


def read_midstream(value: Array, midstreams: Names) -> Midstream:
    return cast(Midstream, _word("MIDSTREAM", midstreams, int(value["midstream"])))


def read_when_full(value: Array, when_full: Names) -> WhenFull:
    return cast(WhenFull, _word("WHEN_FULL", when_full, int(value["when_full"])))


def _fixed_bits(table: Table) -> int:
    """NAT_KEY_FIXED_BITS: what of nat_key comes between the prefix length and the source."""
    fields = table.key_dtype.fields
    assert fields is not None
    return 8 * (fields["source"][1] - fields["epoch"][1])


def _constant(prefix: str, word: str) -> str:
    """The constant of a word: MODE, full-nat -> MODE_FULL_NAT."""
    return f"{prefix}_{word.upper().replace('-', '_')}"


def _word(prefix: str, names: Names, number: int) -> str:
    """The word of a number: MODE, the number of MODE_FULL_NAT -> full-nat."""
    name = next(name for name, value in names.items() if value == number)
    return name.removeprefix(f"{prefix}_").lower().replace("_", "-")


def _address_bytes(address: IPAddress) -> Array:
    """A union addr: an IPv4 address stands in the first four bytes."""
    return np.frombuffer(address.packed.ljust(16, b"\0"), np.uint8)


def _address(octets: Array, family: int) -> IPAddress:
    data = octets.tobytes()
    return IPv4Address(data[:4]) if family == 4 else IPv6Address(data)
