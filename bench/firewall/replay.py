# SPDX-License-Identifier: Apache-2.0
"""Sends packets that stand ready (bench/replay.bpf.c): into a data path, or out of a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.flows.node import FRONT, Node
from bench.flows.traffic import CLEARWAY, EMPTY, expecting
from bench.traffic import Burst, Device, send_live
from clearway.datapath.loader import LoadedObject, load_object
from clearway.datapath.tables import Table, set_program
from clearway.datapath.test_run import run_tc, run_xdp

Array = npt.NDArray[Any]

OBJECT = Path(__file__).resolve().parents[2] / "build/bench/objects/replay.bpf.o"
TARGETS = (EMPTY, CLEARWAY)  # by their places in the programs' tables


class Frames:
    """The frames of a loaded object, which take turns."""

    def __init__(self, loaded: LoadedObject, stack: ExitStack) -> None:
        self._frames = stack.enter_context(closing(Table(os.dup(loaded.map_fd("frames")))))
        self._replays = stack.enter_context(closing(Table(os.dup(loaded.map_fd("replays")))))
        self.first = b""

    def give(self, frames: Array) -> None:
        """From now on these (n, bytes), from the first one on."""
        self.first = frames[0].tobytes()
        keys, values = self._frames.rows(len(frames))
        keys[:] = np.arange(len(frames))
        values["words"].view(np.uint8).reshape(len(frames), -1)[:, : frames.shape[1]] = frames
        self._frames.update(keys, values)
        self._set(count=len(frames), next=0)

    def aim(self, target: str) -> None:
        self._set(target=TARGETS.index(target))

    def _set(self, **fields: int) -> None:
        values, _ = self._replays.lookup([0])
        for name, value in fields.items():
            values[0][name] = value
        self._replays.update([0], values)


class Replay:
    """Hands packets on one hook to a node's data path, or to nothing. To be used inside the node's namespace;
    several may run at once in as many threads, each of its own.
    """

    def __init__(self, node: Node, hook: str, frames: int) -> None:
        """frames: how many there can be."""
        self.node = node
        self._hook = hook
        with ExitStack() as stack:
            loaded = stack.enter_context(load_object(OBJECT, max_entries={"frames": frames}))
            self._program = loaded.program_fd(f"replay_{hook}")
            self._frames = Frames(loaded, stack)
            programs = (loaded.program_fd(f"empty_{hook}"), node.datapath.program_fd(f"cw_{hook}"))
            for number, program in enumerate(programs):
                set_program(loaded.map_fd(f"{hook}_targets"), number, program)
            self._stack = stack.pop_all()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def give(self, frames: Array) -> None:
        self._frames.give(frames)

    def send(self, packets: int, target: str = CLEARWAY) -> int:
        """The next packets, on the front; nanoseconds for each."""
        self._frames.aim(target)
        # what the kernel takes a packet to be for (eth_type_trans()) it finds out before ours is written
        ifindex, frame = self.node.ifindex[FRONT], self._frames.first
        if self._hook == "xdp":
            return run_xdp(self._program, frame, ifindex=ifindex, repeat=packets).duration_ns
        return run_tc(self._program, frame, ifindex=ifindex, repeat=packets).duration_ns

    def burst(self, packets: int, reason: str) -> int:
        """The same; LabError unless they all, or nearly so, were counted under that reason."""
        with expecting(self.node, packets, reason):
            return self.send(packets)


class Sender:
    """Sends frames out of a device, with the addresses that they have."""

    def __init__(self, device: Device, loaded: LoadedObject, stack: ExitStack) -> None:
        self.device = device
        self._program = loaded.program_fd("replay_out")
        self._frames = Frames(loaded, stack)

    def send(self, frames: Array) -> Burst:
        """All of them; returns when they have gone their way."""
        self._frames.give(frames)
        return send_live(self._program, self.device, len(frames), len(self._frames.first))


@contextmanager
def open_sender(device: Device, frames: int) -> Iterator[Sender]:
    """For the time of the `with` block; frames: how many there can be at once."""
    with ExitStack() as stack:
        constants = {"out_ifindex": device.ifindex}
        loaded = stack.enter_context(load_object(OBJECT, max_entries={"frames": frames}, rodata=constants))
        yield Sender(device, loaded, stack)
