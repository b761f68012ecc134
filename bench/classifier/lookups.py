# SPDX-License-Identifier: Apache-2.0
"""Classifiers inside the kernel, asked by a program of their own (bench/classify.bpf.c)."""

from __future__ import annotations

import mmap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.compiler.classifier import Classifier
from clearway.datapath import bpf
from clearway.datapath.btf import Btf
from clearway.datapath.linetable import LineTable
from clearway.datapath.loader import LoadedObject, load_object
from clearway.datapath.test_run import run_syscall

Array = npt.NDArray[Any]

OBJECT = Path(__file__).resolve().parents[2] / "build/bench/objects/classify.bpf.o"
NO_RULE = 0xFF_FFFF
MOST = 65536
"""Packets at once."""
WORDS = 7


class Lookups:
    """A table of classifiers of its own. put() lays one out, ask() looks packets up in it."""

    def __init__(self, path: Path = OBJECT) -> None:
        with ExitStack() as undo:
            self.loaded: LoadedObject = undo.enter_context(load_object(path))
            self._packets = self._mapped("packets", MOST * WORDS).reshape(MOST, WORDS)
            self._found = self._mapped("found", MOST)
            with Btf.of_id(bpf.program_info(self.loaded.program_fd("ask_all")).btf_id) as types:
                self._asked = types.struct("asked")
            self._undo = undo.pop_all()

    def __enter__(self) -> Lookups:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _mapped(self, name: str, words: int) -> Array:
        size = -(-words * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        return np.frombuffer(mmap.mmap(self.loaded.map_fd(name), size), np.uint64, words)

    def put(self, classifier: Classifier, place: int = 0) -> None:
        LineTable(self.loaded.map_fd("classifier_v3"), "classifier_v3").put(place, classifier.lines)

    def ask(self, packets: Array, place: int = 0) -> Array:
        """By packet (n, WORDS) the number of the first rule that it meets, or NO_RULE."""
        return self.answers(packets, place)[0]

    def answers(self, packets: Array, place: int = 0) -> tuple[Array, Array]:
        """The same, and what is told with those rules."""
        self._run(packets, place)
        found = self._found[: len(packets)]
        return found & np.uint64(0xFFFFFFFF), found >> np.uint64(32)

    def nanoseconds(self, packets: Array, place: int = 0) -> float:
        """Of one look-up, without what it takes to write the packet down and to read the answer."""
        return (self._run(packets, place) - self._run(packets, place, skip=True)) / len(packets)

    def _run(self, packets: Array, place: int, skip: bool = False) -> int:
        self._packets[: len(packets)] = packets
        arguments = np.zeros(1, self._asked)
        arguments["instance"], arguments["count"], arguments["skip"] = place, len(packets), skip
        code, context = run_syscall(self.loaded.program_fd("ask_all"), arguments.tobytes())
        assert code == 0
        return int(np.frombuffer(context, self._asked)[0]["ns"])
