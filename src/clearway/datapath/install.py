# SPDX-License-Identifier: Apache-2.0
"""Puts the data path into the kernel: tables made or reused, programs loaded or adopted, everything pinned.

A load is whole when its mark is there (pins.py); whatever stops before leaves the former load in force, and
what it pinned is removed at once or, after a crash, by the next start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from clearway.datapath import bpf, features, flowstore
from clearway.datapath.bpf import possible_cpus
from clearway.datapath.btf import MapLayout
from clearway.datapath.calls import Clock, run_clock
from clearway.datapath.errors import DatapathError
from clearway.datapath.loader import LoadedObject, load_object, read_layouts
from clearway.datapath.pins import MADE, Load, Pins, remove_tree
from clearway.datapath.tables import Table, read_layout, set_program

OBJECTS = Path(__file__).parent / "objects"
FILES = {"sweep": "sweep.bpf.o", "xdp": "xdp.bpf.o", "tc": "tc.bpf.o"}
STAGES = "stages"
STAGE_COUNT = "STAGE_COUNT"


@dataclass(frozen=True)
class Sizes:
    """How much the tables hold, counted in what the configuration speaks of."""

    max_flows: int
    services: int
    endpoints: int
    wheel_slots: int
    nats: int
    rules: int

    def rows(self) -> dict[str, int]:
        """max_entries by table: two epochs of services, the addresses they claim, NAT rules, and those of the
        firewall with its default. Flow tables
        are made apart from the rest, and can change (flowstore.py).
        """
        return {
            "service_v2": 2 * self.services,
            "claim_v1": 2 * (self.services + self.endpoints),
            "origin_v2": 2 * self.endpoints,
            "cursor_v1": self.services,
            "endpoint_v1": self.endpoints,
            "opened_v1": self.endpoints,
            "wheel_v1": self.wheel_slots,
            "nat_v2": 2 * self.nats,
            "rule_v1": 2 * (self.rules + 1),
            "named_v1": self.rules + 1,
            "judged_v1": possible_cpus() * (self.rules + 1),
        }

    @classmethod
    def of_tables(cls, rows: Mapping[str, int], max_flows: int) -> Sizes:
        """The sizes that tables of these max_entries were made for."""
        return cls(
            max_flows=max_flows,
            services=rows["service_v2"] // 2,
            endpoints=rows["endpoint_v1"],
            wheel_slots=rows["wheel_v1"],
            nats=rows["nat_v2"] // 2,
            rules=rows["named_v1"] - 1,
        )


@dataclass(frozen=True)
class Installed:
    """Outcome of install(): the load in force. `load_ms` by program; empty when `adopted`."""

    load: Load
    adopted: bool
    load_ms: dict[str, float]


def install(pins: Pins, sizes: Sizes, objects: Path | None, log_dir: Path | None) -> Installed:
    """Makes sure that the newest load is made of these objects, sizes and kernel features.

    Links still run the older programs afterwards; retire() removes those once the links were moved.
    DatapathError if pinned tables are of another layout or size, or an object does not load; nothing that
    worked is touched then.
    """
    directory = objects or OBJECTS
    paths = {name: directory / file for name, file in FILES.items()}
    layouts = _layouts(paths, sizes)
    _compare(pins, layouts)
    rodata = _rodata(_measure_clock(paths["sweep"], log_dir))
    fingerprint = _fingerprint(paths, rodata)
    _remove_unfinished(pins)
    newest = pins.newest()
    complete = all((pins.maps / name).exists() for name in layouts)
    if newest is not None and newest.fingerprint == fingerprint and complete:
        return Installed(newest, True, {})
    with ExitStack() as undo:
        load, load_ms = _load(pins, paths, sizes, rodata, log_dir, undo)
        _make_flow_tables(pins, sizes.max_flows)
        (load.directory / (MADE + fingerprint)).mkdir()
        undo.pop_all()
    return Installed(Load(load.number, load.directory, fingerprint), False, load_ms)


def retire(pins: Pins, keep: Load) -> None:
    """Removes all loads but `keep`, when no CPU runs their programs any more."""
    others = [load for load in pins.loads() if load.number != keep.number]
    if not others:
        return
    # A stages map is emptied as soon as its last pin goes; a packet in flight would miss its tail call.
    bpf.wait_for_packets_in_flight()
    for load in others:
        remove_tree(load.directory)


# ---- what is wanted ----


def _layouts(paths: Mapping[str, Path], sizes: Sizes) -> dict[str, MapLayout]:
    """Layouts of all tables with the wanted sizes. DatapathError if two objects disagree."""
    rows = sizes.rows()
    found: dict[str, MapLayout] = {}
    for path in paths.values():
        tables, _ = read_layouts(path)
        for name, layout in tables.items():
            wanted = MapLayout(
                name, layout.type, layout.flags, rows.get(name, layout.max_entries), layout.key, layout.value
            )
            if found.setdefault(name, wanted) != wanted:
                raise DatapathError(
                    f"table {name}: the objects disagree, compile them together with `make build`"
                )
    if missing := set(rows) - set(found):
        raise DatapathError(
            f"the objects have no table {', '.join(sorted(missing))}: compile them with `make build`"
        )
    return found


def _compare(pins: Pins, wanted: Mapping[str, MapLayout]) -> None:
    """DatapathError naming every difference between the pinned tables and the wanted ones."""
    differences: list[str] = []
    for name, layout in wanted.items():
        if not (pins.maps / name).exists():
            continue
        with bpf.pinned(pins.maps / name) as fd:
            present = read_layout(fd)
        unlike = [
            f"table {name} has {what} {is_now}, needed {needed}"
            for what, is_now, needed in (
                ("type", present.type, layout.type),
                ("flags", present.flags, layout.flags),
                ("key size", present.key.itemsize, layout.key.itemsize),
                ("value size", present.value.itemsize, layout.value.itemsize),
                ("max_entries", present.max_entries, layout.max_entries),
            )
            if is_now != needed
        ]
        if not unlike and (present.key, present.value) != (layout.key, layout.value):
            unlike.append(f"table {name} has other fields of the same size")
        differences += unlike
    if differences:
        raise DatapathError(
            f"instance {pins.instance} is loaded with other tables: {'; '.join(differences)}. "
            f"Keep the sizes, or run `clearway --instance {pins.instance} down` (connections are forgotten)"
        )


def _measure_clock(sweep: Path, log_dir: Path | None) -> Clock:
    """The kernel's clock, by the `clock` program alone."""
    with load_object(sweep, programs=["clock"], log_dir=log_dir) as loaded:
        return run_clock(loaded.program_fd("clock"))


def _rodata(clock: Clock) -> dict[str, int | bool]:
    """Constants that every program is loaded with."""
    return {
        "cw_hz": clock.hz,
        "cw_kernel_context": features.has_kernel_context(),
        "cw_csum_ipv6_flag": features.has_csum_ipv6_flag(),
        "cw_conntrack": features.has_conntrack(),
        "cw_adoption": features.has_adoption(),
        "cw_handover": features.has_handover(),
    }


def _fingerprint(paths: Mapping[str, Path], rodata: Mapping[str, int | bool]) -> str:
    """What a load is made of: objects and constants (sizes of tables are compared by themselves).

    The kernel's program tags say less: they leave the constants out, and are known only after loading.
    """
    digest = hashlib.sha256(repr(sorted(rodata.items())).encode())
    for name in sorted(paths):
        digest.update(paths[name].read_bytes())
    return digest.hexdigest()


# ---- making it ----


def _remove_unfinished(pins: Pins) -> None:
    for load in pins.loads():
        if load.fingerprint is None:
            remove_tree(load.directory)


def _load(
    pins: Pins,
    paths: Mapping[str, Path],
    sizes: Sizes,
    rodata: Mapping[str, int | bool],
    log_dir: Path | None,
    undo: ExitStack,
) -> tuple[Load, dict[str, float]]:
    """Loads and pins all objects. What it pins is handed to `undo`."""
    number = max((load.number for load in pins.loads()), default=0) + 1
    load = Load(number, pins.progs / str(number), None)
    load.directory.mkdir(mode=0o700)
    undo.callback(remove_tree, load.directory)
    load_ms: dict[str, float] = {}
    unused = set(rodata)
    for name, path in paths.items():
        tables, constants = read_layouts(path)
        unused -= constants
        with ExitStack() as open_pins:
            present = {table: pins.maps / table for table in tables if (pins.maps / table).exists()}
            loaded = open_pins.enter_context(
                load_object(
                    path,
                    max_entries={t: n for t, n in sizes.rows().items() if t in tables and t not in present},
                    rodata={key: value for key, value in rodata.items() if key in constants},
                    reuse={t: open_pins.enter_context(bpf.pinned(pin)) for t, pin in present.items()},
                    log_dir=log_dir,
                )
            )
            for table in tables.keys() - present.keys():
                bpf.obj_pin(loaded.map_fd(table), pins.maps / table)
                undo.callback((pins.maps / table).unlink)
            _pin_programs(loaded, name, load.directory)
            load_ms |= loaded.load_ms
    if unused:
        raise DatapathError(
            f"no object has the constant {', '.join(sorted(unused))}: compile with `make build`"
        )
    return load, load_ms


def _make_flow_tables(pins: Pins, max_flows: int) -> None:
    """Unless an earlier load has."""
    with ExitStack() as stack:
        tables = {}
        for name in (flowstore.FLOWS, *flowstore.OUTER.values()):
            tables[name] = Table(bpf.obj_get(pins.maps / name))
            stack.callback(tables[name].close)
        if not flowstore.has_tables(tables[flowstore.FLOWS]):
            flowstore.make_tables(tables, max_flows)


def _pin_programs(loaded: LoadedObject, hook: str, directory: Path) -> None:
    """Pins an object's programs, fills its table of tail calls and pins that too."""
    for name, fd in loaded.programs.items():
        bpf.obj_pin(fd, directory / name)
    if STAGES not in loaded.maps:
        return
    for stage, index in loaded.enum("stage").items():
        if stage != STAGE_COUNT:
            program = f"cw_{hook}_{stage.removeprefix('STAGE_').lower()}"
            set_program(loaded.map_fd(STAGES), index, loaded.program_fd(program))
    bpf.obj_pin(loaded.map_fd(STAGES), directory / f"{hook}_{STAGES}")
