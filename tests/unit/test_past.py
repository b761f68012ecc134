# SPDX-License-Identifier: Apache-2.0
"""Names that outlive what they name."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from clearway.compiler import Tables, compile_tables
from clearway.daemon import past
from clearway.daemon.past import PastNames, ServiceKey
from clearway.model import Config
from tests.unit.test_compile import FACTS, config, endpoint, nat, service


def with_one(name: str, number: int, source: str = "10.0.0.0/8") -> Config:
    return config(service(name, number, [endpoint(1)]), nat=[nat(name, source)])


def names_after(*configurations: Config) -> PastNames:
    names, tables = PastNames(), Tables()
    for one in configurations:
        tables = compile_tables(one, FACTS, tables)
        names = names.then(one, tables, FACTS.interfaces)
    return names


def key(number: int) -> ServiceKey:
    return (4, ip_address(f"203.0.113.{number}").packed.ljust(16, b"\0"), 80, 6)


def test_what_was_removed_keeps_its_name() -> None:
    names = names_after(with_one("a", 1), with_one("b", 2, "10.2.0.0/16"), config())
    assert names == PastNames({key(1): "a", key(2): "b"}, {0: "a", 1: "b"})


def test_what_was_renamed_has_its_new_name() -> None:
    names = names_after(with_one("a", 1), with_one("b", 1))
    assert names == PastNames({key(1): "b"}, {0: "b"})


def test_rule_that_was_removed_lends_its_name_to_no_other() -> None:
    names = names_after(with_one("a", 1), config(), with_one("b", 1, "10.2.0.0/16"))
    assert names.nats == {0: "a", 1: "b"}


def test_oldest_names_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "KEPT", 2)
    names = names_after(*(with_one(f"s{number}", number) for number in range(1, 6)))
    assert list(names.services.values()) == ["s3", "s4", "s5"]


def test_rule_that_waits_for_its_interface_has_no_name_yet() -> None:
    configured = config(nat=[nat("out", "10.0.0.0/8", "eth1")])
    assert PastNames().then(configured, Tables(), {}) == PastNames()
