# SPDX-License-Identifier: Apache-2.0
"""The flow tables of an instance: made, exchanged for larger or smaller ones, swept and read.

Which table is the current one, how large both are and the key of their hash stand in flows_v3; the tables
themselves in flow4_v3 and flow6_v3, two places each (bpf/table.h). A table is exchanged while packets go
through it: they find what is in either, new flows go to the current one, and the `move` program brings over
the rest.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.datapath import bpf, libbpf
from clearway.datapath.calls import MoveResult, SweepResult, run_move, run_sweep
from clearway.datapath.errors import DatapathError
from clearway.datapath.flowtable import (
    FAMILY_IPV4,
    FAMILY_IPV6,
    FlowTable,
    bucket_bytes,
    buckets_for,
)
from clearway.datapath.inner import create_inner, put_inner
from clearway.datapath.tables import Table
from clearway.model.sizes import flows_in

Array = npt.NDArray[Any]

OUTER = {FAMILY_IPV4: "flow4_v3", FAMILY_IPV6: "flow6_v3"}
BUCKETS = {FAMILY_IPV4: "buckets4", FAMILY_IPV6: "buckets6"}
STRUCTS = {FAMILY_IPV4: "flow4_bucket", FAMILY_IPV6: "flow6_bucket"}
FLOWS = "flows_v3"
TABLES = 2
# Buckets that one call of a program goes through. On kernels without preemption packets wait for it to end,
# when they come on the same CPU: this many take 0.1 ms.
BUCKETS_A_CALL = 512
# Halves of connections should not be there: they are looked for in so many rounds.
PAIRS_EVERY = 64
# How often, seconds apart, a move is tried again before another exchange: a connection may be just changing.
MOVE_ATTEMPTS = 30
MOVE_PAUSE = 0.1


def make_tables(tables: Mapping[str, Table], max_flows: int) -> None:
    """Makes the first tables of an instance that has none. DatapathError when there is no memory for them."""
    keys, values = tables[FLOWS].rows(1)
    words = values["key"].shape[1]
    values["key"][0] = [secrets.randbits(64) for _ in range(words)]
    values["max_flows"] = max_flows
    for family, name in BUCKETS.items():
        _put_new(tables, family, 0, max_flows)
        values[name][0][0] = buckets_for(max_flows)
    tables[FLOWS].update(keys, values)


def has_tables(flows: Table) -> bool:
    values, _ = flows.lookup([0])
    return bool(values["buckets4"].any())


def _put_new(tables: Mapping[str, Table], family: int, place: int, max_flows: int) -> None:
    """Makes an empty table and puts it in its place."""
    fd = _create(family, buckets_for(max_flows))
    try:
        _put(tables[OUTER[family]], place, fd)
    finally:
        os.close(fd)


def _create(family: int, buckets: int) -> int:
    no_memory = f"no memory for the IPv{family} flow table: it takes {{}}; lower conntrack.max_flows"
    return create_inner(f"flow{family}", bucket_bytes(family), buckets, no_memory)


def _put(outer: Table, place: int, fd: int) -> None:
    put_inner(outer.fd, outer.name, place, fd)


@dataclass(frozen=True)
class Moving:
    """What is left of a table that was exchanged: `left` connections found no place yet."""

    moved: int
    left: int


class FlowStore:
    """The flow tables of an instance. sweep() is for one thread, prepared() for another, the rest for any."""

    def __init__(self, tables: Mapping[str, Table], structs: Mapping[str, np.dtype[Any]]) -> None:
        """tables: flows_v3, flow4_v3, flow6_v3. structs: dtypes of STRUCTS."""
        self._tables = tables
        self._structs = structs
        self._position = 0.0  # where the next part of a sweep begins, as a part of the whole
        self._round = 0
        self._move_lock = threading.Lock()  # the program has one place to work in

    def _row(self) -> Any:
        values, _ = self._tables[FLOWS].lookup([0])
        return values[0]

    def _write(self, row: Any) -> None:
        keys, values = self._tables[FLOWS].rows(1)
        values[0] = row
        self._tables[FLOWS].update(keys, values)

    def record(self, what: str, wanted: bool) -> None:
        """Whether ends of connections ("records") or decisions of the firewall ("events") are recorded from
        now on.
        """
        with self._move_lock:
            row = self._row().copy()
            row[what] = wanted
            self._write(row)

    @property
    def max_flows(self) -> int:
        """Connections of each family that the current tables were made for."""
        return int(self._row()["max_flows"])

    @property
    def current(self) -> tuple[int, int]:
        """Differs when the tables have been exchanged."""
        row = self._row()
        return int(row["current"]), int(row["max_flows"])

    @contextmanager
    def opened(self) -> Iterator[list[FlowTable]]:
        """Every table that there is, the current ones first, for the length of a with block."""
        row = self._row()
        current = int(row["current"])
        with ExitStack() as stack:
            found = []
            for which in (current, 1 - current):
                for family in OUTER:
                    if not (buckets := int(row[BUCKETS[family]][which])):
                        continue
                    try:
                        table = self._open(row, family, which, buckets)
                    except OSError:
                        if which == current:
                            raise  # the other one may have been retired a moment ago
                    else:
                        stack.callback(table.close)
                        found.append(table)
            yield found

    def _open(self, row: Any, family: int, which: int, buckets: int) -> FlowTable:
        key, number = ctypes.c_uint32(which), ctypes.c_uint32()
        library = libbpf.library()
        outer = self._tables[OUTER[family]]
        bpf.check(library.bpf_map_lookup_elem(outer.fd, ctypes.byref(key), ctypes.byref(number)), outer.name)
        fd = bpf.check(library.bpf_map_get_fd_by_id(number.value), outer.name)
        return FlowTable(
            fd,
            family=family,
            which=which,
            buckets=buckets,
            key=row["key"],
            dtype=self._structs[STRUCTS[family]],
        )

    # ---- ageing ----

    def sweep(
        self,
        program_fd: int,
        share: float = 1.0,
        thorough: bool = False,
        between: Callable[[], None] = lambda: None,
    ) -> SweepResult:
        """Goes through that share of the tables, from where the last call ended up to the end of the round at
        most, and removes what has been idle for too long.

        Whether an entry's pair is still there is looked at every PAIRS_EVERY rounds, or now if `thorough`.
        `between`: called before each call of the program.
        """
        begin, end = self._position, min(1.0, self._position + share)
        every = 1 if thorough else PAIRS_EVERY
        row, visited, expired = self._row(), 0, 0
        for family, name in BUCKETS.items():
            for table in range(TABLES):
                first, last = (round(part * int(row[name][table])) for part in (begin, end))
                for at in range(first, last, BUCKETS_A_CALL):
                    between()
                    result = run_sweep(
                        program_fd,
                        family=family,
                        table=table,
                        first=at,
                        buckets=min(BUCKETS_A_CALL, last - at),
                        every=every,
                        turn=self._round % every,
                    )
                    visited, expired = visited + result.visited, expired + result.expired
        ended = end == 1.0
        self._position = 0.0 if ended else end
        self._round += ended
        return SweepResult(visited, expired, ended, end - begin)

    # ---- another size ----

    @contextmanager
    def prepared(self, max_flows: int, move_fd: int) -> Iterator[Callable[[], None]]:
        """Empty tables of another size, and what puts them in force: then what is in the present ones stays
        reachable, and waits to be moved. Without that they are given back at the end of the with block.

        What an earlier exchange has left is moved first. DatapathError when that does not come to an end,
        when there is no memory, or when there are more connections than the new tables would hold.
        """
        if not self._moved(move_fd) and not (self._turned_back() and self._moved(move_fd)):
            raise DatapathError("connections are still moving to a table of another size: try again later")
        self._check_room(max_flows)
        other = 1 - int(self._row()["current"])
        with ExitStack() as stack:
            fds = {}
            for family in OUTER:
                fds[family] = _create(family, buckets_for(max_flows))
                stack.callback(os.close, fds[family])

            def exchange() -> None:
                with self._move_lock:
                    put_in_force()

            def put_in_force() -> None:
                row = self._row().copy()
                for family, name in BUCKETS.items():
                    _put(self._tables[OUTER[family]], other, fds[family])
                    row[name][other] = buckets_for(max_flows)
                # First the sizes, then the switch: a packet never computes a place by the other table's size.
                self._write(row)
                row["max_flows"], row["current"] = max_flows, other
                self._write(row)
                bpf.wait_for_packets_in_flight()

            yield exchange

    def _moved(self, move_fd: int) -> bool:
        """Moves what is left of an earlier exchange; whether all of it has come over."""
        for _ in range(MOVE_ATTEMPTS):
            if not self.moving or not self.move(move_fd).left:
                return True
            time.sleep(MOVE_PAUSE)
        return False

    def _turned_back(self) -> bool:
        """The tables that were too small for all are left for the larger ones that they came from. Whether
        those are larger.
        """
        with self._move_lock:
            row = self._row().copy()
            left = 1 - int(row["current"])
            if row["buckets4"][left] <= row["buckets4"][1 - left]:
                return False
            row["current"], row["max_flows"] = left, flows_in(int(row["buckets4"][left]))
            self._write(row)
            bpf.wait_for_packets_in_flight()
            return True

    def most(self) -> int:
        """Connections in the fullest of the tables."""
        with self.opened() as tables:
            return max(table.count() // 2 for table in tables)

    def _check_room(self, max_flows: int) -> None:
        """DatapathError when the connections that there are would not find their places in smaller tables."""
        if (connections := self.most()) > max_flows:
            raise DatapathError(
                f"{connections:,} connections are in the flow table, and one for {max_flows:,} would not hold"
                " them: use a larger conntrack.max_flows, or try again when there are fewer"
            )

    @property
    def moving(self) -> bool:
        """Whether there are tables that were exchanged and still hold connections, or may."""
        row = self._row()
        return any(int(row[name][1 - int(row["current"])]) for name in BUCKETS.values())

    def move(self, program_fd: int) -> Moving:
        """Brings connections of exchanged tables to the current ones; frees these when none is left."""
        with self._move_lock:
            return self._move(program_fd)

    def _move(self, program_fd: int) -> Moving:
        row = self._row().copy()
        old = 1 - int(row["current"])
        moved = left = 0
        for family, name in BUCKETS.items():
            buckets = int(row[name][old])
            for at in range(0, buckets, BUCKETS_A_CALL):
                result: MoveResult = run_move(
                    program_fd, family=family, first=at, buckets=min(BUCKETS_A_CALL, buckets - at)
                )
                moved, left = moved + result.moved, left + result.left
        if not left:
            self._retire(row, old)
        return Moving(moved, left)

    def _retire(self, row: Any, old: int) -> None:
        for name in BUCKETS.values():
            row[name][old] = 0
        self._write(row)
        bpf.wait_for_packets_in_flight()
        key = ctypes.c_uint32(old)
        for name in OUTER.values():
            with suppress(OSError):  # a kernel that cannot take it out keeps it until the next exchange
                bpf.check(
                    libbpf.library().bpf_map_delete_elem(self._tables[name].fd, ctypes.byref(key)), name
                )
