# SPDX-License-Identifier: Apache-2.0
"""What is, as the API tells it: the configuration joined with what the kernel has counted. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from clearway.api.views import (
    Endpoints,
    EndpointView,
    Interfaces,
    InterfaceView,
    Lists,
    ListView,
    Nats,
    NatView,
    Reasons,
    ReasonView,
    Rules,
    RuleView,
    Services,
    ServiceView,
)
from clearway.compiler import EndpointRow, NatRow, ServiceRow, Tables, identity_of, what_it_asks
from clearway.daemon.flowlist import Names, Use
from clearway.daemon.followers import when
from clearway.datapath import Attachment, Counter, Counters
from clearway.datapath.calls import Clock
from clearway.model import Config, Endpoint, ListContent, Nat, Prefixes, Scrub, Service, host_port

NOTHING = Use()


def names(config: Config, tables: Tables, ifindexes: Mapping[str, int], states: Mapping[int, str]) -> Names:
    """What the ids in the data path stand for."""
    service_rows = [(service.name, _service_row(service, tables)) for service in config.services]
    nat_rows = [(rule.name, _nat_row(rule, tables, ifindexes)) for rule in config.nat]
    return Names(
        services={row.id: name for name, row in service_rows if row},
        endpoints={row.id: host_port(row.address, row.port) for row in tables.endpoints},
        nats={row.id: name for name, row in nat_rows if row},
        states=states,
    )


def services(config: Config, tables: Tables, used: Mapping[int, Use], opened: Mapping[int, int]) -> Services:
    """`used`: by service id; `opened`: connections by endpoint id."""
    views = []
    for service in config.services:
        row = _service_row(service, tables)
        use = used.get(row.id, NOTHING) if row else NOTHING
        rows = [_endpoint_row(service, endpoint, tables) for endpoint in service.endpoints]
        views.append(
            ServiceView(
                name=service.name,
                address=str(service.address),
                port=service.port,
                protocol=service.protocol,
                mode=service.mode,
                algorithm=service.algorithm,
                endpoints=len(service.endpoints),
                taking=sum(_state(endpoint) == "active" for endpoint in service.endpoints),
                flows=use.flows,
                opened=sum(opened.get(found.id, 0) for found in rows if found),
                packets=use.packets,
                bytes=use.bytes,
            )
        )
    return Services(services=views)


def endpoints(
    config: Config,
    tables: Tables,
    used: Mapping[int, Use],
    opened: Mapping[int, int],
    only: str | None = None,
) -> Endpoints:
    """Endpoints of every service, or of the one called `only`. `used` and `opened`: by endpoint id."""
    views = []
    for service in config.services:
        if only not in (None, service.name):
            continue
        shares = _shares(_service_row(service, tables))
        for endpoint in service.endpoints:
            row = _endpoint_row(service, endpoint, tables)
            number = row.id if row else -1
            use = used.get(number, NOTHING)
            views.append(
                EndpointView(
                    service=service.name,
                    endpoint=host_port(endpoint.address, endpoint.port),
                    address=str(endpoint.address),
                    port=endpoint.port,
                    weight=endpoint.weight,
                    state=_state(endpoint),
                    share=round(shares.get(number, 0.0), 6),
                    flows=use.flows,
                    opened=opened.get(number, 0),
                    packets=use.packets,
                    bytes=use.bytes,
                )
            )
    return Endpoints(endpoints=views)


def nats(config: Config, tables: Tables, ifindexes: Mapping[str, int], used: Mapping[int, Use]) -> Nats:
    """`used`: by nat id."""
    views = []
    for rule in config.nat:
        row = _nat_row(rule, tables, ifindexes)
        use = used.get(row.id, NOTHING) if row else NOTHING
        views.append(
            NatView(
                name=rule.name,
                source=str(rule.source),
                interface=rule.interface,
                to="masquerade" if rule.masquerade else str(rule.pool),
                ports=str(row.ports if row else rule.ports or "automatic"),
                state="active" if row else "waiting",
                flows=use.flows,
                packets=use.packets,
                bytes=use.bytes,
            )
        )
    return Nats(nat=views)


def rules(config: Config, tables: Tables, judged: np.ndarray, clock: Clock) -> Rules:
    """`judged`: values of judged_v1, (CPUs, counters)."""
    if config.firewall is None:
        return Rules(rules=[])
    counters = tables.firewall.counters if tables.firewall else {}
    hits, octets = (judged[column].sum(axis=0).tolist() for column in ("packets", "bytes"))
    stamps = judged["last"].max(axis=0)
    last = when(stamps, clock.jiffies, clock.hz).tolist()
    given = [(rule.name, rule.action, rule.log, what_it_asks(rule)) for rule in config.firewall.rules]
    views = []
    for number, (name, action, log, asks) in enumerate([*given, ("", config.firewall.default, False, "")], 1):
        row = counters.get(identity_of(name))
        views.append(
            RuleView(
                number=number,
                name=name,
                action=action,
                log=log,
                asks=asks,
                hits=0 if row is None else hits[row],
                bytes=0 if row is None else octets[row],
                last=None if row is None or not stamps[row] else last[row],
            )
        )
    return Rules(rules=views)


def lists(
    config: Config,
    tables: Tables,
    held: Mapping[str, ListContent],
    listed: Sequence[Counter],
) -> Lists:
    """`held`: what is in force of files, by path. `listed`: by number of a list."""
    numbers = tables.scrub.numbers if tables.scrub else {}
    scrub = config.scrub or Scrub()
    views = []
    for kind, found in (("block", scrub.blocklists), ("allow", scrub.allowlists)):
        for one in found:
            content = (
                held.get(one.file) if one.file is not None else ListContent.of(one.prefixes or Prefixes())
            )
            number = numbers.get(identity_of(one.name))
            counter = Counter(0, 0) if number is None else listed[number]
            views.append(
                ListView(
                    name=one.name,
                    kind=kind,
                    file=one.file,
                    ipv4=len(content.families[4]) if content else None,
                    ipv6=len(content.families[6]) if content else None,
                    packets=counter.packets,
                    bytes=counter.bytes,
                )
            )
    return Lists(lists=views)


def interfaces(
    config: Config,
    attachments: Mapping[str, Attachment],
    ifindexes: Mapping[str, int],
    why: Callable[[str], str],
) -> Interfaces:
    """`why`: for an interface, why it has its hook, or why it has none."""
    views = []
    for interface in config.interfaces:
        attachment = attachments.get(interface.name)
        attached = attachment is not None and not attachment.stale
        absent = interface.name not in ifindexes
        views.append(
            InterfaceView(
                name=interface.name,
                ifindex=ifindexes.get(interface.name, 0),
                asked=interface.hook,
                hook=attachment.hook if attachment and attached else "",
                mechanism=attachment.mechanism if attachment and attached else "",
                driver=attachment.driver if attachment else "",
                state="absent" if absent else "attached" if attached else "failed",
                reason="there is no such interface now" if absent else why(interface.name),
            )
        )
    return Interfaces(interfaces=views)


def reasons(counters: Counters) -> Reasons:
    """Grouped by verdict, in the order of the verdicts, then by how often."""
    order = ("forward", "answer", "punt", "drop")
    views = [
        ReasonView(reason=name, verdict=name.partition("_")[0], packets=counter.packets, bytes=counter.bytes)
        for name, counter in counters.reasons.items()
    ]
    views.sort(key=lambda view: (order.index(view.verdict), -view.packets))
    return Reasons(
        reasons=views,
        received_packets=counters.received.packets,
        received_bytes=counters.received.bytes,
        accounted_packets=sum(view.packets for view in views),
        accounted_bytes=sum(view.bytes for view in views),
    )


def opened(values: np.ndarray, rows: Iterable[EndpointRow]) -> dict[int, int]:
    """Connections by endpoint id, from the per-CPU values of opened_v1."""
    sums = values["connections"].sum(axis=0)
    return {row.id: int(sums[row.id]) for row in rows}


def _state(endpoint: Endpoint) -> str:
    if endpoint.drain:
        return "draining"
    return "active" if endpoint.weight else "idle"


def _shares(row: ServiceRow | None) -> dict[int, float]:
    """The part of the wheel that leads to each endpoint, by id."""
    if row is None or not len(row.wheel):
        return {}
    ids, slots = np.unique(row.wheel.slots, return_counts=True)
    return {int(key): int(count) / len(row.wheel) for key, count in zip(ids, slots, strict=True)}


def _service_row(service: Service, tables: Tables) -> ServiceRow | None:
    return tables.service_by_identity.get((service.address, service.port, service.protocol))


def _endpoint_row(service: Service, endpoint: Endpoint, tables: Tables) -> EndpointRow | None:
    identity = (service.address, service.port, service.protocol)
    return tables.endpoint_by_identity.get((identity, endpoint.address, endpoint.port))


def _nat_row(rule: Nat, tables: Tables, ifindexes: Mapping[str, int]) -> NatRow | None:
    return tables.nat_by_identity.get((rule.source, ifindexes.get(rule.interface, 0)))
