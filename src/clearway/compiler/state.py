# SPDX-License-Identifier: Apache-2.0
"""What is configured, as items to compare and to show: from a configuration, or from rows read back.

Fields are text, because a plan only shows them. Only states of the same kind are compared: a configuration
says weights and names, rows say shares and ids.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clearway.model import (
    Config,
    Endpoint,
    Firewall,
    FirewallRule,
    Nat,
    Prefixes,
    PrefixList,
    Scrub,
    Service,
    Timeouts,
    format_duration,
    host_port,
)
from clearway.model.fields import Model
from clearway.model.firewall_values import Members, dscp_texts, protocol_texts, texts

from .facts import HostFacts, TableSizes
from .tables import EndpointRow, FirewallTables, NatRow, ScrubTables, ServiceIdentity, ServiceRow, Tables

Kind = Literal[
    "service",
    "endpoint",
    "nat",
    "firewall",
    "rule",
    "set",
    "scrub",
    "blocklist",
    "allowlist",
    "interface",
    "timeout",
    "conntrack",
    "limit",
]


ASKED = {
    name: field.default
    for name, field in FirewallRule.model_fields.items()
    if name not in ("name", "action", "log")
}
"""What a rule can ask for, and what it does if nobody says so."""
WRITTEN = {"protocol": protocol_texts, "dscp": dscp_texts}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is configured. `key` is what makes it the same thing before and after a change."""

    kind: Kind
    key: Hashable
    name: str
    title: str
    """How a person recognizes it, as in "web 203.0.113.10:80/tcp"."""
    summary: str
    """What is said of it when it comes, after the title."""
    fields: Mapping[str, str]
    children: tuple[Item, ...] = ()
    members: Members = ()
    """Of a set."""


def state_of_config(config: Config) -> tuple[Item, ...]:
    """Everything a configuration asks for, but for the sizes of tables."""
    return (
        *(
            Item("interface", i.name, i.name, i.name, f"hook {i.hook}", {"hook": i.hook})
            for i in config.interfaces
        ),
        *map(_service, config.services),
        *map(_nat, config.nat),
        *(_firewall(config.firewall) if config.firewall else ()),
        *(_scrub(config.scrub) if config.scrub else ()),
        *_conntrack(config.conntrack.timeouts, config.conntrack.midstream, config.conntrack.when_full),
    )


def state_of_tables(tables: Tables, config: Config, facts: HostFacts) -> tuple[Item, ...]:
    """What rows say. Names come from the configuration where it has the same thing, else there are none."""
    names = {(s.address, s.port, s.protocol): s.name for s in config.services}
    rules = {(nat.source, facts.interfaces.get(nat.interface)): nat.name for nat in config.nat}
    interfaces = {index: name for name, index in facts.interfaces.items()}
    endpoints: dict[int, list[EndpointRow]] = {row.id: [] for row in tables.services}
    for row in tables.endpoints:
        endpoints.setdefault(row.service, []).append(row)
    return (
        *(_service_of_row(row, names, endpoints[row.id]) for row in tables.services),
        *(_nat_of_row(row, rules.get(row.identity, ""), interfaces) for row in tables.nats),
        *([_firewall_of_tables(tables.firewall)] if tables.firewall else ()),
        *([_scrub_of_tables(tables.scrub)] if tables.scrub else ()),
        *_conntrack(tables.timeouts, tables.midstream, tables.when_full),
    )


def sizes_of(config: Config, running: TableSizes | None = None) -> tuple[Item, ...]:
    """Sizes of tables, which only loading the data path changes: as it was loaded, or as configured."""
    limits = running or config.limits
    sizes = {
        "conntrack.max_flows": (running or config.conntrack).max_flows,
        "limits.services": limits.services,
        "limits.endpoints": limits.endpoints,
        "limits.nats": limits.nats,
        "limits.rules": limits.rules,
        "limits.wheel_slots": limits.wheel_slots,
    }
    return tuple(_setting("limit", name, str(size)) for name, size in sizes.items())


def _setting(kind: Kind, name: str, value: str) -> Item:
    return Item(kind, name, name, name, value, {"value": value})


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "automatic" if value is None else str(value)


def _count(endpoints: int) -> str:
    return f"-> {endpoints} endpoint{'' if endpoints == 1 else 's'}"


def _title(name: str, rest: str) -> str:
    return f"{name} {rest}" if name else rest


def _service(service: Service) -> Item:
    fields = {
        "name": service.name,
        "mode": service.mode,
        "algorithm": service.algorithm,
        "netfilter": service.netfilter,
    }
    if service.algorithm == "maglev":
        fields["maglev_size"] = str(service.maglev_size)
    if service.mode == "full-nat":
        fields["ports"] = _text(service.ports)
    address = f"{host_port(service.address, service.port)}/{service.protocol}"
    return Item(
        "service",
        (service.address, service.port, service.protocol),
        service.name,
        _title(service.name, address),
        _count(len(service.endpoints)),
        fields,
        tuple(map(_endpoint, service.endpoints)),
    )


def _endpoint(endpoint: Endpoint) -> Item:
    address = host_port(endpoint.address, endpoint.port)
    fields = {"weight": str(endpoint.weight), "drain": _text(endpoint.drain)}
    summary = f"weight {endpoint.weight}{', draining' if endpoint.drain else ''}"
    return Item("endpoint", address, address, address, summary, fields)


def _nat(nat: Nat) -> Item:
    fields = {
        "name": nat.name,
        "to": _text(nat.pool or "masquerade"),
        "ports": _text(nat.ports),
        "netfilter": nat.netfilter,
    }
    title = _title(nat.name, f"{nat.source} on {nat.interface}")
    summary = f"-> {fields['to']}, ports {fields['ports']}"
    return Item("nat", (nat.source, nat.interface), nat.name, title, summary, fields)


def _firewall(firewall: Firewall) -> Iterator[Item]:
    yield Item(
        "firewall",
        "",
        "",
        "",
        f"with default {firewall.default}",
        {"default": firewall.default},
    )
    for name, members in firewall.sets.items():
        yield _of_members("set", name, members)
    before = ""
    for rule in firewall.rules:
        fields = {"action": rule.action, "log": _text(rule.log), **asked_of(rule), "after": before or "none"}
        before = rule.name
        does = f"{rule.action}, log:" if rule.log else rule.action
        summary = f"{does} {what_it_asks(rule) or 'everything'}"
        yield Item("rule", rule.name, rule.name, rule.name, summary, fields)


def _of_members(kind: Kind, name: str, members: Members) -> Item:
    size = size_of(members)
    content = hash(members) & 0xFFFF_FFFF  # the same in any process, so that two plans can be compared
    fields = {"members": f"{size} ({content:08x})"}
    return Item(kind, name, name, name, f"with {size}", fields, members=members)


def _scrub(scrub: Scrub) -> Iterator[Item]:
    kinds: tuple[tuple[Kind, tuple[PrefixList, ...]], ...] = (
        ("blocklist", scrub.blocklists),
        ("allowlist", scrub.allowlists),
    )
    for kind, lists in kinds:
        for one in lists:
            if one.prefixes is not None:
                yield _of_members(kind, one.name, one.prefixes)
            else:
                file = one.file or ""
                yield Item(kind, one.name, one.name, one.name, f"from {file}", {"file": file})


def size_of(members: Members) -> str:
    """How many members a set has, and of which kind."""
    kind = "prefix" if isinstance(members, Prefixes) else "port"
    return f"{len(members):,} {kind}{'' if len(members) == 1 else 's' if kind == 'port' else 'es'}"


def asked_of(rule: FirewallRule) -> dict[str, str]:
    """What a rule asks for, by key, in the words of the configuration."""
    asked = {}
    for key, default in ASKED.items():
        value = getattr(rule, key)
        if value != default:
            written = WRITTEN.get(key, texts)(value) if isinstance(value, tuple) else value
            asked[key] = " ".join(map(str, written)) if isinstance(written, list) else _text(written)
    return asked


def what_it_asks(rule: FirewallRule) -> str:
    """The same on one line; "" for everything."""
    return ", ".join(f"{key} {value}" for key, value in asked_of(rule).items())


def _firewall_of_tables(firewall: FirewallTables) -> Item:
    rules = f"{len(firewall.rules) - 1:,} rules"
    fields = {"rules": rules, "content": firewall.digest.hex()[:8]}
    return Item("firewall", "", "", "", f"with {rules}", fields)


def _scrub_of_tables(scrub: ScrubTables) -> Item:
    lists = f"{len(scrub.numbers)} list{'' if len(scrub.numbers) == 1 else 's'} of prefixes"
    fields = {"lists": lists, "content": scrub.digest.hex()[:8]}
    return Item("scrub", "", "", "", f"with {lists}", fields)


def _service_of_row(
    row: ServiceRow, names: Mapping[ServiceIdentity, str], endpoints: Iterable[EndpointRow]
) -> Item:
    name = names.get(row.identity, "")
    title = _title(name, f"{host_port(row.address, row.port)}/{row.protocol}")
    fields = {
        "mode": row.mode,
        "algorithm": row.algorithm,
        "slots": str(len(row.wheel)),
        "netfilter": _netfilter(row.bypass),
    }
    if row.ports is not None:
        fields["ports"] = str(row.ports)
    numbers, counts = np.unique(row.wheel.slots, return_counts=True)
    slots = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    children = tuple(_endpoint_of_row(e, slots.get(e.id, 0) / max(1, len(row.wheel))) for e in endpoints)
    return Item("service", row.identity, name, title, _count(len(children)), fields, children)


def _endpoint_of_row(row: EndpointRow, share: float) -> Item:
    address = host_port(row.address, row.port)
    fields = {"share": f"{share:.1%}", "drain": _text(row.draining)}
    summary = "draining" if row.draining else f"{share:.1%}"
    return Item("endpoint", address, address, address, summary, fields)


def _nat_of_row(row: NatRow, name: str, interfaces: Mapping[int, str]) -> Item:
    fields = {
        "to": _text(row.pool or "masquerade"),
        "ports": str(row.ports),
        "netfilter": _netfilter(row.bypass),
    }
    interface = interfaces.get(row.ifindex, f"interface {row.ifindex}")
    title = _title(name, f"{row.source} on {interface}")
    return Item("nat", row.identity, name, title, f"-> {fields['to']}, ports {row.ports}", fields)


def _netfilter(bypass: bool) -> str:
    return "bypass" if bypass else "honour"


def _conntrack(timeouts: Timeouts, midstream: str, when_full: str) -> Iterator[Item]:
    for name, milliseconds in _values(timeouts):
        yield _setting("timeout", name, format_duration(milliseconds))
    yield _setting("conntrack", "midstream", midstream)
    yield _setting("conntrack", "when_full", when_full)


def _values(timeouts: Model) -> Iterator[tuple[str, int]]:
    for name in type(timeouts).model_fields:
        yield name, getattr(timeouts, name)
