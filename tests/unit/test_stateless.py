# SPDX-License-Identifier: Apache-2.0
"""Which services can do without entries in the flow table."""

from __future__ import annotations

import pytest

from clearway.compiler import HostFacts, compile_tables
from clearway.compiler.tables import Tables
from clearway.model import ConfigError, parse_config

FACTS = HostFacts(32768, 60999, {"eth0": 2})


def service(name: str, address: str, *endpoints: str, port: int = 80, extra: str = "") -> str:
    listed = ", ".join(f"{{address: '{one}', port: 8080}}" for one in endpoints)
    extra += "" if "protocol" in extra else ", protocol: tcp"
    return f"  - {{name: {name}, address: '{address}', port: {port}, endpoints: [{listed}]{extra}}}\n"


def tables(*services: str, policy: str = "stateless") -> Tables:
    text = f"conntrack: {{when_full: {policy}}}\nservices:\n{''.join(services)}"
    return compile_tables(parse_config(text), FACTS)


def names(found: Tables) -> dict[str, str]:
    return {
        f"{address}:{port}/{protocol}": str(row.address)
        for (address, port, protocol), row in found.origins.items()
    }


def test_endpoints_lead_back_to_their_service() -> None:
    found = tables(service("a", "192.0.2.1", "10.0.0.1", "10.0.0.2"), service("b", "2001:db8::1", "fd00::1"))
    assert names(found) == {
        "10.0.0.1:8080/tcp": "192.0.2.1",
        "10.0.0.2:8080/tcp": "192.0.2.1",
        "fd00::1:8080/tcp": "2001:db8::1",
    }


def test_service_that_shares_one_endpoint_needs_entries() -> None:
    found = tables(
        service("a", "192.0.2.1", "10.0.0.1", "10.0.0.2"),
        service("b", "192.0.2.2", "10.0.0.2"),
        service("c", "192.0.2.3", "10.0.0.3"),
    )
    assert names(found) == {"10.0.0.3:8080/tcp": "192.0.2.3"}


def test_endpoints_of_other_protocols_are_other_endpoints() -> None:
    found = tables(
        service("a", "192.0.2.1", "10.0.0.1"), service("b", "192.0.2.1", "10.0.0.1", extra=", protocol: udp")
    )
    assert set(names(found)) == {"10.0.0.1:8080/tcp", "10.0.0.1:8080/udp"}


@pytest.mark.parametrize("extra", [", mode: full-nat", ", algorithm: round-robin"])
def test_other_modes_and_algorithms_need_entries(extra: str) -> None:
    assert names(tables(service("a", "192.0.2.1", "10.0.0.1", extra=extra))) == {}


def test_endpoint_that_drains_still_answers() -> None:
    text = service("a", "192.0.2.1", "10.0.0.1").replace("port: 8080}", "port: 8080, drain: true}")
    assert names(tables(text)) == {"10.0.0.1:8080/tcp": "192.0.2.1"}


def test_without_the_policy_there_are_none() -> None:
    assert names(tables(service("a", "192.0.2.1", "10.0.0.1"), policy="drop")) == {}


@pytest.mark.parametrize("midstream", ["drop", "reset"])
def test_stateless_without_pick_up_is_refused(midstream: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(f"conntrack:\n  when_full: stateless\n  midstream: {midstream}\n")
    assert str(error.value).startswith("conntrack.when_full (line 2): ")
    assert str(error.value).endswith(f"and that is {midstream}; set midstream: pick-up, or when_full: drop")
