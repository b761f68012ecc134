# SPDX-License-Identifier: Apache-2.0
"""From a configuration to table rows. Pure: equal configurations, facts and previous rows, equal results."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from clearway.model import Config, Endpoint, Nat, PortRange, Problem, Service

from .allocate import NoRoomError, Request, assign_ids, place_areas
from .facts import HostFacts, fact_problems
from .firewall import compile_firewall
from .maglev import Member, maglev_wheel
from .scrub import compile_scrub
from .tables import EndpointIdentity, EndpointRow, NatRow, ServiceIdentity, ServiceRow, Tables, Wheel
from .wheel import round_robin_wheel

NAT_IDS = 1 << 16
"""A flow names its rule by 16 bits (bpf/types.h, struct flow_marks)."""


def compile_tables(config: Config, facts: HostFacts, previous: Tables | None = None) -> Tables:
    """The rows that a configuration means, to replace `previous`.

    What is in both keeps its id and, if its wheel is the same, its place; what is new overlaps nothing of
    `previous`, so that both can be in the tables at once. Raises ConfigError with every reason why it does
    not fit.
    """
    problems = fact_problems(config, facts)
    if problems:
        raise config.origin.error(problems)
    before = previous or Tables()
    service_ids = _service_ids(config, facts, before)
    endpoint_ids, next_endpoint = _endpoint_ids(config, facts, before)
    nats, next_nat = _nat_rows(config, facts, before)
    rules = (facts.sizes or config.limits).rules
    firewall, next_rule = compile_firewall(config, facts.interfaces, before.firewall, rules, before.next_rule)
    scrub = compile_scrub(config, facts, before.scrub)
    wheels = [_wheel(service, endpoint_ids, before) for service in config.services]
    bases = _wheel_bases(config, facts, before, wheels)
    services = [
        _service_row(service, facts, service_ids[_identity(service)], base, wheel)
        for service, base, wheel in zip(config.services, bases, wheels, strict=True)
    ]
    endpoints = [
        _endpoint_row(service, endpoint, service_ids[_identity(service)], endpoint_ids)
        for service in config.services
        for endpoint in service.endpoints
    ]
    return Tables(
        epoch=before.next_epoch,
        services=tuple(sorted(services, key=lambda row: row.id)),
        endpoints=tuple(sorted(endpoints, key=lambda row: row.id)),
        nats=tuple(sorted(nats, key=lambda row: row.id)),
        firewall=firewall,
        scrub=scrub,
        timeouts=config.conntrack.timeouts,
        midstream=config.conntrack.midstream,
        when_full=config.conntrack.when_full,
        next_endpoint=next_endpoint,
        next_nat=next_nat,
        next_rule=next_rule,
    )


def _identity(service: Service) -> ServiceIdentity:
    return (service.address, service.port, service.protocol)


def _endpoint_identity(service: Service, endpoint: Endpoint) -> EndpointIdentity:
    return (_identity(service), endpoint.address, endpoint.port)


def takes_connections(endpoint: Endpoint) -> bool:
    return endpoint.weight > 0 and not endpoint.drain


def _service_ids(config: Config, facts: HostFacts, before: Tables) -> dict[ServiceIdentity, int]:
    wanted = [_identity(service) for service in config.services]
    held = {identity: row.id for identity, row in before.service_by_identity.items()}
    size = (facts.sizes or config.limits).services
    try:
        return assign_ids(wanted, held, size)[0]
    except NoRoomError:
        # Ids of services that go are given out at once only if there are no others. Nothing but statistics
        # and the round-robin position hangs on them, but statistics are best kept apart for as long as
        # possible.
        return assign_ids(wanted, {key: held[key] for key in wanted if key in held}, size)[0]


def _endpoint_ids(
    config: Config, facts: HostFacts, before: Tables
) -> tuple[dict[EndpointIdentity, int], int]:
    wanted = [_endpoint_identity(service, e) for service in config.services for e in service.endpoints]
    held = {identity: row.id for identity, row in before.endpoint_by_identity.items()}
    try:
        return assign_ids(wanted, held, (facts.sizes or config.limits).endpoints, before.next_endpoint)
    except NoRoomError as error:
        what = (
            f"this change needs room for {error.needed} endpoints, those that go and those that come, "
            f"and there is room for {error.available}"
        )
        fix = "remove the old ones first, in a step of its own"
        raise config.origin.error([Problem(("limits", "endpoints"), what, fix)]) from None


def _wheel(service: Service, ids: dict[EndpointIdentity, int], before: Tables) -> Wheel:
    """The wheel of a service; the one it has if that was made from the same."""
    on_wheel = sorted(
        (
            Member.of(endpoint.address, endpoint.port, endpoint.weight),
            ids[_endpoint_identity(service, endpoint)],
        )
        for endpoint in service.endpoints
        if takes_connections(endpoint)
    )
    if not on_wheel:
        return Wheel.of(np.zeros(0, dtype=np.uint32))
    recipe = blake2b(
        repr((service.algorithm, service.maglev_size, on_wheel)).encode(), digest_size=16
    ).digest()
    present = before.service_by_identity.get(_identity(service))
    if present is not None and present.wheel.recipe == recipe:
        return present.wheel
    members = [member for member, _ in on_wheel]
    if service.algorithm == "maglev":
        slots = maglev_wheel(members, service.maglev_size)
    else:
        slots = round_robin_wheel([member.weight for member in members])
    return Wheel.of(np.array([number for _, number in on_wheel], dtype=np.uint32)[slots], recipe)


def _wheel_bases(config: Config, facts: HostFacts, before: Tables, wheels: Sequence[Wheel]) -> list[int]:
    """Where each wheel lies: where it is already, or in slots that no live wheel has."""
    bases = [0] * len(wheels)
    moving = []
    for number, (service, wheel) in enumerate(zip(config.services, wheels, strict=True)):
        present = before.service_by_identity.get(_identity(service))
        if present is not None and present.wheel == wheel:
            bases[number] = present.wheel_base
        elif len(wheel):
            moving.append(number)
    requests = [Request(len(wheels[n]), config.services[n].algorithm == "round-robin") for n in moving]
    size = (facts.sizes or config.limits).wheel_slots
    try:
        placed = place_areas(requests, (row.area for row in before.services), size)
    except NoRoomError as error:
        what = (
            f"no free piece of the {size} wheel slots holds a wheel of {error.needed}, the largest has "
            f"{error.available}"
        )
        fix = "change fewer services at a time, or run `clearway down`, then `clearway run` with more slots"
        raise config.origin.error([Problem(("limits", "wheel_slots"), what, fix)]) from None
    for number, base in zip(moving, placed, strict=True):
        bases[number] = base
    return bases


def _service_row(service: Service, facts: HostFacts, number: int, base: int, wheel: Wheel) -> ServiceRow:
    return ServiceRow(
        id=number,
        address=service.address,
        port=service.port,
        protocol=service.protocol,
        mode=service.mode,
        algorithm=service.algorithm,
        ports=_ports(service.ports, facts) if service.mode == "full-nat" else None,
        wheel_base=base,
        wheel=wheel,
        bypass=service.netfilter == "bypass",
    )


def _endpoint_row(
    service: Service, endpoint: Endpoint, service_id: int, ids: dict[EndpointIdentity, int]
) -> EndpointRow:
    return EndpointRow(
        id=ids[_endpoint_identity(service, endpoint)],
        service=service_id,
        address=endpoint.address,
        port=endpoint.port,
        draining=not takes_connections(endpoint),
    )


def _nat_rows(config: Config, facts: HostFacts, before: Tables) -> tuple[list[NatRow], int]:
    def identity(nat: Nat) -> tuple[object, int]:
        return (nat.source, facts.interfaces[nat.interface])

    held: dict[tuple[object, int], int] = {key: row.id for key, row in before.nat_by_identity.items()}
    wanted = [identity(nat) for nat in config.nat]
    try:
        ids, following = assign_ids(wanted, held, NAT_IDS, before.next_nat)
    except NoRoomError:
        # Ids of rules that go are given out at once only if there are no others, as those of services.
        kept = {key: held[key] for key in wanted if key in held}
        ids, following = assign_ids(wanted, kept, NAT_IDS, before.next_nat)
    rows = [
        NatRow(
            ids[identity(nat)],
            nat.source,
            facts.interfaces[nat.interface],
            nat.pool,
            _ports(nat.ports, facts),
            nat.netfilter == "bypass",
        )
        for nat in config.nat
    ]
    return rows, following


def _ports(asked: PortRange | None, facts: HostFacts) -> PortRange:
    ports = asked or facts.free_ports()
    if ports is None:
        raise AssertionError("fact_problems() refuses a configuration that has no ports to translate to")
    return ports
