# SPDX-License-Identifier: Apache-2.0
"""Puts classifiers in force: each is an array of lines of its own (classifier_v1), exchanged as a whole."""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from clearway.datapath.inner import create_inner, put_inner

LINE = 64
TABLE = "classifier_v1"


def put_lines(outer_fd: int, place: int, lines: NDArray[np.uint64]) -> None:
    """The classifier at `place` of the table classifier_v1 is this one from now on; a packet sees the old or
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
