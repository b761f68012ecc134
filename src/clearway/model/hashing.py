# SPDX-License-Identifier: Apache-2.0
"""Hashing as the data path does it (bpf/util.h), whole columns at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]


def mix64(hashed: U64) -> U64:
    mixed: U64 = (hashed ^ hashed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed


def mix64_again(hashed: U64) -> U64:
    mixed: U64 = (hashed ^ hashed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed
