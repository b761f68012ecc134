# SPDX-License-Identifier: Apache-2.0
"""Puts classifiers in force: each is an array of lines of its own (classifier_v3), exchanged as a whole."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from clearway.datapath import bpf, libbpf
from clearway.datapath.inner import create_inner, put_inner

LINE = 64
TABLE = "classifier_v3"


def put_lines(outer_fd: int, place: int, lines: NDArray[np.uint64]) -> None:
    """The classifier at `place` of the table classifier_v3 is this one from now on; a packet sees the old or
    the new one. lines: (n, 8). DatapathError when there is no memory for it.
    """
    fd = create_inner("classifier", LINE, len(lines), "no memory for a classifier: it takes {}")
    try:
        size = -(-lines.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        with mmap.mmap(fd, size) as memory:
            memory[: lines.nbytes] = lines.tobytes()
        put_inner(outer_fd, TABLE, place, fd)
    finally:
        os.close(fd)


def copy_lines(outer_fd: int, source: int, place: int) -> None:
    """What is at `source` is at `place` as well from now on."""
    library = libbpf.library()
    key, number = ctypes.c_uint32(source), ctypes.c_uint32()
    bpf.check(library.bpf_map_lookup_elem(outer_fd, ctypes.byref(key), ctypes.byref(number)), TABLE)
    fd = int(bpf.check(library.bpf_map_get_fd_by_id(number.value), TABLE))
    try:
        put_inner(outer_fd, TABLE, place, fd)
    finally:
        os.close(fd)


def drop_lines(outer_fd: int, place: int) -> None:
    """There is none at `place`; its memory is free once no packet uses it."""
    key = ctypes.c_uint32(place)
    result = libbpf.library().bpf_map_delete_elem(outer_fd, ctypes.byref(key))
    if result != -errno.ENOENT:
        bpf.check(result, TABLE)
