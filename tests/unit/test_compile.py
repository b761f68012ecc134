# SPDX-License-Identifier: Apache-2.0
"""From configurations to rows: ids and places that stay, what drains, and what does not fit this host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address, ip_network

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.compiler import EndpointRow, HostFacts, ServiceRow, Tables, Wheel, compile_tables
from clearway.compiler.allocate import NoRoomError, Request, assign_ids, place_areas
from clearway.compiler.tables import Area
from clearway.model import AddressRange, Config, ConfigError, PortRange, config_from_data, parse_config


@dataclass(frozen=True)
class Sizes:
    """The sizes of a data path that is loaded."""

    max_flows: int = 65_536
    services: int = 256
    endpoints: int = 4096
    nats: int = 256
    rules: int = 2048
    wheel_slots: int = 2_097_152


FACTS = HostFacts(32768, 60999, {"lo": 1, "eth0": 2, "eth1": 3})


def endpoint(last: int, port: int = 8080, **more: object) -> dict[str, object]:
    return {"address": f"10.0.0.{last}", "port": port, **more}


def service(name: str, last: int, endpoints: list[dict[str, object]], **more: object) -> dict[str, object]:
    common: dict[str, object] = {"port": 80, "protocol": "tcp", "maglev_size": 1009}
    return {"name": name, "address": f"203.0.113.{last}", "endpoints": endpoints, **common, **more}


def config(*services: dict[str, object], **sections: object) -> Config:
    return config_from_data({"services": list(services), **sections})


def refused(configuration: Config, facts: HostFacts = FACTS, previous: Tables | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        compile_tables(configuration, facts, previous)
    return str(error.value)


def row(tables: Tables, last: int) -> ServiceRow:
    return tables.service_by_identity[(ip_address(f"203.0.113.{last}"), 80, "tcp")]


def endpoint_id(tables: Tables, service_last: int, last: int) -> int:
    identity = row(tables, service_last).identity
    return tables.endpoint_by_identity[(identity, ip_address(f"10.0.0.{last}"), 8080)].id


def test_first_configuration_gets_the_lowest_ids_and_the_first_slots() -> None:
    tables = compile_tables(
        config(service("a", 1, [endpoint(1), endpoint(2)]), service("b", 2, [endpoint(1)])), FACTS
    )
    assert tables.epoch == 1
    assert [(r.id, r.wheel_base, len(r.wheel)) for r in tables.services] == [(0, 0, 1009), (1, 1009, 1009)]
    assert tables.endpoints == (
        EndpointRow(0, 0, IPv4Address("10.0.0.1"), 8080, draining=False),
        EndpointRow(1, 0, IPv4Address("10.0.0.2"), 8080, draining=False),
        EndpointRow(2, 1, IPv4Address("10.0.0.1"), 8080, draining=False),
    )
    assert set(tables.services[0].wheel.slots.tolist()) == {0, 1}
    assert set(tables.services[1].wheel.slots.tolist()) == {2}


def test_service_keeps_its_ids_and_place_when_others_change() -> None:
    first = compile_tables(
        config(service("a", 1, [endpoint(1)]), service("b", 2, [endpoint(2), endpoint(3)])), FACTS
    )
    second = compile_tables(
        config(service("c", 3, [endpoint(4)]), service("renamed", 2, [endpoint(3), endpoint(2)])),
        FACTS,
        first,
    )
    assert row(second, 2) == row(first, 2)
    assert row(second, 2).wheel is row(first, 2).wheel
    assert endpoint_id(second, 2, 3) == endpoint_id(first, 2, 3)
    # Rows of service a are live until the switch: its ids and slots are not given out yet.
    assert row(second, 3).id == 2
    assert row(second, 3).wheel_base == 2018
    assert endpoint_id(second, 3, 4) == 3
    assert second.epoch == 2


def test_ids_of_services_and_places_are_used_again_one_step_later() -> None:
    first = compile_tables(config(service("a", 1, [endpoint(1)]), service("b", 2, [endpoint(2)])), FACTS)
    second = compile_tables(config(service("b", 2, [endpoint(2)])), FACTS, first)
    third = compile_tables(
        config(service("b", 2, [endpoint(2)]), service("c", 3, [endpoint(3)])), FACTS, second
    )
    assert (row(third, 3).id, row(third, 3).wheel_base) == (0, 0)


def test_ids_that_flows_may_still_name_are_the_last_to_be_used_again() -> None:
    def with_one(number: int) -> Config:
        return config(service("a", 1, [endpoint(number)]), nat=[nat("out", f"10.{number}.0.0/16")])

    tables = compile_tables(with_one(1), FACTS)
    endpoints, rules = [tables.endpoints[0].id], [tables.nats[0].id]
    for number in range(2, 6):
        tables = compile_tables(with_one(number), FACTS, tables)
        endpoints.append(tables.endpoints[0].id)
        rules.append(tables.nats[0].id)
    assert endpoints == rules == [0, 1, 2, 3, 4]


def test_removing_uses_up_no_ids() -> None:
    first = compile_tables(config(service("a", 1, [endpoint(1), endpoint(2)])), FACTS)
    second = compile_tables(config(service("a", 1, [endpoint(1)])), FACTS, first)
    assert (first.next_endpoint, second.next_endpoint) == (2, 2)


def test_changed_wheel_moves_and_unchanged_wheel_stays() -> None:
    first = compile_tables(config(service("a", 1, [endpoint(1)]), service("b", 2, [endpoint(2)])), FACTS)
    second = compile_tables(
        config(service("a", 1, [endpoint(1), endpoint(9)]), service("b", 2, [endpoint(2)])), FACTS, first
    )
    assert row(second, 1).wheel_base == 2018
    assert row(second, 2).wheel_base == row(first, 2).wheel_base
    assert endpoint_id(second, 1, 1) == endpoint_id(first, 1, 1)


def test_wheel_that_was_read_back_keeps_its_place() -> None:
    wanted = config(service("a", 1, [endpoint(1), endpoint(2)]))
    first = compile_tables(wanted, FACTS)
    read = replace(first, services=tuple(replace(r, wheel=Wheel.of(r.wheel.slots)) for r in first.services))
    assert compile_tables(wanted, FACTS, read) == first


def test_draining_endpoint_keeps_its_row_and_leaves_the_wheel() -> None:
    first = compile_tables(config(service("a", 1, [endpoint(1), endpoint(2)])), FACTS)
    for drained in (endpoint(2, drain=True), endpoint(2, weight=0)):
        second = compile_tables(config(service("a", 1, [endpoint(1), drained])), FACTS, first)
        assert [(e.id, e.draining) for e in second.endpoints] == [(0, False), (1, True)]
        assert set(row(second, 1).wheel.slots.tolist()) == {0}


def test_service_without_takers_has_no_wheel() -> None:
    for endpoints in ([], [endpoint(1, drain=True)]):
        tables = compile_tables(config(service("a", 1, endpoints)), FACTS)
        assert (row(tables, 1).wheel_base, len(row(tables, 1).wheel)) == (0, 0)


def test_round_robin_wheel_is_exact_and_out_of_the_way_of_large_ones() -> None:
    endpoints = [endpoint(1, weight=2), endpoint(2, weight=4)]
    tables = compile_tables(config(service("a", 1, endpoints, algorithm="round-robin")), FACTS)
    assert row(tables, 1).wheel.slots.tolist() == [1, 0, 1]
    assert row(tables, 1).wheel_base == Config().limits.wheel_slots - 3


def test_port_makes_another_endpoint() -> None:
    tables = compile_tables(config(service("a", 1, [endpoint(1), endpoint(1, port=8081)])), FACTS)
    assert [(e.id, e.port) for e in tables.endpoints] == [(0, 8080), (1, 8081)]


def test_full_nat_gets_ports_and_nat_has_none() -> None:
    tables = compile_tables(
        config(
            service("a", 1, [], mode="full-nat"),
            service("b", 2, []),
            service("c", 3, [], mode="full-nat", ports="61000-62000"),
        ),
        FACTS,
    )
    assert [r.ports for r in tables.services] == [PortRange(1024, 32767), None, PortRange(61000, 62000)]


def nat(name: str, source: str, interface: str = "eth0", **more: object) -> dict[str, object]:
    return {"name": name, "source": source, "interface": interface, **(more or {"masquerade": True})}


def test_nat_rules_become_rows() -> None:
    rules = [nat("a", "10.0.0.0/8"), nat("b", "fd00::/8", "eth1", pool="2001:db8::/126", ports="1-65535")]
    tables = compile_tables(config(nat=rules), FACTS)
    assert [(n.id, n.source, n.ifindex, n.pool, n.ports) for n in tables.nats] == [
        (0, ip_network("10.0.0.0/8"), 2, None, PortRange(1024, 32767)),
        (1, ip_network("fd00::/8"), 3, AddressRange(ip_address("2001:db8::"), 4), PortRange(1, 65535)),
    ]


def test_nat_rule_keeps_its_id() -> None:
    first = compile_tables(config(nat=[nat("a", "10.0.0.0/8"), nat("b", "10.1.0.0/16")]), FACTS)
    second = compile_tables(
        config(nat=[nat("c", "10.2.0.0/16"), nat("b", "10.1.0.0/16", pool="192.0.2.1")]), FACTS, first
    )
    assert {str(n.source): n.id for n in second.nats} == {"10.1.0.0/16": 1, "10.2.0.0/16": 2}


def test_epoch_is_never_zero_and_always_of_the_other_parity() -> None:
    assert [Tables(epoch=epoch).next_epoch for epoch in (0, 1, 2, 0xFFFF_FFFE, 0xFFFF_FFFF)] == [
        1,
        2,
        3,
        0xFFFF_FFFF,
        2,
    ]


@pytest.mark.parametrize(
    ("local", "free"),
    [
        ((32768, 60999), PortRange(1024, 32767)),
        ((1024, 40000), PortRange(40001, 65535)),
        ((1024, 65535), None),
        ((1, 65535), None),
        ((15000, 64999), PortRange(1024, 14999)),
        ((1, 1000), PortRange(1024, 65535)),
        ((65535, 65535), PortRange(1024, 65534)),
    ],
)
def test_ports_stay_clear_of_the_hosts_own(local: tuple[int, int], free: PortRange | None) -> None:
    facts = HostFacts(*local, FACTS.interfaces)
    assert facts.free_ports() == free
    if free is not None:
        tables = compile_tables(config(nat=[nat("a", "10.0.0.0/8")]), facts)
        assert tables.nats[0].ports == free


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_free_ports_are_the_largest_range_there_is(one: int, other: int) -> None:
    facts = HostFacts(min(one, other), max(one, other), {})
    free = [port for port in range(1024, 65536) if not facts.local_port_min <= port <= facts.local_port_max]
    ports = facts.free_ports()
    if ports is None:
        assert not free
    else:
        assert not ports.overlaps(facts.local_ports)
        assert set(free) >= {ports.first, ports.last}
        below = sum(port < facts.local_port_min for port in free)
        assert len(ports) == max(below, len(free) - below)


# ---- what does not fit this host ----


def test_interface_that_is_not_there_is_refused_with_its_line() -> None:
    text = "interfaces:\n  - name: eth7\nnat:\n  - name: out\n    source: 10.0.0.0/8\n"
    text += "    interface: eth8\n    masquerade: true\n"
    fix = "create it first, or use one of: eth0, eth1, lo"
    assert refused(parse_config(text)).splitlines() == [
        f"interfaces[0].name (line 2): there is no interface eth7 in this network namespace; {fix}",
        f"nat[0].interface (line 6): there is no interface eth8 in this network namespace; {fix}",
    ]


@pytest.mark.parametrize("ports", ["1024-32768", "60999-61000", "1-65535", "40000-50000"])
def test_masquerade_with_a_port_the_host_may_use_is_refused(ports: str) -> None:
    rule = nat("a", "10.0.0.0/8", masquerade=True, ports=ports)
    assert refused(config(nat=[rule])) == (
        f"nat[0].ports: {ports} overlaps the host's own ports 32768-60999 (net.ipv4.ip_local_port_range); "
        "use 1024-32767 or a part of it"
    )


def test_full_nat_with_a_port_the_host_may_use_is_refused() -> None:
    message = refused(config(service("a", 1, [], mode="full-nat", ports="1024-40000")))
    assert message.startswith("services[0].ports: 1024-40000 overlaps the host's own ports 32768-60999")


def test_pool_may_use_any_port() -> None:
    rule = nat("a", "10.0.0.0/8", pool="192.0.2.1", ports="1-65535")
    assert compile_tables(config(nat=[rule]), FACTS).nats[0].ports == PortRange(1, 65535)


def test_host_that_leaves_no_ports_is_refused() -> None:
    facts = HostFacts(1024, 65535, FACTS.interfaces)
    assert refused(config(nat=[nat("a", "10.0.0.0/8")]), facts) == (
        "nat[0].ports: no ports of 1024-65535 are clear of the host's own ports 1024-65535 "
        "(net.ipv4.ip_local_port_range); narrow that range with sysctl"
    )


def test_flow_table_that_would_not_hold_the_connections_is_refused() -> None:
    smaller = config(conntrack={"max_flows": 1024})
    facts = replace(FACTS, sizes=Sizes(), flows=1024)
    compile_tables(smaller, facts)
    assert refused(smaller, replace(facts, flows=1025)) == (
        "conntrack.max_flows: a flow table for 1,024 would not hold the 1,025 connections that there are; "
        "use more, or apply it again when there are fewer"
    )


def test_data_path_that_was_loaded_smaller_is_told_with_the_needed_figure() -> None:
    facts = replace(FACTS, sizes=Sizes(services=1, endpoints=1, nats=1, wheel_slots=2018))
    wanted = config(
        service("a", 1, [endpoint(1), endpoint(2)]),
        service("b", 2, [endpoint(3)]),
        nat=[nat("a", "10.0.0.0/8"), nat("b", "10.0.0.0/9")],
    )
    fix = "run `clearway down`, then `clearway run` with"
    assert refused(wanted, facts).splitlines() == [
        f"limits.services: the data path was loaded with 1, this configuration needs 2; {fix} 2 or more",
        f"limits.endpoints: the data path was loaded with 1, this configuration needs 3; {fix} 3 or more",
        f"limits.nats: the data path was loaded with 1, this configuration needs 2; {fix} 2 or more",
        "limits.wheel_slots: the data path was loaded with 2018, this configuration needs 4036; "
        f"{fix} 4036 or more",
    ]


def test_exchanging_more_endpoints_than_have_room_is_refused() -> None:
    sizes = replace(FACTS, sizes=Sizes(endpoints=3))
    first = compile_tables(config(service("a", 1, [endpoint(1), endpoint(2)])), sizes)
    message = refused(config(service("a", 1, [endpoint(3), endpoint(4)])), sizes, first)
    assert message == (
        "limits.endpoints: this change needs room for 4 endpoints, those that go and those that come, "
        "and there is room for 3; remove the old ones first, in a step of its own"
    )
    between = compile_tables(config(service("a", 1, [endpoint(3)])), sizes, first)
    assert [
        e.id
        for e in compile_tables(config(service("a", 1, [endpoint(3), endpoint(4)])), sizes, between).endpoints
    ] == [
        0,
        2,
    ]


def test_all_services_can_be_exchanged_at_once() -> None:
    sizes = replace(FACTS, sizes=Sizes(services=2))
    first = compile_tables(config(service("a", 1, []), service("b", 2, [])), sizes)
    second = compile_tables(config(service("c", 3, []), service("d", 4, [])), sizes, first)
    assert [r.id for r in second.services] == [0, 1]


def test_room_for_wheels_that_is_in_pieces_is_refused_with_the_sizes() -> None:
    sizes = replace(FACTS, sizes=Sizes(wheel_slots=4 * 1009))
    one, two = service("a", 1, [endpoint(1)]), service("b", 2, [endpoint(2)])
    first = compile_tables(config(one, two), sizes)
    moved = compile_tables(config(service("a", 1, [endpoint(9)]), two), sizes, first)
    assert [r.wheel_base for r in moved.services] == [2018, 1009]
    large = config(service("c", 3, [endpoint(3)], maglev_size=2003))
    assert refused(large, sizes, moved) == (
        "limits.wheel_slots: no free piece of the 4036 wheel slots holds a wheel of 2003, "
        "the largest has 1009; "
        "change fewer services at a time, or run `clearway down`, then `clearway run` with more slots"
    )
    nothing = compile_tables(config(), sizes, moved)
    assert compile_tables(large, sizes, nothing).services[0].wheel_base == 0


# ---- allocation ----


def test_ids_are_kept_or_the_next_that_nobody_holds() -> None:
    assert assign_ids(["new", "b", "newer"], {"a": 0, "b": 2}, 9) == ({"new": 1, "b": 2, "newer": 3}, 4)
    assert assign_ids(["b", "new"], {"b": 2}, 9, 5) == ({"b": 2, "new": 5}, 6)
    assert assign_ids(["b"], {"a": 0, "b": 2}, 9, 5) == ({"b": 2}, 5)


def test_ids_go_round() -> None:
    assert assign_ids(["b", "c", "d"], {"a": 0, "b": 2}, 4, 3) == ({"b": 2, "c": 3, "d": 1}, 2)
    assert assign_ids(["c", "d"], {}, 4, 4) == ({"c": 0, "d": 1}, 2)


def test_ids_beyond_the_size_are_refused() -> None:
    with pytest.raises(NoRoomError) as full:
        assign_ids(["c", "d"], {"a": 0, "b": 1}, 3)
    assert (full.value.needed, full.value.available) == (4, 3)


AREAS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=6)
REQUESTS = st.lists(st.builds(Request, st.integers(1, 40), st.booleans()), max_size=6)


@given(AREAS, REQUESTS)
def test_areas_overlap_nothing(gaps_and_sizes: list[tuple[int, int]], requests: list[Request]) -> None:
    occupied, base = [], 0
    for gap, size in gaps_and_sizes:
        occupied.append(Area(base + gap, size))
        base += gap + size
    slots = base + 60
    try:
        bases = place_areas(requests, occupied, slots)
    except NoRoomError as full:
        assert full.available < full.needed
        return
    placed = [Area(base, request.size) for base, request in zip(bases, requests, strict=True)]
    used = [slot for area in occupied + placed for slot in range(area.base, area.end)]
    assert len(used) == len(set(used))
    assert all(0 <= slot < slots for slot in used)


# ---- chains of configurations ----


@st.composite
def chain(draw: st.DrawFn) -> list[Config]:
    def one() -> Config:
        services = []
        for last in draw(st.lists(st.integers(1, 5), unique=True, max_size=4)):
            endpoints = [
                endpoint(n, weight=draw(st.integers(0, 3)), drain=draw(st.booleans()))
                for n in draw(st.lists(st.integers(1, 6), unique=True, max_size=4))
            ]
            algorithm = draw(st.sampled_from(["maglev", "round-robin"]))
            size = draw(st.sampled_from([1201, 1301]))
            services.append(service(f"s{last}", last, endpoints, algorithm=algorithm, maglev_size=size))
        rules = [nat(f"n{n}", f"10.{n}.0.0/16") for n in draw(st.lists(st.integers(1, 4), unique=True))]
        return config(*services, nat=rules, limits={"services": 8, "endpoints": 64, "wheel_slots": 20000})

    return [one() for _ in range(draw(st.integers(2, 4)))]


def check_rows(tables: Tables) -> None:
    """What must hold of rows by themselves."""
    assert len({r.id for r in tables.services}) == len(tables.services)
    assert len({r.id for r in tables.endpoints}) == len(tables.endpoints)
    assert len({r.id for r in tables.nats}) == len(tables.nats)
    assert all(r.id < 8 for r in tables.services)
    assert all(r.id < 64 for r in tables.endpoints)
    slots = [slot for r in tables.services for slot in range(r.area.base, r.area.end)]
    assert len(slots) == len(set(slots))
    assert all(0 <= slot < 20000 for slot in slots)
    for r in tables.services:
        takers = {e.id for e in tables.endpoints if e.service == r.id and not e.draining}
        assert set(np.unique(r.wheel.slots).tolist()) == takers


def check_swap(before: Tables, after: Tables) -> None:
    """What must hold of rows that replace others while both are in the tables."""
    for identity, r in after.service_by_identity.items():
        old = before.service_by_identity.get(identity)
        if old is not None:
            assert r.id == old.id
        if old is not None and old.wheel == r.wheel:
            assert r.wheel_base == old.wheel_base
        else:
            for live in before.services:
                assert r.area.end <= live.area.base or live.area.end <= r.area.base or not len(r.wheel)
    held = {e.id for e in before.endpoints}
    for key, e in after.endpoint_by_identity.items():
        earlier = before.endpoint_by_identity.get(key)
        assert (e.id == earlier.id) if earlier else (e.id not in held)
    for rule, n in after.nat_by_identity.items():
        kept = before.nat_by_identity.get(rule)
        assert (n.id == kept.id) if kept else (n.id not in {m.id for m in before.nats})


@settings(max_examples=40)
@given(chain())
def test_any_chain_of_configurations(configs: list[Config]) -> None:
    tables = Tables()
    for step in configs:
        after = compile_tables(step, FACTS, tables)
        assert compile_tables(step, FACTS, tables) == after
        check_rows(after)
        check_swap(tables, after)
        again = compile_tables(step, FACTS, after)
        assert again == after
        tables = after
