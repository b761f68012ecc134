# SPDX-License-Identifier: Apache-2.0
"""The generator of packets (bench/flows.bpf.c), and what became of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.flows.node import Node
from bench.flows.shapes import FRAME_BYTES_MAX, Shape, numbers_of
from clearway.datapath.loader import load_object
from clearway.datapath.tables import Table, set_program
from clearway.datapath.test_run import run_tc, run_xdp
from clearway.lab import LabError

Array = npt.NDArray[Any]

OBJECT = Path(__file__).resolve().parents[2] / "build/bench/objects/flows.bpf.o"
HOOKS = ("xdp", "tc")
EMPTY = "empty"  # a target: nothing behind the generator
CLEARWAY = "clearway"  # a target: the node's data path
AS_EXPECTED = 0.999  # at least so many packets of a burst
CHUNK = 10_000  # flows that are opened at once


class Generator:
    """Writes packets on one hook and hands each to a target: a program by name, besides EMPTY and CLEARWAY
    those of `others`. Several may run at once in as many threads, each of its own. To be used inside the
    node's namespace.
    """

    def __init__(
        self, node: Node, hook: str, others: Mapping[str, int] | None = None, numbers: int = 1
    ) -> None:
        """numbers: how many flows can be listed."""
        self.node = node
        self._hook = hook
        self._shape: Shape | None = None
        with ExitStack() as stack:
            loaded = stack.enter_context(load_object(OBJECT, max_entries={"numbers": numbers}))
            self._program = loaded.program_fd(f"generate_{hook}")
            self._streams = stack.enter_context(closing(Table(os.dup(loaded.map_fd("streams")))))
            self._numbers = stack.enter_context(closing(Table(os.dup(loaded.map_fd("numbers")))))
            programs = {
                EMPTY: loaded.program_fd(f"empty_{hook}"),
                CLEARWAY: node.datapath.program_fd(f"cw_{hook}"),
                **(others or {}),
            }
            self._targets = {name: number for number, name in enumerate(programs)}
            for name, number in self._targets.items():
                set_program(loaded.map_fd(f"{hook}_targets"), number, programs[name])
            self._stack = stack.pop_all()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- what is sent ----

    def aim(self, shape: Shape, first: int, flows: int, *, scattered: bool = True) -> None:
        """From now on packets of that shape, of so many flows from number `first` on, in turns.
        scattered: neighbours have nothing in common; otherwise they come client by client, port by port.
        """
        self._point(shape, first=first, flows=flows, scattered=scattered)

    def aim_at(self, shape: Shape, numbers: Array) -> None:
        """From now on packets of that shape, of these (scattered) flows in turns."""
        self._numbers.update(np.arange(len(numbers), dtype=np.uint32), numbers)
        self._point(shape, flows=len(numbers), listed=1, scattered=1)

    def _point(self, shape: Shape, **fields: int) -> None:
        self._shape = shape
        keys, values = self._streams.rows(1)
        values[0]["frame"] = list(shape.frame.ljust(FRAME_BYTES_MAX, b"\0"))
        for name, value in {**shape.offsets(), **fields}.items():
            values[0][name] = value
        self._streams.update(keys, values)

    # ---- sending ----

    def send(self, packets: int, target: str = CLEARWAY) -> int:
        """The next packets; nanoseconds for each."""
        assert self._shape is not None
        values, _ = self._streams.lookup([0])
        values[0]["target"] = self._targets[target]
        self._streams.update([0], values)
        ifindex, frame = self.node.ifindex[self._shape.device], self._shape.frame
        if self._hook == "xdp":
            return run_xdp(self._program, frame, ifindex=ifindex, repeat=packets).duration_ns
        return run_tc(self._program, frame, ifindex=ifindex, repeat=packets).duration_ns

    def burst(self, packets: int, target: str, reason: str) -> int:
        """The same; LabError unless they all, or nearly so, were counted under that reason."""
        with expecting(self.node, packets, reason):
            return self.send(packets, target)


@contextmanager
def expecting(node: Node, packets: int, reason: str) -> Iterator[None]:
    """LabError unless so many packets, or nearly so, come to that end within the `with` block."""
    before = node.reasons()
    yield
    after = node.reasons()
    if after[reason] - before[reason] < AS_EXPECTED * packets:
        found = {name: after[name] - before[name] for name in after if after[name] != before[name]}
        raise LabError(f"{packets:,} packets: all should be {reason}, but they were {found}")


def open_flows(
    generator: Generator, shapes: Sequence[Shape], first: int, flows: int, *, scattered: bool = True
) -> None:
    """Sends each of these packets of so many flows, a chunk of flows after the other."""
    for begin in range(first, first + flows, CHUNK):
        chunk = min(CHUNK, first + flows - begin)
        for shape in shapes:
            generator.aim(shape, begin, chunk, scattered=scattered)
            generator.send(chunk)


def held_flows(node: Node, family: int) -> Array:
    """Numbers of the (scattered) flows that the table holds, in the order of their places."""
    reply = node.datapath.enum("flow_state")["FLOW_REPLY"]
    with node.datapath.flow_tables() as tables:
        slots = [table.entries().slot for table in tables if table.family == family]
        return np.concatenate([numbers_of(rows[rows["flow"]["state"] & reply == 0]) for rows in slots])
