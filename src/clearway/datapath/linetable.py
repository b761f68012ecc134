# SPDX-License-Identifier: Apache-2.0
"""Tables whose rows are arrays of cache lines, each exchanged as a whole: classifiers, lists of prefixes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clearway.datapath import bpf, libbpf
from clearway.datapath.inner import create_inner, put_inner

LINE = 64


@dataclass(frozen=True)
class LineTable:
    """One such table, by the descriptor of its map, which somebody else owns."""

    fd: int
    name: str

    def put(self, place: int, lines: NDArray[np.uint64]) -> None:
        """What is at `place` is this from now on; a packet sees the old or the new. lines: (n, 8).
        DatapathError when there is no memory for it.
        """
        fd = create_inner(self.name[:15], LINE, len(lines), f"no memory for {self.name}: it takes {{}}")
        try:
            size = -(-lines.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
            with mmap.mmap(fd, size) as memory:
                memory[: lines.nbytes] = np.ascontiguousarray(lines).data.cast("B")
            put_inner(self.fd, self.name, place, fd)
        finally:
            os.close(fd)

    def copy(self, source: int, place: int) -> None:
        """What is at `source` is at `place` as well from now on."""
        key, number = ctypes.c_uint32(source), ctypes.c_uint32()
        look_up = libbpf.library().bpf_map_lookup_elem
        bpf.check(look_up(self.fd, ctypes.byref(key), ctypes.byref(number)), self.name)
        fd = int(bpf.check(libbpf.library().bpf_map_get_fd_by_id(number.value), self.name))
        try:
            put_inner(self.fd, self.name, place, fd)
        finally:
            os.close(fd)

    def drop(self, place: int) -> None:
        """There is nothing at `place`; its memory is free once no packet uses it."""
        key = ctypes.c_uint32(place)
        result = libbpf.library().bpf_map_delete_elem(self.fd, ctypes.byref(key))
        if result != -errno.ENOENT:
            bpf.check(result, self.name)
