# SPDX-License-Identifier: Apache-2.0
"""Puts classifiers in force: each is an array of lines of its own (classifier_v1), exchanged as a whole."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from clearway.datapath import bpf, libbpf
from clearway.datapath.errors import DatapathError
from clearway.datapath.flowstore import BPF_F_INNER_MAP, BPF_F_MMAPABLE
from clearway.datapath.tables import BPF_MAP_TYPE_ARRAY

LINE = 64
TABLE = "classifier_v1"


def put_lines(outer_fd: int, place: int, lines: NDArray[np.uint64]) -> None:
    """The classifier at `place` of the table classifier_v1 is this one from now on; a packet sees the old or
    the new one. lines: (n, 8). DatapathError when there is no memory for it.
    """
    fd = _create(len(lines))
    try:
        size = -(-lines.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        with mmap.mmap(fd, size) as memory:
            memory[: lines.nbytes] = lines.tobytes()
        key, value = ctypes.c_uint32(place), ctypes.c_uint32(fd)
        update = libbpf.library().bpf_map_update_elem
        bpf.check(update(outer_fd, ctypes.byref(key), ctypes.byref(value), 0), TABLE)
    finally:
        os.close(fd)


def _create(lines: int) -> int:
    options = libbpf.MapCreateOpts(
        sz=ctypes.sizeof(libbpf.MapCreateOpts), map_flags=BPF_F_MMAPABLE | BPF_F_INNER_MAP
    )
    fd = libbpf.library().bpf_map_create(
        BPF_MAP_TYPE_ARRAY, b"classifier", 4, LINE, lines, ctypes.byref(options)
    )
    if fd < 0:
        raise DatapathError(f"no memory for a classifier: it takes {lines * LINE / (1 << 20):,.1f} MiB")
    return int(fd)
