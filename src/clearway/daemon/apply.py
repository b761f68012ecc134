# SPDX-License-Identifier: Apache-2.0
"""From one configuration to the next with nothing in between: write beside, switch by one word, clean up.

Rows of services and NAT rules carry their epoch, endpoints and wheels are found through them, and a packet
reads the epoch once. So the rows of the next epoch are written while nobody looks at them, and set_epoch()
is the switch.

Cleaning up is the same before, after and instead of the switch: settle() makes the tables hold exactly the
rows in force. What a crash leaves behind is found by the next apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clearway.compiler import FirewallTables, ScrubTables, Tables, Wheel
from clearway.compiler.tables import Area
from clearway.datapath.errors import DatapathError

from . import rows
from .grace import wait_for_readers
from .rows import Array, Names, Table

LOOKUP_COST = 8
"""Looking rows up one by one costs about this many times what reading them in batches costs."""


class LineTable(Protocol):
    """What is needed of a table of arrays of lines."""

    def put(self, place: int, lines: Array) -> None: ...
    def copy(self, source: int, place: int) -> None: ...
    def drop(self, place: int) -> None: ...


class DatapathTables(Protocol):
    """What is needed of a data path: its tables, the names of numbers in them, and the epoch in force."""

    def table(self, name: str) -> Table: ...
    def enum(self, name: str) -> Names: ...
    def active(self) -> tuple[int, int]: ...
    def set_epoch(self, epoch: int) -> None: ...
    @property
    def classifiers(self) -> LineTable: ...
    @property
    def prefixes(self) -> LineTable: ...


@dataclass(frozen=True, slots=True)
class Applied:
    """What is in force after an apply."""

    tables: Tables
    switched: bool
    """False: everything was in force already."""
    leftover: str | None = None
    """Why cleaning up after the switch failed; the next apply cleans up what is left."""


def apply_tables(
    datapath: DatapathTables,
    previous: Tables,
    desired: Tables,
    wait: Callable[[], None] = wait_for_readers,
    exchange: Callable[[], None] = lambda: None,
) -> Applied:
    """Puts `desired` in force in place of `previous`, which it was compiled to replace.

    Traffic sees the one or the other. Raises DatapathError if `desired` could not be put in force: then
    `previous` is, and what had been written is taken back. Not for two threads at once.

    `exchange` is what else is to be exchanged. It is called when all is written and only the switch is left,
    which changes one word and does not fail; so when it raises, nothing has changed.
    """
    epoch, _ = datapath.active()
    if epoch != previous.epoch:
        raise DatapathError(
            f"epoch {epoch} is in force, not {previous.epoch}: read the tables again and compile anew"
        )
    settle(datapath, previous)
    if previous.epoch and desired == previous:
        exchange()
        return Applied(previous, switched=False)
    if desired.epoch != previous.next_epoch:
        raise DatapathError(f"epoch {desired.epoch} cannot follow {previous.epoch}: compile anew")
    try:
        _write_beside(datapath, previous, desired)
        exchange()
        datapath.set_epoch(desired.epoch)
    except BaseException:
        # Also when interrupted; and an interrupt may come just after the switch.
        if datapath.active()[0] != desired.epoch:
            _take_back(datapath, previous)
        raise
    return Applied(desired, switched=True, leftover=_clean_up(datapath, desired, wait))


def read_tables(datapath: DatapathTables) -> Tables:
    """The rows in force, read from the tables themselves. Epoch 0 and no rows: never configured."""
    epoch, _ = datapath.active()
    if epoch == 0:
        return Tables()
    config, _ = datapath.table("config_v4").lookup([epoch & 1])
    services, nats = datapath.table("service_v2"), datapath.table("nat_v2")
    service_keys, service_values = _rows_of(services, epoch)
    wheels = _read_wheels(
        datapath.table("wheel_v1"),
        [Area(int(value["wheel_base"]), int(value["wheel_slots"])) for value in service_values],
    )
    modes, algorithms = datapath.enum("service_mode"), datapath.enum("service_algorithm")
    read = [
        rows.read_service(key, value, wheel, modes, algorithms)
        for key, value, wheel in zip(service_keys, service_values, wheels, strict=True)
    ]
    live = {row.id for row in read}
    states = datapath.enum("endpoint_state")
    numbers, endpoints = _used_endpoints(datapath)
    found = [rows.read_endpoint(int(n), value, states) for n, value in zip(numbers, endpoints, strict=True)]
    rules = [rows.read_nat(nats, key, value) for key, value in zip(*_rows_of(nats, epoch), strict=True)]
    return Tables(
        epoch=epoch,
        services=tuple(sorted(read, key=lambda row: row.id)),
        # Endpoints of no service in force are what a crash left behind: settle() frees them.
        endpoints=tuple(sorted((row for row in found if row.service in live), key=lambda row: row.id)),
        nats=tuple(sorted(rules, key=lambda row: row.id)),
        firewall=_read_firewall(datapath, config[0]),
        scrub=_read_scrub(datapath, config[0]),
        timeouts=rows.read_timeouts(config[0], datapath.enum("timeout")),
        midstream=rows.read_midstream(config[0], datapath.enum("midstream")),
        when_full=rows.read_when_full(config[0], datapath.enum("when_full")),
        next_endpoint=int(config[0]["next_endpoint"]),
        next_nat=int(config[0]["next_nat"]),
        next_rule=int(config[0]["next_rule"]),
    )


def settle(datapath: DatapathTables, tables: Tables) -> None:
    """Makes the tables hold the rows of `tables`, whose epoch is in force, and nothing else.

    Deletes rows of other epochs, frees endpoints that are not there, and sets the states of those that are.
    Touches nothing that packets of this epoch read, but for the state of an endpoint.
    """
    for name in ("service_v2", "claim_v1", "origin_v2", "nat_v2"):
        table = datapath.table(name)
        keys, _ = table.items()
        others = keys[keys["epoch"] != tables.epoch]
        if len(others):
            table.delete(others)
    config = datapath.table("config_v4")
    keys, values = config.items()
    stale = (values["epoch"] != tables.epoch) & (values["epoch"] != 0)
    if stale.any():
        config.update(keys[stale], np.zeros_like(values[stale]))
    for after, family in rows.PLACES:
        datapath.classifiers.drop(rows.place_of(tables.epoch + 1, after, family))
    _settle_scrub(datapath, tables)
    _settle_endpoints(datapath, tables)


def _settle_endpoints(datapath: DatapathTables, tables: Tables) -> None:
    table = datapath.table("endpoint_v1")
    present = table.items()[1]
    wanted = np.zeros_like(present)
    keys, values = rows.endpoint_rows(table, datapath.enum("endpoint_state"), tables.endpoints)
    wanted[keys] = values
    different = np.flatnonzero(present != wanted)
    freed = different[wanted["state"][different] == datapath.enum("endpoint_state")["ENDPOINT_FREE"]]
    if len(freed):
        # Whoever gets the id next begins to count at zero.
        opened = datapath.table("opened_v1")
        numbers, zeros = opened.rows(len(freed))
        numbers[:] = freed
        opened.update(numbers, zeros)
    if len(different):
        table.update(different.astype(table.key_dtype), wanted[different])


def _write_beside(datapath: DatapathTables, previous: Tables, desired: Tables) -> None:
    """Writes what is new into rows that no packet of the epoch in force reads."""
    present = set(previous.endpoints)
    held = {row.id for row in present}
    endpoints = datapath.table("endpoint_v1")
    # One that begins to drain is marked after the switch, one that has stopped to before it.
    coming = [row for row in desired.endpoints if row.id not in held or not row.draining]
    new = [row for row in coming if row not in present]
    _update(endpoints, rows.endpoint_rows(endpoints, datapath.enum("endpoint_state"), new))
    wheel = datapath.table("wheel_v1")
    live = {(row.wheel_base, row.wheel.digest) for row in previous.services}
    for service in desired.services:
        if (service.wheel_base, service.wheel.digest) not in live:
            slots = np.arange(service.area.base, service.area.end, dtype=wheel.key_dtype)
            _update(wheel, (slots, service.wheel.slots))
    if desired.firewall is not None:
        _write_firewall(datapath, previous, desired, desired.firewall)
    if desired.scrub is not None:
        _write_scrub(datapath, previous, desired, desired.scrub)
    config = datapath.table("config_v4")
    counters = datapath.table("named_v1").max_entries
    _update(config, rows.config_row(config, datapath.enum, desired, counters))
    services = datapath.table("service_v2")
    modes, algorithms = datapath.enum("service_mode"), datapath.enum("service_algorithm")
    _update(services, rows.service_rows(services, modes, algorithms, desired))
    claims = datapath.table("claim_v1")
    _update(claims, rows.claim_rows(claims, desired))
    origins = datapath.table("origin_v2")
    _update(origins, rows.origin_rows(origins, desired))
    nats = datapath.table("nat_v2")
    _update(nats, rows.nat_rows(nats, desired.nats, desired.epoch))


def _write_firewall(
    datapath: DatapathTables, previous: Tables, desired: Tables, firewall: FirewallTables
) -> None:
    """Its classifiers, or those in force if they are the same; what its rules do; new counters."""
    present = previous.firewall
    same = present is not None and present.digest == firewall.digest
    for after, family in rows.PLACES:
        place = rows.place_of(desired.epoch, after, family)
        if after and not firewall.after:
            continue
        if same:
            datapath.classifiers.copy(rows.place_of(previous.epoch, after, family), place)
        elif firewall.classifiers is not None:
            datapath.classifiers.put(place, firewall.classifiers[after, family].lines)
    known = set(present.counters.items()) if present else set()
    _begin_counters(datapath, dict(firewall.counters.items() - known))
    table = datapath.table("rule_v1")
    _update(table, rows.rule_rows(table, firewall, desired.epoch))


def _begin_counters(datapath: DatapathTables, new: Mapping[int, int]) -> None:
    """New rules have these, by identity, and begin to count at zero on every CPU."""
    named, judged = datapath.table("named_v1"), datapath.table("judged_v1")
    keys, values = named.rows(len(new))
    keys[:], values[:] = list(new.values()), list(new)
    _update(named, (keys, values))
    cpus = judged.max_entries // named.max_entries
    keys, zeros = judged.rows(cpus * len(new))
    keys[:] = [cpu * named.max_entries + counter for cpu in range(cpus) for counter in new.values()]
    _update(judged, (keys, zeros))


def _write_scrub(datapath: DatapathTables, previous: Tables, desired: Tables, scrub: ScrubTables) -> None:
    """Its lists, or those in force if they are the same; new counters; from now on packets look there."""
    present = previous.scrub
    same = present is not None and present.digest == scrub.digest
    for allow, family in rows.PLACES:
        place = rows.prefix_place(desired.epoch, allow, family)
        if same:
            _copy_prefixes(datapath, rows.prefix_place(previous.epoch, allow, family), place)
        elif scrub.images is not None and (image := scrub.images[allow, family]) is not None:
            datapath.prefixes.put(place, image.lines)
            _write_index(datapath, place, image.index)
    known = set(present.numbers.items()) if present else set()
    listed = datapath.table("listed_v1")
    keys, zeros = listed.rows(len(new := sorted(dict(scrub.numbers.items() - known).values())))
    keys[:] = new
    _update(listed, (keys, zeros))
    table = datapath.table("list_v1")
    _update(table, rows.list_rows(table, scrub, desired.epoch))
    _switch_scrub(datapath, True)


def _copy_prefixes(datapath: DatapathTables, source: int, place: int) -> None:
    """Where nothing is listed of a kind and family, nothing is at its place."""
    index = _scrubbing(datapath)["index"][source]
    if index["words"]:
        datapath.prefixes.copy(source, place)
        _write_index(datapath, place, {name: int(index[name]) for name in index.dtype.names or ()})


def _settle_scrub(datapath: DatapathTables, tables: Tables) -> None:
    for allow, family in rows.PLACES:
        place = rows.prefix_place(tables.epoch + 1, allow, family)
        datapath.prefixes.drop(place)
        if _scrubbing(datapath)["index"][place]["words"]:
            _write_index(datapath, place, {})
    _switch_scrub(datapath, tables.scrub is not None)


def _switch_scrub(datapath: DatapathTables, on: bool) -> None:
    """Whether packets ask for lists at all; where there are none, they find none."""
    row = _scrubbing(datapath)
    if bool(row["on"]) != on:
        row["on"] = on
        datapath.table("scrub_v1").update([0], [row])


def _write_index(datapath: DatapathTables, place: int, index: Mapping[str, int]) -> None:
    """Of a place of the epoch to come. {}: nothing is listed there."""
    row = _scrubbing(datapath)
    row["index"][place] = np.zeros((), row["index"].dtype)
    for name, value in index.items():
        row["index"][place][name] = value
    datapath.table("scrub_v1").update([0], [row])


def _scrubbing(datapath: DatapathTables) -> Any:
    """A copy of struct scrubbing."""
    values, _ = datapath.table("scrub_v1").lookup([0])
    return values[0].copy()


def _read_scrub(datapath: DatapathTables, config: Array) -> ScrubTables | None:
    table = datapath.table("list_v1")
    first = rows.first_list(table, int(config["epoch"]))
    identities, _ = table.lookup(np.arange(first, first + table.max_entries // 2))
    return rows.read_scrub(config, identities)


def _read_firewall(datapath: DatapathTables, config: Array) -> FirewallTables | None:
    if not int(config["firewall"]):
        return None
    table = datapath.table("rule_v1")
    first = rows.first_rule(table, int(config["epoch"]))
    words, _ = table.lookup(np.arange(first, first + int(config["rules"])))
    _, identities = datapath.table("named_v1").items()
    return rows.read_firewall(config, words, identities, datapath.enum("firewall"))


def _update(table: Table, keys_and_values: tuple[Array, Array]) -> None:
    keys, values = keys_and_values
    if len(keys):
        table.update(keys, values)


def _take_back(datapath: DatapathTables, previous: Tables) -> None:
    """Removes what was written for an epoch that did not come. What is left over, the next apply removes."""
    try:
        settle(datapath, previous)
    except DatapathError:
        return  # the caller is told of the first failure


def _clean_up(datapath: DatapathTables, desired: Tables, wait: Callable[[], None]) -> str | None:
    """Removes what only packets of the old epoch used, once there are none. Returns why it failed, if so."""
    wait()
    try:
        settle(datapath, desired)
    except DatapathError as error:
        return str(error)
    return None


def _rows_of(table: Table, epoch: int) -> tuple[Array, Array]:
    keys, values = table.items()
    mine = keys["epoch"] == epoch
    return keys[mine], values[mine]


def _used_endpoints(datapath: DatapathTables) -> tuple[Array, Array]:
    keys, values = datapath.table("endpoint_v1").items()
    used = values["state"] != datapath.enum("endpoint_state")["ENDPOINT_FREE"]
    return keys[used], values[used]


def _read_wheels(table: Table, areas: list[Area]) -> list[Wheel]:
    """The wheels in the given areas."""
    if LOOKUP_COST * sum(area.size for area in areas) > table.max_entries:
        keys, values = table.items()
        slots: np.ndarray[Any, Any] = np.zeros(table.max_entries, dtype=np.uint32)
        slots[keys] = values
        return [Wheel.of(slots[area.base : area.end]) for area in areas]
    return [
        Wheel.of(table.lookup(np.arange(area.base, area.end, dtype=table.key_dtype))[0]) for area in areas
    ]
