# SPDX-License-Identifier: Apache-2.0
"""Plans: what people and programs are told before anything is touched."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.compiler import HostFacts, Plan, Tables, compile_tables, plan_configs, plan_tables
from clearway.model import ConfigError, config_from_data, parse_config
from tests.unit.test_compile import Sizes

FACTS = HostFacts(32768, 60999, {"eth0": 2, "eth1": 3}, cpus=2)

BEFORE = """\
interfaces:
  - {name: eth0, hook: xdp}
services:
  - name: web
    address: 203.0.113.10
    port: 80
    protocol: tcp
    endpoints:
      - {address: 10.0.0.2, port: 8080}
      - {address: 10.0.0.3, port: 8080}
      - {address: 10.0.0.4, port: 8080}
  - {name: dns, address: "2001:db8::10", port: 53, protocol: udp, endpoints: [{address: "fd00::2", port: 53}]}
nat:
  - {name: out, source: 10.0.0.0/8, interface: eth0, masquerade: true}
conntrack: {max_flows: 4096, timeouts: {udp: 60s}}
limits: {wheel_slots: 300000}
"""

AFTER = """\
interfaces:
  - {name: eth0, hook: tc}
  - {name: eth1}
services:
  - name: www
    address: 203.0.113.10
    port: 80
    protocol: tcp
    algorithm: round-robin
    endpoints:
      - {address: 10.0.0.2, port: 8080, weight: 2}
      - {address: 10.0.0.3, port: 8080, drain: true}
      - {address: 10.0.0.5, port: 8080}
  - name: api
    address: 203.0.113.11
    port: 443
    protocol: tcp
    mode: full-nat
    endpoints: [{address: 10.0.0.2, port: 443}]
nat:
  - {name: out, source: 10.0.0.0/8, interface: eth0, pool: 198.51.100.8/29, ports: 1024-2000}
conntrack: {max_flows: 8192, timeouts: {udp: 90s}, midstream: drop}
limits: {wheel_slots: 300000, services: 300}
"""


def lines(plan: Plan) -> list[str]:
    return plan.human().splitlines()


def test_nothing_to_change() -> None:
    config = parse_config(BEFORE)
    plan = plan_configs(config, parse_config("# moved\n" + BEFORE), FACTS)
    assert plan.empty
    assert plan.human() == plan.summary() == "nothing to change"
    assert plan.to_dict()["changes"] == []


def test_first_configuration() -> None:
    plan = plan_configs(None, parse_config(BEFORE), FACTS)
    assert lines(plan)[:6] == [
        "+ interface eth0 hook xdp",
        "+ service web 203.0.113.10:80/tcp -> 3 endpoints",
        "+ service dns [2001:db8::10]:53/udp -> 1 endpoint",
        "+ nat out 10.0.0.0/8 on eth0 -> masquerade, ports automatic",
        "",
        "plan: 4 to add, 0 to change, 0 to remove",
    ]


def test_change_of_everything() -> None:
    plan = plan_configs(parse_config(BEFORE), parse_config(AFTER), FACTS)
    restart = "only after `clearway down` and a new `clearway run`; until then the running size holds"
    assert lines(plan)[:-1] == [
        "- service dns [2001:db8::10]:53/udp",
        "~ interface eth0",
        "    ~ hook: xdp -> tc",
        "+ interface eth1 hook auto",
        "~ service www 203.0.113.10:80/tcp",
        "    ~ name: web -> www",
        "    ~ algorithm: maglev -> round-robin",
        "    ~ maglev_size: 65537 -> none",
        "    - endpoint 10.0.0.4:8080",
        "    ~ endpoint 10.0.0.2:8080 weight: 1 -> 2",
        "    ~ endpoint 10.0.0.3:8080 drain: no -> yes",
        "    + endpoint 10.0.0.5:8080 weight 1",
        "+ service api 203.0.113.11:443/tcp -> 1 endpoint",
        "~ nat out 10.0.0.0/8 on eth0",
        "    ~ to: masquerade -> 198.51.100.8-198.51.100.15",
        "    ~ ports: automatic -> 1024-2000",
        "~ timeout udp: 1m -> 1m30s",
        "~ conntrack midstream: pick-up -> drop",
        "~ limit conntrack.max_flows: 4096 -> 8192",
        f"! limit limits.services: 256 -> 300, {restart}",
        "",
        "plan: 2 to add, 6 to change, 1 to remove, 1 after a restart",
    ]


def test_json_form_says_the_same() -> None:
    plan = json.loads(json.dumps(plan_configs(parse_config(BEFORE), parse_config(AFTER), FACTS).to_dict()))
    assert not plan["empty"]
    assert plan["summary"] == "2 to add, 6 to change, 1 to remove, 1 after a restart"
    web = next(change for change in plan["changes"] if change["name"] == "www")
    assert (web["action"], web["kind"], web["title"]) == ("change", "service", "www 203.0.113.10:80/tcp")
    assert web["fields"]["algorithm"] == {"before": "maglev", "after": "round-robin"}
    assert [(child["action"], child["name"]) for child in web["children"]] == [
        ("remove", "10.0.0.4:8080"),
        ("change", "10.0.0.2:8080"),
        ("change", "10.0.0.3:8080"),
        ("add", "10.0.0.5:8080"),
    ]
    assert plan["memory"]["full_bytes"] > plan["memory"]["empty_bytes"] > 0


def test_order_of_listing_is_no_change() -> None:
    config = parse_config(BEFORE)
    turned = config.model_copy(update={"services": config.services[::-1]})
    assert plan_configs(config, turned, FACTS).empty


MANY = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(2000)]
SETS: dict[str, tuple[list[object], list[object], str]] = {
    "few members": (
        ["10.1.0.0/16", "10.1.1.0/24", "2001:db8::1"],
        ["10.1.0.0/16", "10.1.2.0/24", "2001:db8::1"],
        "+10.1.2.0/24 -10.1.1.0/24",
    ),
    "few of many": (
        [*MANY],
        [*MANY[4:], "192.0.2.1", "2001:db8::/32"],
        "+192.0.2.1/32 +2001:db8::/32 -10.0.0.0/24 -10.0.1.0/24 -10.0.2.0/24 -10.0.3.0/24",
    ),
    "eight of many": ([*MANY], [*MANY[8:]], " ".join(f"-{prefix}" for prefix in MANY[:8])),
    "many members": (
        [*MANY],
        [*MANY[3:], *(f"192.0.2.{n}" for n in range(6))],
        "2,000 prefixes -> 2,003 prefixes (+6 -3)",
    ),
    "ports": ([80, "8000-8100", 443], [443, "8000-8200"], "+8000-8200 -80 -8000-8100"),
    "another kind": ([80], ["192.0.2.0/24"], "+192.0.2.0/24 -80"),
    "emptied": (["192.0.2.0/24"], [], "-192.0.2.0/24"),
}


@pytest.mark.parametrize(("before", "after", "expected"), SETS.values(), ids=SETS)
def test_change_of_a_set_names_members_or_counts_them(
    before: list[object], after: list[object], expected: str
) -> None:
    running, desired = (config_from_data({"firewall": {"sets": {"s": given}}}) for given in (before, after))
    plan = plan_configs(running, desired, FACTS)
    assert lines(plan)[:2] == ["~ set s", f"    ~ members: {expected}"]


def test_set_in_json_has_sizes_and_what_tells_its_content() -> None:
    running, desired = (
        config_from_data({"firewall": {"sets": {"s": [member]}}}) for member in ("10.1.0.0/16", "10.2.0.0/16")
    )
    (change,) = plan_configs(running, desired, FACTS).changes
    members = json.loads(json.dumps(change.to_dict()))["fields"]["members"]
    assert members["before"].startswith("1 prefix (") and members["after"].startswith("1 prefix (")
    assert members["before"] != members["after"]


def test_order_within_a_set_is_no_change() -> None:
    running, desired = (
        config_from_data({"firewall": {"sets": {"s": given}}}) for given in (MANY, MANY[::-1])
    )
    assert plan_configs(running, desired, FACTS).empty


def test_sizes_are_compared_with_the_data_path_that_is_loaded() -> None:
    config = parse_config(BEFORE)
    facts = replace(FACTS, sizes=Sizes(max_flows=4096, services=300, wheel_slots=300_000))
    plan = plan_configs(config, config, facts)
    assert [change.title for change in plan.needs_restart] == ["limits.services"]
    assert plan.changes == plan.needs_restart
    assert lines(plan)[0].startswith("! limit limits.services: 300 -> 256, only after `clearway down`")
    assert plan.summary() == "0 to add, 0 to change, 0 to remove, 1 after a restart"
    running = compile_tables(config, facts)
    assert plan_tables(running, running, config, facts).changes == plan.changes


def test_first_plan_over_tables_that_were_never_configured() -> None:
    config = parse_config(BEFORE)
    plan = plan_tables(Tables(), compile_tables(config, FACTS), config, FACTS)
    assert lines(plan)[:3] == [
        "+ service web 203.0.113.10:80/tcp -> 3 endpoints",
        "+ service dns [2001:db8::10]:53/udp -> 1 endpoint",
        "+ nat out 10.0.0.0/8 on eth0 -> masquerade, ports 1024-32767",
    ]


def test_change_of_tables_shows_shares() -> None:
    after = parse_config(AFTER)
    running = compile_tables(parse_config(BEFORE), FACTS)
    plan = plan_tables(running, compile_tables(after, FACTS, running), after, FACTS)
    assert lines(plan)[:-3] == [
        "- service [2001:db8::10]:53/udp",
        "~ service www 203.0.113.10:80/tcp",
        "    ~ algorithm: maglev -> round-robin",
        "    ~ slots: 65537 -> 3",
        "    - endpoint 10.0.0.4:8080",
        "    ~ endpoint 10.0.0.2:8080 share: 33.3% -> 66.7%",
        "    ~ endpoint 10.0.0.3:8080 share: 33.3% -> 0.0%, drain: no -> yes",
        "    + endpoint 10.0.0.5:8080 33.3%",
        "+ service api 203.0.113.11:443/tcp -> 1 endpoint",
        "~ nat out 10.0.0.0/8 on eth0",
        "    ~ to: masquerade -> 198.51.100.8-198.51.100.15",
        "    ~ ports: 1024-32767 -> 1024-2000",
        "~ timeout udp: 1m -> 1m30s",
        "~ conntrack midstream: pick-up -> drop",
    ]


def test_tables_of_the_same_configuration_have_nothing_to_change() -> None:
    config = parse_config(BEFORE)
    running = compile_tables(config, FACTS)
    assert plan_tables(running, compile_tables(config, FACTS, running), config, FACTS).empty


@settings(max_examples=25)
@given(st.sampled_from([BEFORE, AFTER]), st.sampled_from([BEFORE, AFTER]))
def test_plan_is_empty_exactly_when_nothing_differs(one: str, other: str) -> None:
    assert plan_configs(parse_config(one), parse_config(other), FACTS).empty == (one == other)


# ---- sizes that the machine has no memory for ----


def larger(text: str) -> str:
    return text.replace("max_flows: 4096", "max_flows: 67108864")


def test_flow_table_that_does_not_fit_is_refused_before_anything_is_touched() -> None:
    facts = replace(FACTS, memory_bytes=1 << 30)
    for running in (None, parse_config(BEFORE)):
        with pytest.raises(
            ConfigError, match=r"conntrack\.max_flows \(line 15\): with 67108864 the tables need"
        ):
            plan_configs(running, parse_config(larger(BEFORE)), facts)


def test_change_of_other_things_does_not_ask_for_memory() -> None:
    """What was taken when there was memory for it stays, also while a table of the new size is being made."""
    facts = replace(FACTS, memory_bytes=1 << 20, sizes=Sizes(max_flows=4096, wheel_slots=300_000))
    assert not plan_configs(
        parse_config(larger(BEFORE)), parse_config(larger(BEFORE) + "# moved"), facts
    ).count("add")


def test_plan_without_knowledge_of_the_memory_refuses_nothing() -> None:
    assert plan_configs(None, parse_config(larger(BEFORE)), FACTS).count("add") == 4
