# SPDX-License-Identifier: Apache-2.0
"""Applying: traffic sees the old or the new configuration at every moment, whichever write fails."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from clearway.compiler import HostFacts, Tables, compile_tables
from clearway.daemon.apply import Applied, apply_tables, read_tables
from clearway.datapath.errors import DatapathError
from clearway.model import Config
from tests.unit.fake_tables import (
    CLAIM,
    CONFIG,
    ENDPOINT,
    ENUMS,
    NAT,
    NAT_KEY,
    OPENED,
    SERVICE,
    SERVICE_KEY,
    FakeDatapath,
    Killed,
)
from tests.unit.test_compile import FACTS, Sizes, chain, config, endpoint, nat, service

BEFORE = config(
    service("a", 1, [endpoint(1), endpoint(2), endpoint(3, drain=True)], algorithm="round-robin"),
    service("b", 2, [endpoint(1)], maglev_size=101),
    nat=[nat("n", "10.0.0.0/8"), nat("m", "10.1.0.0/16", pool="192.0.2.1")],
)
AFTER = config(
    service("a", 1, [endpoint(1), endpoint(2, drain=True), endpoint(3)], algorithm="round-robin"),
    service("c", 3, [endpoint(4), endpoint(5, weight=0)], mode="full-nat", maglev_size=101),
    nat=[nat("n", "10.0.0.0/8", "eth1")],
    conntrack={"timeouts": {"udp": "90s"}, "midstream": "drop"},
)


def visible(fake: FakeDatapath) -> dict[str, object]:
    """What packets would meet: found as the data path finds it, from the epoch on."""
    epoch = fake.epoch
    services = {}
    for key, value in zip(*fake.table("service_v2").items(), strict=True):
        if key["epoch"] == epoch:
            slots = np.arange(value["wheel_base"], value["wheel_base"] + value["wheel_slots"])
            ids = fake.table("wheel_v1").lookup(slots)[0]
            takers = fake.table("endpoint_v1").lookup(ids)[0]
            wheel = [
                (e["address"].tobytes(), int(e["port"]), int(e["state"]), int(e["service"])) for e in takers
            ]
            plain = [value[name].tobytes() for name in ("id", "mode", "algorithm", "port_min", "port_max")]
            services[key["address"].tobytes(), int(key["port"])] = (plain, wheel)
    rules = {
        key.tobytes()[8:] + key["prefixlen"].tobytes(): value.tobytes()
        for key, value in zip(*fake.table("nat_v2").items(), strict=True)
        if key["epoch"] == epoch
    }
    settings_row = fake.table("config_v4").lookup([epoch & 1])[0][0].tobytes()[4:]  # after its epoch
    return {"services": services, "rules": rules, "settings": settings_row if epoch else b""}


def flows_go_on(fake: FakeDatapath, tables: Tables) -> bool:
    """Whether each endpoint of `tables` has a row that flows accept (service_keeps, bpf/service.h)."""
    rows = fake.table("endpoint_v1").lookup([e.id for e in tables.endpoints])[0]
    return all(
        row["state"] != 0 and row["service"] == e.service and row["address"].tobytes()[:4] == e.address.packed
        for row, e in zip(rows, tables.endpoints, strict=True)
    )


def content(fake: FakeDatapath) -> dict[str, object]:
    """Every row of every table, except for slots that no wheel has."""
    used = {slot for row in read_tables(fake).services for slot in range(row.area.base, row.area.end)}
    wheel = fake.table("wheel_v1").items()[1]
    rest = {name: dict(table.content) for name, table in fake.tables.items() if name != "wheel_v1"}
    return rest | {"wheel": {slot: int(wheel[slot]) for slot in used}}


def facts_of(fake: FakeDatapath) -> HostFacts:
    slots = fake.table("wheel_v1").max_entries
    return replace(FACTS, sizes=Sizes(services=8, endpoints=64, nats=8, wheel_slots=slots))


def put(fake: FakeDatapath, wanted: Config, previous: Tables) -> Applied:
    return apply_tables(fake, previous, compile_tables(wanted, facts_of(fake), previous), wait=lambda: None)


def started(wanted: Config = BEFORE) -> tuple[FakeDatapath, Tables]:
    fake = FakeDatapath(wheel_slots=1000)
    return fake, put(fake, wanted, read_tables(fake)).tables


def writes_of_apply() -> int:
    fake, previous = started()
    fake.writes.count = 0
    put(fake, AFTER, previous)
    return fake.writes.count


def switch_of_apply() -> int:
    """How many writes come before the switch."""
    fake, previous = started()
    fake.writes.log.clear()
    put(fake, AFTER, previous)
    return fake.writes.log.index("switch")


def test_what_was_applied_is_read_back() -> None:
    fake, tables = started()
    assert read_tables(fake) == tables
    assert read_tables(fake).epoch == tables.epoch == 1
    second = put(fake, AFTER, tables)
    assert second.switched
    assert second.leftover is None
    assert read_tables(fake) == second.tables
    assert fake.active() == (2, 7)


def test_restart_goes_on_with_ids_where_the_daemon_before_it_left_off() -> None:
    def with_endpoints(*numbers: int) -> Config:
        return config(service("a", 1, [endpoint(number) for number in numbers], maglev_size=211))

    fake, _tables = started(with_endpoints(1, 2))
    put(fake, with_endpoints(1), read_tables(fake))
    tables = put(fake, with_endpoints(1, 3), read_tables(fake)).tables
    assert [row.id for row in tables.endpoints] == [0, 2]


def test_fresh_data_path_reads_as_never_configured() -> None:
    assert read_tables(FakeDatapath()) == Tables()
    assert read_tables(FakeDatapath()).epoch == 0


def test_empty_configuration_is_configured_too() -> None:
    fake, tables = started(config())
    assert (fake.epoch, tables.epoch) == (1, 1)
    row = fake.table("config_v4").lookup([1])[0][0]
    assert row["timeout_ms"][fake.enum("timeout")["TIMEOUT_TCP_ESTABLISHED"]] == 7_440_000


def test_applying_the_same_again_writes_nothing() -> None:
    fake, tables = started()
    fake.writes.count = 0
    again = put(fake, BEFORE, tables)
    assert (again.switched, again.tables, fake.writes.count, fake.epoch) == (False, tables, 0, 1)
    restarted = put(fake, BEFORE, read_tables(fake))
    assert (restarted.switched, fake.writes.count) == (False, 0)


def test_traffic_sees_the_old_or_the_new_at_every_write() -> None:
    fake, previous = started()
    desired = compile_tables(AFTER, facts_of(fake), previous)
    old, seen = visible(fake), []

    def watch() -> None:
        now = visible(fake)
        seen.append(now)
        if fake.epoch == previous.epoch:
            assert now == old
            assert flows_go_on(fake, previous)

    fake.writes.watch = watch
    waited = []
    apply_tables(
        fake, previous, desired, wait=lambda: waited.append((fake.epoch, flows_go_on(fake, previous)))
    )
    new = visible(fake)
    assert old != new
    assert waited == [(2, True)], "nothing of the old is removed before its packets are through"
    assert all(one in (old, new) for one in seen)
    assert len(seen) == writes_of_apply()


@pytest.mark.parametrize("lasting", [False, True], ids=["one write fails", "every write fails from then on"])
def test_failure_before_the_switch_changes_nothing(lasting: bool) -> None:
    """At every write: the old configuration stays, nothing is left behind, and the next apply works."""
    fresh, first = started()
    clean = visible_after(fresh, first)
    for number in range(switch_of_apply() + 1):
        fake, previous = started()
        old, rows = visible(fake), content(fake)
        fake.writes.count, fake.writes.fail_at, fake.writes.and_after = 0, number, lasting
        with pytest.raises(DatapathError, match="no memory"):
            put(fake, AFTER, previous)
        assert fake.epoch == previous.epoch
        assert visible(fake) == old
        assert flows_go_on(fake, previous)
        fake.writes.fail_at = None
        if not lasting:
            assert content(fake) == rows, f"write {number} left rows behind"
        assert put(fake, AFTER, previous).leftover is None
        assert visible(fake) == clean


@pytest.mark.parametrize("wanted", [BEFORE, AFTER], ids=["same rows", "other rows"])
def test_failed_exchange_of_flow_tables_changes_nothing(wanted: Config) -> None:
    def fail() -> None:
        raise OSError(errno.ENOMEM, "no memory")

    fake, previous = started()
    rows = content(fake)
    desired = compile_tables(wanted, facts_of(fake), previous)
    with pytest.raises(OSError, match="no memory"):
        apply_tables(fake, previous, desired, wait=lambda: None, exchange=fail)
    assert (fake.epoch, content(fake)) == (previous.epoch, rows)


@pytest.mark.parametrize("wanted", [BEFORE, AFTER], ids=["same rows", "other rows"])
def test_flow_tables_are_exchanged_once_with_the_configuration(wanted: Config) -> None:
    fake, previous = started()
    epochs: list[int] = []
    desired = compile_tables(wanted, facts_of(fake), previous)
    apply_tables(fake, previous, desired, wait=lambda: None, exchange=lambda: epochs.append(fake.active()[0]))
    assert epochs == [previous.epoch]


def visible_after(fake: FakeDatapath, previous: Tables) -> dict[str, object]:
    put(fake, AFTER, previous)
    return visible(fake)


@pytest.mark.parametrize("lasting", [False, True], ids=["one write fails", "every write fails from then on"])
def test_failure_after_the_switch_is_cleaned_up_by_the_next_apply(lasting: bool) -> None:
    fresh, first = started()
    clean = visible_after(fresh, first)
    for number in range(switch_of_apply() + 1, writes_of_apply()):
        fake, previous = started()
        fake.writes.count, fake.writes.fail_at, fake.writes.and_after = 0, number, lasting
        applied = put(fake, AFTER, previous)
        assert (applied.switched, applied.leftover) == (True, "no memory")
        assert visible(fake) == clean
        fake.writes.fail_at = None
        again = put(fake, AFTER, applied.tables)
        assert not again.switched
        assert content(fake) == content(fresh)


def test_kill_at_any_write_is_mended_by_the_next_daemon() -> None:
    fresh, first = started()
    clean = visible_after(fresh, first)
    for number in range(writes_of_apply()):
        fake, previous = started()
        old = visible(fake)
        fake.writes.count, fake.writes.fail_at, fake.writes.and_after = 0, number, True
        fake.writes.error = Killed
        with pytest.raises(Killed):
            put(fake, AFTER, previous)
        assert visible(fake) == (old if fake.epoch == previous.epoch else clean)
        fake.writes.fail_at = None
        found = read_tables(fake)
        mended = put(fake, AFTER, found).tables
        assert visible(fake) == clean
        assert read_tables(fake) == mended
        check_nothing_left(fake, mended)


def check_nothing_left(fake: FakeDatapath, tables: Tables) -> None:
    assert set(fake.table("service_v2").items()[0]["epoch"].tolist()) <= {tables.epoch}
    assert set(fake.table("nat_v2").items()[0]["epoch"].tolist()) <= {tables.epoch}
    claims = fake.table("claim_v1").items()[0]
    assert set(claims["epoch"].tolist()) <= {tables.epoch}
    addresses = {row.address for row in tables.services} | {row.address for row in tables.endpoints}
    assert {bytes(claim) for claim in claims["address"]} == {
        address.packed.ljust(16, b"\0") for address in addresses
    }
    assert int((fake.table("endpoint_v1").items()[1]["state"] != 0).sum()) == len(tables.endpoints)
    assert int((fake.table("config_v4").items()[1]["epoch"] != 0).sum()) == 1


def test_killed_while_adding_an_endpoint_that_is_no_longer_wanted() -> None:
    fake, previous = started()
    fake.writes.count, fake.writes.fail_at, fake.writes.and_after = 0, 3, True
    fake.writes.error = Killed
    with pytest.raises(Killed):
        put(
            fake,
            config(service("a", 1, [endpoint(n) for n in range(1, 9)], algorithm="round-robin")),
            previous,
        )
    fake.writes.fail_at = None
    found = read_tables(fake)
    assert len(found.endpoints) == len(previous.endpoints) + 2
    mended = put(fake, BEFORE, found)
    assert mended.tables.endpoints == previous.endpoints
    check_nothing_left(fake, mended.tables)


def test_interrupt_just_after_the_switch_does_not_take_it_back() -> None:
    class Interrupted(FakeDatapath):
        def set_epoch(self, epoch: int) -> None:
            super().set_epoch(epoch)
            if epoch == 2:
                raise KeyboardInterrupt

    fake = Interrupted(wheel_slots=1000)
    previous = put(fake, BEFORE, read_tables(fake)).tables
    with pytest.raises(KeyboardInterrupt):
        put(fake, AFTER, previous)
    assert fake.epoch == 2
    assert {row.port for row in read_tables(fake).services} == {80}
    assert len(read_tables(fake).services) == 2


def test_counters_of_a_freed_endpoint_begin_at_zero() -> None:
    fake, previous = started()
    opened = fake.table("opened_v1")
    opened.update(np.arange(4), np.array([(10,), (11,), (12,), (13,)], OPENED))
    put(fake, config(service("a", 1, [endpoint(2)], maglev_size=101)), previous)
    assert opened.lookup([0, 1, 2, 3])[0]["connections"].tolist() == [0, 11, 0, 0]


def test_tables_that_somebody_else_changed_are_refused() -> None:
    fake, first = started()
    second = put(fake, AFTER, first).tables
    rows = content(fake)
    with pytest.raises(DatapathError, match="epoch 2 is in force, not 1: read the tables again"):
        put(fake, BEFORE, first)
    with pytest.raises(DatapathError, match="epoch 2 cannot follow 2: compile anew"):
        apply_tables(fake, second, compile_tables(BEFORE, FACTS, first), wait=lambda: None)
    assert content(fake) == rows


def test_table_that_is_too_small_is_told_and_nothing_changes() -> None:
    fake, previous = started()
    rows = content(fake)
    many = [service(f"s{n}", n, []) for n in range(1, 20)]
    with pytest.raises(DatapathError, match="table service_v2 is full"):
        apply_tables(fake, previous, compile_tables(config(*many), FACTS, previous))
    assert content(fake) == rows


def test_ipv6_and_full_nat_and_pools_survive_the_tables() -> None:
    wanted = config(
        {
            "name": "v6",
            "address": "2001:db8::10",
            "port": 53,
            "protocol": "udp",
            "mode": "full-nat",
            "ports": "2000-3000",
            "endpoints": [{"address": "fd00::2", "port": 5353}],
        },
        nat=[nat("p", "fd00::/8", pool="2001:db8::100/120", ports="1-65535"), nat("all", "0.0.0.0/0")],
        conntrack={"midstream": "reset", "timeouts": {"icmp": "500ms"}},
        limits={"wheel_slots": 200_000},
    )
    fake = FakeDatapath(wheel_slots=200_000)
    tables = put(fake, wanted, Tables()).tables
    assert read_tables(fake) == tables
    key = fake.table("service_v2").items()[0]
    assert (
        key.tobytes()[:8] == b"\x01\x00\x00\x00" + b"\x00\x35" + b"\x11" + b"\x06"
    )  # epoch, port, UDP, IPv6
    lengths = fake.table("nat_v2").items()[0]["prefixlen"].tolist()
    assert sorted(lengths) == [96, 96 + 8]


@settings(max_examples=25)
@given(chain())
def test_any_chain_of_configurations_is_applied_and_read_back(configs: list[Config]) -> None:
    fake = FakeDatapath()
    tables = read_tables(fake)
    for step in configs:
        tables = put(fake, step, tables).tables
        assert read_tables(fake) == tables
        assert compile_tables(step, facts_of(fake), read_tables(fake)) == tables
        check_nothing_left(fake, tables)


def test_fake_tables_have_the_layouts_of_the_data_path() -> None:
    """The fake is only worth something while it has the sizes and the names that bpf/types.h has."""
    header = (Path(__file__).parents[2] / "bpf/types.h").read_text()
    sizes = dict(re.findall(r"sizeof\(struct (\w+)\) == (\d+)", header))
    layouts = {
        "config": CONFIG,
        "service_key": SERVICE_KEY,
        "service": SERVICE,
        "claim": CLAIM,
        "endpoint": ENDPOINT,
        "nat_key": NAT_KEY,
        "nat": NAT,
        "opened": OPENED,
    }
    for name, layout in layouts.items():
        assert int(sizes[name]) == layout.itemsize, name
        body = re.search(rf"struct {name} {{(.*?)\n}};", header, re.DOTALL)
        assert body is not None
        fields = re.findall(r"^\t(?:union )?\w+ (\w+)(?:\[\w+\])?;", body[1], re.MULTILINE)
        assert fields == list(layout.names or ()), name
    for name, constants in ENUMS.items():
        body = re.search(rf"enum {name} {{(.*?)\n}};", header, re.DOTALL)
        assert body is not None
        assert re.findall(r"^\t(\w+),", body[1], re.MULTILINE) == constants
