# SPDX-License-Identifier: Apache-2.0
"""Reads a ring of records of one size (BPF_MAP_TYPE_RINGBUF), whole batches at a time.

Layout: kernel/bpf/ringbuf.c. The first page holds the reader's position, the second the writers', then comes
the ring, mapped twice in a row so that what wraps around lies together. Each record stands behind a word that
tells its length and, while it is being written, BUSY.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BUSY = np.uint32(1 << 31)
PAGE = mmap.PAGESIZE


class Ring:
    """A ring by its file descriptor, which stays the caller's. A ring has one reader."""

    def __init__(self, fd: int, size: int, record: np.dtype[Any]) -> None:
        """size: bytes of the ring. record: of what the programs write into it."""
        header = 8
        stride = header + -(-record.itemsize // 8) * 8
        self._record = np.dtype(
            {
                "names": ["length", "record"],
                "formats": [np.dtype("<u4"), record],
                "offsets": [0, header],
                "itemsize": stride,
            }
        )
        self._mask = size - 1
        self._consumer = np.frombuffer(mmap.mmap(fd, PAGE), np.uint64, 1)
        self._mapped = mmap.mmap(fd, PAGE + 2 * size, prot=mmap.PROT_READ, offset=PAGE)
        self._producer = np.frombuffer(self._mapped, np.uint64, 1)

    @property
    def used(self) -> float:
        """The part of it that is not read yet."""
        return int(self._producer[0] - self._consumer[0]) / (self._mask + 1)

    def skip(self) -> None:
        """Forget what is in it."""
        self._consumer[0] = self._producer[0]

    def read(self) -> Array:
        """All records that are complete, oldest first."""
        records, behind = self.peek()
        self.advance(behind)
        return records

    def advance(self, position: int) -> None:
        """Gives back what stands before a position that peek() has told; nothing where that is done."""
        if self._consumer[0] <= position <= self._producer[0]:
            self._consumer[0] = position

    def peek(self) -> tuple[Array, int]:
        """What read() would give, and the position behind it. The records stay in the ring."""
        begin, end = int(self._consumer[0]), int(self._producer[0])
        stride = self._record.itemsize
        rows = np.frombuffer(
            self._mapped, self._record, (end - begin) // stride, offset=PAGE + (begin & self._mask)
        )
        busy = np.flatnonzero(rows["length"] & BUSY)
        count = int(busy[0]) if len(busy) else len(rows)
        records: Array = rows["record"][:count].copy()
        return records, begin + count * stride
