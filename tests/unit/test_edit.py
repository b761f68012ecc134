# SPDX-License-Identifier: Apache-2.0
"""Small changes to a configuration: the rest stays as it is, and what is not valid is refused."""

from __future__ import annotations

import pytest

from clearway.model import (
    Config,
    ConfigError,
    add_endpoint,
    add_service,
    config_from_data,
    drain_endpoint,
    parse_config,
    remove_endpoint,
    remove_service,
    to_data,
)

CONFIG = parse_config("""\
interfaces: [{name: eth0, hook: tc}]
services:
  - name: web
    address: 203.0.113.10
    port: 80
    protocol: tcp
    endpoints:
      - {address: 10.0.0.2, port: 8080, weight: 3}
      - {address: 10.0.0.2, port: 8081}
      - {address: 10.0.0.3, port: 8080}
  - {name: v6, address: "2001:db8::10", port: 80, protocol: tcp, endpoints: [{address: "fd00::2", port: 80}]}
nat:
  - {name: out, source: 10.0.0.0/8, interface: eth0, pool: 198.51.100.8/29, ports: 1024-2000}
conntrack: {timeouts: {udp: 90s}}
""")


def endpoints(config: Config, service: str = "web") -> list[tuple[str, int, int, bool]]:
    found = next(one for one in config.services if one.name == service)
    return [(str(e.address), e.port, e.weight, e.drain) for e in found.endpoints]


def refused(error: pytest.ExceptionInfo[ConfigError]) -> str:
    return str(error.value)


def test_service_is_added_and_removed() -> None:
    added = add_service(CONFIG, {"name": "dns", "address": "203.0.113.53", "port": 53, "protocol": "udp"})
    assert [service.name for service in added.services] == ["web", "v6", "dns"]
    assert remove_service(added, "dns") == CONFIG


def test_endpoint_is_added_and_removed() -> None:
    added = add_endpoint(CONFIG, "web", {"address": "10.0.0.4", "port": 8080})
    assert endpoints(added)[-1] == ("10.0.0.4", 8080, 1, False)
    assert remove_endpoint(added, "web", "10.0.0.4") == CONFIG
    assert remove_endpoint(added, "web", "10.0.0.4:8080") == CONFIG


def test_drain_keeps_the_weight_and_can_be_ended() -> None:
    drained = drain_endpoint(CONFIG, "web", "10.0.0.2:8080")
    assert endpoints(drained)[0] == ("10.0.0.2", 8080, 3, True)
    assert drain_endpoint(drained, "web", "10.0.0.2:8080", drain=False) == CONFIG


def test_ipv6_endpoint_is_named_with_or_without_its_port() -> None:
    for name in ("fd00::2", "[fd00::2]:80"):
        assert endpoints(drain_endpoint(CONFIG, "v6", name), "v6") == [("fd00::2", 80, 1, True)]


def test_unknown_service_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        remove_service(CONFIG, "wbe")
    assert refused(error) == "request: there is no service wbe; services: web, v6"


def test_unknown_endpoint_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        drain_endpoint(CONFIG, "v6", "fd00::3")
    assert refused(error) == "request: service v6 has no endpoint fd00::3; endpoints: [fd00::2]:80"


def test_address_of_several_endpoints_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        remove_endpoint(CONFIG, "web", "10.0.0.2")
    assert refused(error) == (
        "request: several endpoints of service web have the address 10.0.0.2; "
        "endpoints: 10.0.0.2:8080, 10.0.0.2:8081"
    )


WEB2 = {"name": "web2", "address": "203.0.113.11", "port": 80, "protocol": "tcp"}
REFUSED_ENDPOINTS: dict[str, tuple[dict[str, object], str]] = {
    "there already": (
        {"address": "10.0.0.3", "port": 8080},
        "request: service web already has 10.0.0.3:8080; list it once and give it a larger weight",
    ),
    "of the other family": (
        {"address": "fd00::3", "port": 8080},
        "address: fd00::3 is IPv6, the service's address is IPv4; use an IPv4 address such as 10.0.0.2",
    ),
    "without a port": ({"address": "10.0.0.4"}, "port: is missing; add it: port of the server"),
    "too many for the wheel": (
        {"address": "10.0.0.4", "port": 8080, "weight": 65535},
        "web.maglev_size: 65537 slots are too few to share within 1 %, these endpoints need 6554000; "
        "use fewer endpoints or weights that differ less, or round-robin",
    ),
}
REFUSED_SERVICES: dict[str, tuple[dict[str, object], str]] = {
    "there already": (
        WEB2 | {"name": "web"},
        "name: there is already a service web; give every one a name of its own",
    ),
    "with an endpoint twice": (
        WEB2 | {"endpoints": [{"address": "10.0.0.2", "port": 80}] * 2},
        "endpoints[1]: service web2 already has 10.0.0.2:80; list it once and give it a larger weight",
    ),
    "too many": (
        WEB2 | {"maglev_size": 1_048_573, "endpoints": [{"address": "10.0.0.2", "port": 80}]},
        "limits.wheel_slots: 262148 is too few, this configuration needs 2359294 slots "
        "(twice the 1179647 of all wheels); use 2359294 or more",
    ),
}


@pytest.mark.parametrize(("data", "problem"), REFUSED_ENDPOINTS.values(), ids=REFUSED_ENDPOINTS)
def test_endpoint_is_refused_in_the_places_of_the_request(data: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        add_endpoint(CONFIG, "web", data)
    assert refused(error) == problem
    assert error.value.source == "request"


@pytest.mark.parametrize(("data", "problem"), REFUSED_SERVICES.values(), ids=REFUSED_SERVICES)
def test_service_is_refused_in_the_places_of_the_request(data: dict[str, object], problem: str) -> None:
    limited = config_from_data(to_data(CONFIG) | {"limits": {"wheel_slots": 262_148}})
    with pytest.raises(ConfigError) as error:
        add_service(limited, data)
    assert refused(error) == problem


def test_firewall_is_left_as_it_is() -> None:
    data = {"firewall": {"default": "drop", "rules": [{"name": "a", "action": "accept"}]}}
    config = config_from_data(data)
    added = {"name": "web", "address": "192.0.2.1", "port": 80, "protocol": "tcp"}
    changed = add_service(config, added)
    assert changed.firewall is config.firewall
    assert changed.services[0].name == "web"
