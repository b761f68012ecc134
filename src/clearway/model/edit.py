# SPDX-License-Identifier: Apache-2.0
"""Small changes to a configuration, as the commands make them. Pure: a new, valid one comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic_core import PydanticCustomError

from .config import Config, Endpoint, Service
from .errors import ConfigError, Origin, Problem, Where
from .firewall_checks import firewall_problems
from .firewall_values import Members, parse_member, parse_set
from .load import config_from_data, to_data
from .values import PortRange, host_port

REQUEST = "request"
"""The place of a problem of the whole request; also what the request is called as a source."""
WRONG_LINES_TOLD = 100
"""Of a set; with more of them it is probably another file."""


def add_service(config: Config, data: Mapping[str, object]) -> Config:
    """Add a service given as plain data. Raises ConfigError if the result is not valid."""
    services = [to_service_data(service) for service in config.services]
    return _with_services(config, [*services, dict(data)], {("services", len(services)): ()})


def remove_service(config: Config, name: str) -> Config:
    """Remove a service. Raises ConfigError if there is none of that name."""
    gone = _service(config, name)
    return _with_services(
        config, [to_service_data(service) for service in config.services if service is not gone]
    )


def add_endpoint(config: Config, service: str, data: Mapping[str, object]) -> Config:
    """Add an endpoint given as plain data to a service. Raises ConfigError if the result is not valid."""
    changed = _service(config, service)
    own = ("endpoints", len(changed.endpoints))
    return _with_endpoints(config, changed, [*_endpoints_data(changed), dict(data)], own)


def remove_endpoint(config: Config, service: str, endpoint: str) -> Config:
    """Remove an endpoint ("10.0.0.2:8080", or its address if only one has it).

    Raises ConfigError if there is none.
    """
    changed = _service(config, service)
    gone = changed.endpoints.index(_endpoint(changed, endpoint))
    data = _endpoints_data(changed)
    return _with_endpoints(config, changed, data[:gone] + data[gone + 1 :])


def drain_endpoint(config: Config, service: str, endpoint: str, drain: bool = True) -> Config:
    """Give an endpoint no new connections any more, or again with drain=False.

    Raises ConfigError if there is none.
    """
    changed = _service(config, service)
    index = changed.endpoints.index(_endpoint(changed, endpoint))
    data = _endpoints_data(changed)
    data[index] = data[index] | {"drain": drain}
    return _with_endpoints(config, changed, data)


def to_service_data(service: Service) -> dict[str, object]:
    return service.model_dump(mode="json", exclude_defaults=True, exclude_none=True)


def _endpoints_data(service: Service) -> list[dict[str, object]]:
    return [endpoint.model_dump(mode="json", exclude_defaults=True) for endpoint in service.endpoints]


def _with_services(
    config: Config, services: list[dict[str, object]], places: Mapping[Where, Where] | None = None
) -> Config:
    """The configuration with these services.

    Problems are told in the places of the request, not of a file that nobody wrote: `places` says what the
    beginning of a place becomes.
    """
    rest = to_data(config.model_copy(update={"firewall": None}))  # whose rules may be very many
    try:
        changed = config_from_data(rest | {"services": services}, config.origin.source)
    except ConfigError as error:
        problems = [_in_request(problem, places or {}) for problem in error.problems]
        raise ConfigError(problems, REQUEST) from None
    return changed.model_copy(update={"firewall": config.firewall})


def _in_request(problem: Problem, places: Mapping[Where, Where]) -> Problem:
    for begin, instead in places.items():
        if problem.where[: len(begin)] == begin:
            return replace(problem, where=instead + problem.where[len(begin) :] or (REQUEST,))
    return problem


def _with_endpoints(
    config: Config, changed: Service, endpoints: list[dict[str, object]], own: Where | None = None
) -> Config:
    """The configuration with these endpoints of a service; `own` is the place of the one in the request."""
    services = [
        to_service_data(service) | ({"endpoints": endpoints} if service is changed else {})
        for service in config.services
    ]
    place: Where = ("services", config.services.index(changed))
    places: dict[Where, Where] = {place: (changed.name,)}
    return _with_services(config, services, places if own is None else {place + own: (), **places})


def _service(config: Config, name: str) -> Service:
    for service in config.services:
        if service.name == name:
            return service
    known = ", ".join(service.name for service in config.services) or "none"
    raise _unknown(f"there is no service {name}", f"services: {known}")


def _endpoint(service: Service, text: str) -> Endpoint:
    exact = [e for e in service.endpoints if host_port(e.address, e.port) == text]
    matching = exact or [e for e in service.endpoints if str(e.address) == text]
    if len(matching) == 1:
        return matching[0]
    known = ", ".join(host_port(e.address, e.port) for e in matching or service.endpoints) or "none"
    what = (
        f"several endpoints of service {service.name} have the address {text}"
        if matching
        else (f"service {service.name} has no endpoint {text}")
    )
    raise _unknown(what, f"endpoints: {known}")


def _unknown(what: str, fix: str) -> ConfigError:
    return ConfigError([Problem((REQUEST,), what, fix)], REQUEST)


def holds_ports(config: Config, name: str) -> bool:
    """Whether a set has ports in it."""
    firewall = config.firewall
    return firewall is not None and name in firewall.sets and bool(firewall.ports(name))


def parse_members(text: bytes, source: str, ports: bool = False) -> Members:
    """The members of a set: a prefix, a port or a range of ports on each line; what follows a # is a remark.

    Raises ConfigError with every line that is no member (`ports`: ports were expected, else prefixes), and
    when there is no member at all: what should have written the text may have failed.
    """
    lines = [line.partition(b"#")[0].strip().decode(errors="replace") for line in text.splitlines()]
    given = {number: line for number, line in enumerate(lines, 1) if line}
    origin = Origin(source, {})
    if not given:
        fix = "to empty the set, write [] for it in the configuration and apply that"
        raise origin.error([Problem((), "has no members", fix)])
    try:
        return parse_set(list(given.values()))
    except PydanticCustomError as error:
        problems = _line_problems(given, ports)
        raise origin.error(problems or [_problem(error, _of_other_kind(given))]) from None


def _line_problems(given: Mapping[int, str], ports: bool) -> list[Problem]:
    """The lines that are no members, by themselves."""
    problems = []
    for number, line in given.items():
        try:
            parse_member(line, ports)
        except PydanticCustomError as error:
            problems.append(_problem(error, number))
    if len(problems) > WRONG_LINES_TOLD:
        first, left = problems[WRONG_LINES_TOLD], len(problems) - WRONG_LINES_TOLD
        what = f"from here on there are {left:,} more lines that are no members"
        problems[WRONG_LINES_TOLD:] = [Problem((), what, "is this the right file?", first.line)]
    return problems


def _problem(error: PydanticCustomError, line: int) -> Problem:
    context = error.context or {}
    return Problem((), str(context["what"]), str(context["fix"]), line)


def _of_other_kind(given: Mapping[int, str]) -> int:
    """The first line that is a port after prefixes, or a prefix after ports."""
    kinds = {number: isinstance(parse_member(line), PortRange) for number, line in given.items()}
    first = next(iter(kinds.values()))
    return next(number for number, kind in kinds.items() if kind != first)


def replace_set(config: Config, name: str, members: Members) -> Config:
    """Exchange what is in a named set of the firewall. Raises ConfigError if there is none of that name, or
    rules want it to be of the other kind.
    """
    firewall = config.firewall
    if firewall is None or name not in firewall.sets:
        known = ", ".join(sorted(firewall.sets)) if firewall else ""
        what = f"there is no set {name}; sets: {known or 'none'}"
        raise config.origin.error([Problem(("firewall", "sets"), what, "add it to the configuration first")])
    changed = firewall.model_copy(update={"sets": {**firewall.sets, name: members}})
    if problems := firewall_problems(changed):
        raise config.origin.error([problem.within(("firewall",)) for problem in problems])
    return config.model_copy(update={"firewall": changed})
