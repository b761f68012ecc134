# SPDX-License-Identifier: Apache-2.0
"""What must hold between the values of a configuration. Each check returns problems and knows no machine."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import gcd
from typing import TYPE_CHECKING, TypeVar

from .errors import Problem, Where
from .values import MAGLEV_SIZE_MAX, example_address, family_name, host_port, next_prime

if TYPE_CHECKING:
    from .config import Config, Conntrack, Nat, Service

SLOTS_PER_SHARE = 100
"""A share of at least 100 slots is rounded by at most 1 % (maglev.py has the proof)."""
ROUND_ROBIN_SLOTS_MAX = 65536
"""Bound of a round-robin wheel: weights whose sum is larger say more than anyone can tell apart."""

Item = TypeVar("Item")


def wheel_slots(service: Service) -> int:
    """The most slots that a service's wheel has, whichever of its endpoints are draining."""
    weights = [endpoint.weight for endpoint in service.endpoints if endpoint.weight > 0]
    if not weights:
        return 0
    return service.maglev_size if service.algorithm == "maglev" else sum(weights) // gcd(*weights)


def service_problems(service: Service) -> list[Problem]:
    """What is wrong within one service; places are relative to it."""
    problems = _endpoint_problems(service)
    problems += _repeated(
        service.endpoints,
        key=lambda endpoint: (endpoint.address, endpoint.port),
        where=lambda index: ("endpoints", index),
        what=lambda endpoint, _first: (
            f"service {service.name} already has {host_port(endpoint.address, endpoint.port)}"
        ),
        fix="list it once and give it a larger weight",
    )
    if service.ports is not None and service.mode != "full-nat":
        problems.append(
            Problem(("ports",), "mode nat keeps the client's port", "remove it, or set mode: full-nat")
        )
    return problems + _wheel_problems(service)


def _endpoint_problems(service: Service) -> list[Problem]:
    problems = []
    for index, endpoint in enumerate(service.endpoints):
        where: Where = ("endpoints", index, "address")
        if endpoint.address.version != service.address.version:
            family = family_name(service.address)
            what = f"{endpoint.address} is {family_name(endpoint.address)}, the service's address is {family}"
            fix = f"use an {family} address such as {example_address(service.address.version)}"
            problems.append(Problem(where, what, fix))
        elif (endpoint.address, endpoint.port) == (service.address, service.port):
            what = f"{host_port(endpoint.address, endpoint.port)} is the service itself"
            problems.append(Problem(where, what, "give the address and port of a server"))
    return problems


def _wheel_problems(service: Service) -> list[Problem]:
    weights = [endpoint.weight for endpoint in service.endpoints if endpoint.weight > 0]
    if not weights:
        return []
    if service.algorithm == "round-robin":
        slots = wheel_slots(service)
        if slots <= ROUND_ROBIN_SLOTS_MAX:
            return []
        what = f"these weights need a wheel of {slots} slots, at most {ROUND_ROBIN_SLOTS_MAX} are allowed"
        return [Problem(("endpoints",), what, "use smaller weights, or weights with a common divisor")]
    needed = -(-SLOTS_PER_SHARE * sum(weights) // min(weights))
    if service.maglev_size >= needed:
        return []
    what = f"{service.maglev_size} slots are too few to share within 1 %, these endpoints need {needed}"
    if needed > MAGLEV_SIZE_MAX:
        return [
            Problem(("maglev_size",), what, "use fewer endpoints or weights that differ less, or round-robin")
        ]
    return [Problem(("maglev_size",), what, f"use {next_prime(needed)} or a larger prime")]


def conntrack_problems(conntrack: Conntrack) -> list[Problem]:
    if conntrack.when_full != "stateless" or conntrack.midstream == "pick-up":
        return []
    what = f"without an entry every packet is picked up in midstream, and that is {conntrack.midstream}"
    return [Problem(("when_full",), what, "set midstream: pick-up, or when_full: drop")]


def nat_problems(nat: Nat) -> list[Problem]:
    """What is wrong within one NAT rule; places are relative to it."""
    problems = []
    if nat.masquerade and nat.pool is not None:
        problems.append(Problem(("pool",), "masquerade is set too", "keep one of masquerade and pool"))
    if not nat.masquerade and nat.pool is None:
        fix = 'set masquerade: true, or for example pool: "198.51.100.8/29"'
        problems.append(Problem((), "neither masquerade nor pool says what to translate to", fix))
    if nat.pool is not None and nat.pool.first.version != nat.source.version:
        what = f"{nat.pool} is {family_name(nat.pool.first)}, the source is {family_name(nat.source)}"
        problems.append(Problem(("pool",), what, f"use {family_name(nat.source)} addresses"))
    return problems


def config_problems(config: Config) -> list[Problem]:
    """What is wrong between the parts of a configuration."""
    problems = []
    for key, kind, named in (
        ("interfaces", "an interface", config.interfaces),
        ("services", "a service", config.services),
        ("nat", "a NAT rule", config.nat),
    ):
        problems += _repeated_names(key, kind, [item.name for item in named])
    problems += _repeated(
        config.services,
        key=lambda service: (service.address, service.port, service.protocol),
        where=lambda index: ("services", index, "address"),
        what=lambda service, first: (
            f"{host_port(service.address, service.port)}/{service.protocol} already belongs to service "
            f"{config.services[first].name}"
        ),
        fix="use another address, port or protocol, or put the endpoints into one service",
    )
    problems += _repeated(
        config.nat,
        key=lambda nat: (nat.source, nat.interface),
        where=lambda index: ("nat", index, "source"),
        what=lambda nat, first: (
            f"{nat.source} on {nat.interface} already belongs to rule {config.nat[first].name}"
        ),
        fix="use another prefix or interface, or remove one of the rules",
    )
    return problems + _limit_problems(config)


def _limit_problems(config: Config) -> list[Problem]:
    slots = sum(wheel_slots(service) for service in config.services)
    rules = len(config.firewall.rules) if config.firewall else 0
    needs = (
        ("services", len(config.services), config.limits.services, "services"),
        (
            "endpoints",
            sum(len(service.endpoints) for service in config.services),
            config.limits.endpoints,
            "endpoints",
        ),
        ("nats", len(config.nat), config.limits.nats, "NAT rules"),
        ("rules", rules, config.limits.rules, "firewall rules"),
        ("wheel_slots", 2 * slots, config.limits.wheel_slots, f"slots (twice the {slots} of all wheels)"),
    )
    return [
        Problem(
            ("limits", key),
            f"{limit} is too few, this configuration needs {needed} {what}",
            f"use {needed} or more",
        )
        for key, needed, limit, what in needs
        if needed > limit
    ]


def _repeated_names(key: str, kind: str, names: Sequence[str]) -> list[Problem]:
    return _repeated(
        names,
        key=lambda name: name,
        where=lambda index: (key, index, "name"),
        what=lambda name, _first: f"there is already {kind} {name}",
        fix="list the interface once" if key == "interfaces" else "give every one a name of its own",
    )


def _repeated(
    items: Sequence[Item],
    *,
    key: Callable[[Item], Hashable],
    where: Callable[[int], Where],
    what: Callable[[Item, int], str],
    fix: str,
) -> list[Problem]:
    """A problem for each item whose key an earlier item has."""
    first: dict[Hashable, int] = {}
    problems = []
    for index, item in enumerate(items):
        earlier = first.setdefault(key(item), index)
        if earlier != index:
            problems.append(Problem(where(index), what(item, earlier), fix))
    return problems
