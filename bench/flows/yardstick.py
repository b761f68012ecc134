# SPDX-License-Identifier: Apache-2.0
"""What the flow table is compared with: the same data path over kernel hash maps (bench/table_hash.h), which
hold copies of the same entries.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.flows.node import Node
from clearway.datapath import bpf, features
from clearway.datapath.loader import load_object, read_layouts
from clearway.datapath.pins import Pins
from clearway.datapath.tables import Table

Array = npt.NDArray[Any]

OBJECTS = Path(__file__).resolve().parents[2] / "build/bench/objects"
MAPS = {4: "hash4", 6: "hash6"}
ROWS_A_CALL = 1 << 16
KERNEL_HASH = "kernel hash"


class Yardstick:
    """Both hooks' entry programs over kernel hash maps; all other tables are those of the node's data path.
    `programs` by hook. Made for as many flows as the node's tables.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.programs: dict[str, int] = {}
        self.maps: dict[int, Table] = {}

    def __enter__(self) -> Yardstick:
        with ExitStack() as stack:
            for hook in ("xdp", "tc"):
                self._load(hook, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _load(self, hook: str, stack: ExitStack) -> None:
        datapath = self._node.datapath
        path = OBJECTS / f"yardstick_{hook}.bpf.o"
        shared, constants = read_layouts(path)
        facts = {
            "cw_hz": datapath.clock().hz,
            "cw_kernel_context": features.has_kernel_context(),
            "cw_csum_ipv6_flag": features.has_csum_ipv6_flag(),
            "cw_conntrack": features.has_conntrack(),
        }
        with ExitStack() as pins:
            maps = Pins.of(datapath.instance).maps
            reuse = {name: pins.enter_context(bpf.pinned(maps / name)) for name in shared}
            reuse |= {MAPS[family]: table.fd for family, table in self.maps.items()}
            loaded = load_object(
                path,
                max_entries={} if self.maps else dict.fromkeys(MAPS.values(), 2 * self._node.max_flows),
                rodata={name: value for name, value in facts.items() if name in constants},
                reuse=reuse,
            )
        stack.enter_context(loaded)
        self.programs[hook] = loaded.program_fd(f"cw_{hook}")
        for family, name in MAPS.items() if not self.maps else ():
            self.maps[family] = stack.enter_context(closing(Table(os.dup(loaded.map_fd(name)))))

    def fill(self, family: int) -> None:
        """Copies every entry of that family which the flow table holds and the map does not yet."""
        table = self.maps[family]
        with self._node.datapath.flow_tables() as tables:
            slots = np.concatenate([each.entries().slot for each in tables if each.family == family])
        for first in range(0, len(slots), ROWS_A_CALL):
            part = slots[first : first + ROWS_A_CALL]
            table.update(_keys(table, part), part)

    def bytes(self, family: int) -> int:
        """Memory that a map takes, as the kernel reckons (it leaves out what the allocator rounds up)."""
        info = Path(f"/proc/self/fdinfo/{self.maps[family].fd}").read_text()
        return next(int(line.split()[1]) for line in info.splitlines() if line.startswith("memlock:"))


def _keys(table: Table, slots: Array) -> Array:
    keys, _ = table.rows(len(slots))
    keys["src"], keys["dst"] = slots["key_src"], slots["key_dst"]
    keys["sport"], keys["dport"] = slots["flow"]["key_sport"], slots["flow"]["key_dport"]
    keys["proto"] = slots["flow"]["state"] & 0xFF
    return keys
